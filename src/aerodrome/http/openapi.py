"""The OpenAPI document: what FastAPI derives from the routes, with our problem documents and streams.

Built once, from the routes alone, so that the reference page can be written without a server.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from aerodrome import __version__
from aerodrome.http import schemas
from aerodrome.http.problems import MEDIA_TYPE, PROBLEMS, problem
from aerodrome.http.sse import MEDIA_TYPE as SSE_MEDIA_TYPE
from aerodrome.http.sse import frame

_REF = "#/components/schemas/{model}"

#: What may come of a turn, beside its completion.
TURN_CODES = (
    "rate_limited",
    "turn_failed",
    "capacity",
    "draining",
    "runtime_unavailable",
    "turn_interrupted",
)

_EVENT_EXAMPLE = (
    "id: 8d7e0a4c-5a0f-4e39-9d5a-52f3b1c0a001\n"
    "event: assistant.message\n"
    'data: {"type":"assistant.message","data":{"content":"Titan."},"id":"8d7e0a4c-5a0f-4e39-9d5a-52f3b1c0a001",'
    '"timestamp":"2026-01-01T00:00:42.400Z","parentId":null}\n\n'
)

EVENT_STREAM: dict[str, Any] = {
    "description": "Server-sent events; see the description of this document",
    "content": {SSE_MEDIA_TYPE: {"schema": {"type": "string"}, "example": _EVENT_EXAMPLE}},
}

DESCRIPTION = """\
Aerodrome hosts GitHub Copilot sessions for many users.

**Authentication.** `Authorization: Bearer KEY` on every route but `/health`, `/ready` and `/openapi.json`;
for `/metrics` the key is a token of its own.

**Errors** are problem documents (RFC 9457, `application/problem+json`) with a stable `code`. `retryable` says
whether the same request may succeed later, `retry_after` and the `Retry-After` header when. A session you may
not read is answered like one that does not exist.

**Requests.** Bodies are JSON in UTF-8, with at most 50,000 values. A field that is not described is an error.
`X-Request-Id` (1 to 128 of `A-Z a-z 0-9 . _ : -`) is returned with the response and stands in the log; without it one
is made.

**Connections** are kept for 75 s between two requests. A request's head has to come within 30 s, and its body must not
pause for as long. Of more than 10,000 connections on which no request is being answered the one that has been so for
longest is closed.

**Server-sent events.** `POST` of a prompt streams with `Accept: text/event-stream`; `GET .../events` always
does. `event` is the SDK's event type, `data` its envelope on one line as the runtime sent it (`id`, `timestamp`,
`parentId`, `type`, `data`), `id` the event's id, for `Last-Event-ID`. The runtime's own `model.*` trace is left
out unless `?trace=true`. A comment line comes as a heartbeat. Beside the SDK's types:

| event | meaning |
|---|---|
| `end` | last of a turn's stream: what the call without streaming answers, and `error`, the problem document, if the turn failed or was interrupted |
| `error` | last of a stream that can not go on: a problem document. `capacity`: you read too slowly; `not_found`: the session is shared with you no more; `unauthenticated`: your key was revoked |
| `reconnect` | last of a session's stream when the server stops: connect again with `Last-Event-ID`, here as `last_event_id` |
| `aerodrome.session_large` | the session was loaded, and its history is long: `characters`, `limit`, `hint` |
| `aerodrome.gap` | first of a resumed stream: events are missing between the given one and the next |
| `aerodrome.session_repaired` | with the session on a volume: its history was damaged, and `backup` has it as it was |
| `aerodrome.session_in_use` | with the session on a volume: a process without a lease, `pids`, has it loaded, too |

Times are Unix seconds.
"""  # noqa: E501


def body_codes(*codes: str) -> tuple[str, ...]:
    """The codes of a route that takes a body and writes to a store."""
    return ("invalid", "too_large", "rate_limited", "store_unavailable", *codes)


Responses = dict[int | str, dict[str, Any]]


def responses(successes: Responses, *codes: str) -> Responses:
    """The `responses` of a route that answers these codes, beside those that every route answers."""
    by_status: dict[int | str, list[str]] = {}
    for code in PROBLEMS:
        if code in codes or code in ("unauthenticated", "internal"):
            by_status.setdefault(PROBLEMS[code].status, []).append(code)
    return successes | {status: _problem_response(group) for status, group in by_status.items()}


def _problem_response(codes: Iterable[str]) -> dict[str, Any]:
    codes = list(codes)
    response: dict[str, Any] = {
        "description": ", ".join(f"`{code}`" for code in codes),
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": _REF.format(model="Problem")},
                "examples": {code: {"value": problem_example(code)} for code in codes},
            }
        },
    }
    if any(PROBLEMS[code].retryable for code in codes):
        response["headers"] = {
            "Retry-After": {"description": "Seconds, where known", "schema": {"type": "integer", "minimum": 1}}
        }
    if "unauthenticated" in codes:
        response["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return response


def problem_example(code: str) -> dict[str, Any]:
    kind = PROBLEMS[code]
    extra: dict[str, Any] = {}
    if code == "invalid":
        extra["errors"] = [{"field": "body.prompt", "detail": "Field required"}]
    if code in ("turn_failed", "turn_interrupted"):
        extra["turn"] = {**schemas.TURN_EXAMPLE, "status": code.removeprefix("turn_")}
    if code == "session_busy":
        extra |= {"turn": "turn_01", "author": "alice"}
    if code == "too_large":
        extra["limit"] = 16 * 1024 * 1024
    retry_after = 5.0 if code in ("capacity", "rate_limited") else None
    return problem(code, kind.example, retry_after=retry_after, extra=extra)


def turn_docs() -> Responses:
    """The `responses` of a prompt's success: JSON or a stream."""
    end = frame("end", schemas.RESULT_EXAMPLE).decode()
    return {
        200: {
            "description": "The turn is over; or, with `Accept: text/event-stream`, its events",
            "content": {
                "application/json": {
                    "schema": {"$ref": _REF.format(model="TurnResult")},
                    "example": schemas.RESULT_EXAMPLE,
                },
                SSE_MEDIA_TYPE: {"schema": {"type": "string"}, "example": _EVENT_EXAMPLE + end},
            },
        }
    }


def document(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    result = get_openapi(
        title="Aerodrome",
        version=__version__,
        description=DESCRIPTION,
        routes=list(routes),
    )
    components = result.setdefault("components", {})
    models = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        models.pop(name, None)
    models.update(_own_schemas())
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in result["paths"].items():
        for operation in operations.values():
            # FastAPI derives it from the function's name; the description starts with a better one.
            operation["summary"] = operation["description"].split("\n")[0]
            # FastAPI's own answer to a wrong request; ours is 400 with a problem document.
            operation["responses"].pop("422", None)
            if path.startswith("/api/") or path == "/metrics":
                operation["security"] = [{"key": []}]
            else:
                operation["responses"].pop("401", None)
    return result


@cache
def _own_schemas() -> dict[str, Any]:
    """Every model, as pydantic describes it.

    FastAPI's own copies lack what is null in the examples, and the models that routes name by reference only.
    """
    models = [(model, "validation") for model in vars(schemas).values() if _is_model(model)]
    _, definitions = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]
    found = definitions["$defs"]
    assert isinstance(found, dict)
    return found


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel) and value.__module__ == schemas.__name__
