"""What happens to every request before its route sees it: an id, an identity, a bound on its body.

Plain ASGI, because the order matters: a caller is known before a byte of its body is read, and an error
raised at any depth, also while the body streams in, becomes a problem document in one place.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import Counter

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerodrome.errors import AerodromeError, Invalid, RateLimited, TooLarge, Unauthenticated
from aerodrome.http.limits import HttpLimits
from aerodrome.http.ports import Authenticator
from aerodrome.http.problems import PROBLEM_CODE, internal_problem, problem, problem_of, problem_response
from aerodrome.model import Principal
from aerodrome.telemetry import SILENT, Telemetry
from aerodrome.telemetry.trace import Span, TraceContext

log = structlog.get_logger(__name__)

#: Answered without a key; `/metrics` has a token of its own.
PUBLIC_PATHS = frozenset({"/health", "/ready", "/openapi.json", "/metrics"})

#: What the log says of a request whose client did not wait for the answer (nginx's number for it).
CLIENT_GONE = 499

#: The template of the route that took the request, in its scope, where it is not the framework that found it.
ROUTE = "aerodrome.route"
#: Methods by their own name in metrics and traces; whoever asks may call one anything.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HOW_TO_AUTHENTICATE = "send your key as 'Authorization: Bearer KEY'"


_TWO_LENGTHS = problem_response(
    problem("invalid", "Content-Length and Transfer-Encoding say two things of the body; send one"),
    {"Connection": "close"},
)


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def route_of(scope: Scope) -> str:
    """The template of the route that took the request; empty when none did."""
    return str(scope.get(ROUTE) or getattr(scope.get("route"), "path", ""))


class RequestContext:
    """The outermost: names the request, logs, measures and traces it without content, answers what nobody else did."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry = SILENT) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        started = time.monotonic()
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode("ascii"))]
            await send(message)

        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        span = self._telemetry.tracer.span(
            method,
            kind="server",
            parent=TraceContext.parse(header(scope, b"traceparent"), header(scope, b"tracestate")),
            attributes={"http.request.method": method},
        )
        with structlog.contextvars.bound_contextvars(request_id=request_id), span:
            try:
                if header(scope, b"transfer-encoding") is not None and header(scope, b"content-length") is not None:
                    # A proxy that goes by the other one passes on as a body what is a request here, on a connection
                    # that its callers share (RFC 9112, section 6.3).
                    await _TWO_LENGTHS(scope, receive, send_named)
                    return
                await self._app(scope, receive, send_named)
            except AerodromeError as error:
                if status:
                    raise
                await problem_response(problem_of(error))(scope, receive, send_named)
            except ClientDisconnect:
                # It went away while its body was read: there is nobody to answer.
                status = CLIENT_GONE
            except Exception:
                log.exception("http.unexpected_error", method=scope["method"], path=scope["path"][:200])
                if status:
                    raise
                await problem_response(internal_problem())(scope, receive, send_named)
            finally:
                elapsed = time.monotonic() - started
                self._tell(scope, method, status, elapsed, span)
                ms = round(elapsed * 1000, 2)
                log.debug("http.request", method=scope["method"], path=scope["path"][:200], status=status, ms=ms)

    def _tell(self, scope: Scope, method: str, status: int, seconds: float, span: Span) -> None:
        route, code = route_of(scope), scope.get(PROBLEM_CODE)
        self._telemetry.meter.http_answered(method, route, status, seconds)
        if code is not None:
            self._telemetry.meter.rejected("http", code)
        span.rename(f"{method} {route}".strip())
        span.set({"http.route": route, "http.response.status_code": status})
        if code is not None:
            span.end(code)


class Authentication:
    """Puts the principal into `request.state.principal`."""

    def __init__(self, app: ASGIApp, auth: Authenticator) -> None:
        self._app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            principal = await self._auth.authenticate(bearer(header(scope, b"authorization")))
            scope.setdefault("state", {})["principal"] = principal
            structlog.contextvars.bind_contextvars(tenant=principal.tenant, user=principal.user)
        await self._app(scope, receive, send)


def bearer(value: str | None) -> str:
    """The credential in a header `Authorization`. Raises `Unauthenticated`."""
    if value is None:
        raise Unauthenticated(_HOW_TO_AUTHENTICATE)
    scheme, _, key = value.partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key or not key.isascii() or not key.isprintable() or " " in key:
        raise Unauthenticated(f"the Authorization header is not understood; {_HOW_TO_AUTHENTICATE}")
    return key


class _Held:
    """How much of a body is counted."""

    size = 0


class BodyLimit:
    """Refuses a body that is too large, by what it declares or by what arrives, and one that stalls; also what comes in
    at the same time from one user, who may send a thousand of the largest, slowly."""

    def __init__(self, app: ASGIApp, limits: HttpLimits) -> None:
        self._app = app
        self._limits = limits
        #: Bytes of bodies that are not complete yet.
        self._incoming: Counter[tuple[str, str] | None] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.max_body
        if int(header(scope, b"content-length") or 0) > limit:
            raise self._too_large()
        size = 0
        complete = False
        principal: Principal | None = scope.get("state", {}).get("principal")
        who = (principal.tenant, principal.user) if principal is not None else None

        async def receive_bounded() -> Message:
            nonlocal size, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(self._limits.read_timeout):
                    message = await receive()
            except TimeoutError:
                seconds = self._limits.read_timeout
                raise Invalid(f"the body is incomplete and nothing came for {seconds:g} s") from None
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if size > limit:
                    raise self._too_large()
                self._come_in(who, held, 0 if complete else size)
            return message

        held = _Held()
        try:
            await self._app(scope, receive_bounded, send)
        finally:
            self._come_in(who, held, 0)

    def _come_in(self, who: tuple[str, str] | None, held: _Held, size: int) -> None:
        """So much of this body is here, and not complete. Raises `RateLimited`."""
        self._incoming[who] += size - held.size
        held.size = size
        if not self._incoming[who]:
            del self._incoming[who]
        elif self._incoming[who] > (most := self._limits.max_incoming) and size:
            raise RateLimited(f"{most} bytes of your requests are coming in already", retry_after=1.0)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._limits.max_body} bytes", limit=self._limits.max_body)
