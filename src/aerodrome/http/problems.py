"""Problem documents (RFC 9457): how each error code looks over HTTP."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from aerodrome.errors import AerodromeError
from aerodrome.http.encoding import encode

MEDIA_TYPE = "application/problem+json"


class ProblemKind(NamedTuple):
    status: int
    title: str
    retryable: bool
    #: A typical `detail`, for the documentation.
    example: str


#: Every code this API answers. An error with another code is our own defect and becomes `internal`.
PROBLEMS: dict[str, ProblemKind] = {
    "invalid": ProblemKind(400, "Invalid request", False, "body.prompt: Field required"),
    "unauthenticated": ProblemKind(401, "Unauthenticated", False, "send your key as 'Authorization: Bearer KEY'"),
    "forbidden": ProblemKind(403, "Forbidden", False, "only the owner may delete this session"),
    "not_found": ProblemKind(404, "Not found", False, "there is no session 'support-42'"),
    "session_busy": ProblemKind(409, "Session busy", True, "a turn is running and on_busy is 'reject'"),
    "conflict": ProblemKind(409, "Conflict", False, "this Idempotency-Key was used for another prompt"),
    "too_large": ProblemKind(413, "Too large", False, "the body is larger than 16777216 bytes"),
    "quarantined": ProblemKind(423, "Session quarantined", False, "loading this session has ended 2 runtimes"),
    "rate_limited": ProblemKind(
        429, "Rate limited", True, "60 turns a minute are what you may have, and they are spent"
    ),
    "internal": ProblemKind(500, "Internal error", False, "unexpected; the log has it under this X-Request-Id"),
    "turn_failed": ProblemKind(502, "Turn failed", False, "the model provider answered 500"),
    "capacity": ProblemKind(503, "At capacity", True, "64 of 64 runtimes are in use, and none became free within 30 s"),
    "draining": ProblemKind(503, "Draining", True, "this node is shutting down"),
    "runtime_unavailable": ProblemKind(503, "Runtime unavailable", True, "no Copilot CLI process could be started"),
    "store_unavailable": ProblemKind(503, "Store unavailable", True, "the database is locked"),
    "turn_interrupted": ProblemKind(503, "Turn interrupted", True, "the runtime died after a tool had run"),
}

#: Methods that a route may answer.
_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")

#: The code of the problem that a request is answered with, in its scope.
PROBLEM_CODE = "aerodrome.problem_code"

#: Members an error's `extra` must not replace.
_RESERVED = frozenset({"type", "title", "status", "code", "detail", "retryable", "retry_after"})


def problem(
    code: str,
    detail: str,
    *,
    status: int | None = None,
    retryable: bool | None = None,
    retry_after: float | None = None,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The problem document.

    Args:
        status: The HTTP status where it is not the code's own (405 is `invalid`, as 400 is).
        retry_after: Seconds.
        extra: More members.
    """
    kind = PROBLEMS[code]
    document: dict[str, Any] = {
        "type": f"urn:aerodrome:problem:{code}",
        "title": kind.title,
        "status": kind.status if status is None else status,
        "code": code,
        "detail": detail,
        "retryable": kind.retryable if retryable is None else retryable,
    }
    if retry_after is not None:
        document["retry_after"] = retry_after
    return document | {name: value for name, value in (extra or {}).items() if name not in _RESERVED}


def problem_of(error: AerodromeError) -> dict[str, Any]:
    if error.code not in PROBLEMS:
        return internal_problem()
    return problem(
        error.code,
        error.detail,
        retryable=error.retryable,
        retry_after=error.retry_after,
        extra=error.extra,
    )


def internal_problem() -> dict[str, Any]:
    return problem("internal", PROBLEMS["internal"].example)


def problem_response(document: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    headers = dict(headers or {})
    if document["code"] == "unauthenticated":
        headers["WWW-Authenticate"] = 'Bearer realm="aerodrome"'
    if "retry_after" in document:
        # The header knows whole seconds only; 0 would ask a client to spin.
        headers["Retry-After"] = str(max(1, math.ceil(document["retry_after"])))
    return _Problem(document["code"], encode(document), document["status"], headers, MEDIA_TYPE)


class _Problem(Response):
    """Leaves its code in the scope of the request, for whoever counts."""

    def __init__(self, code: str, content: bytes, status: int, headers: dict[str, str], media_type: str) -> None:
        super().__init__(content, status, headers, media_type)
        self._code = code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[PROBLEM_CODE] = self._code
        await super().__call__(scope, receive, send)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the router itself answers: no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.NOT_FOUND:
        document = problem("not_found", "there is no such route; /openapi.json lists them")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The router names the methods of one route; a path has a route for each.
        headers = {"Allow": (allowed := ", ".join(_methods_of(request)))}
        document = problem("invalid", f"this route answers {allowed}, not {request.method}", status=405)
    else:
        document = problem("invalid", str(error.detail), status=error.status_code)
    return problem_response(document, headers)


def _methods_of(request: Request) -> list[str]:
    """Those that the path of the request answers."""
    routes, scope = request.app.routes, request.scope
    return [name for name in _METHODS if any(_takes(route, scope, name) for route in routes)]


def _takes(route: BaseRoute, scope: Scope, method: str) -> bool:
    return route.matches({**scope, "method": method})[0] is Match.FULL


async def on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [_field_error(item) for item in error.errors()]
    first = f"{errors[0]['field']}: {errors[0]['detail']}"
    more = f" (and {len(errors) - 1} more, see errors)" if len(errors) > 1 else ""
    return problem_response(problem("invalid", first + more, extra={"errors": errors}))


def _field_error(item: dict[str, Any]) -> dict[str, str]:
    """`{"field": "body.attachments[0].type", "detail": "Field required"}`, without the caller's own value."""
    where, *path = item["loc"]
    field = str(where)
    for part in path:
        if isinstance(part, int):
            field += f"[{part}]"
        elif not part.startswith("<"):
            field += f".{part}"
    detail = "unknown field" if item["type"] == "extra_forbidden" else str(item["msg"])
    return {"field": field, "detail": detail.removeprefix("Value error, ")}
