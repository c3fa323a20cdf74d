"""Parameters that several routes have, and the route class that reads ids and bodies."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Header, Path, Query, Request, Response
from fastapi.routing import APIRoute

from aerodrome.errors import Invalid, NotFound
from aerodrome.http.encoding import decode
from aerodrome.model import valid_session_id

PRINTABLE = r"^[\x20-\x7e]{1,200}$"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,200}")

SessionId = Annotated[str, Path(description="The session's id")]
RequestId = Annotated[str, Path(description="`data.requestId` of the event that asks")]
Cursor = Annotated[str | None, Query(max_length=1000, description="`next` of the page before")]
Trace = Annotated[bool, Query(description="Include the runtime's own `model.*` trace events in the stream")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=PRINTABLE,
        description="1 to 200 printable ASCII characters. Repeated in the same session, it returns the first outcome",
    ),
]
LastEventId = Annotated[
    str | None,
    Header(alias="Last-Event-ID", pattern=PRINTABLE, description="Go on behind this event; stronger than `after`"),
]
After = Annotated[str | None, Query(pattern=PRINTABLE, description="Go on behind this event")]


class ApiRoute(APIRoute):
    """A route whose ids are possible ones, and whose body is read and parsed by us.

    An id that no session can have stops here, whatever the route: nothing behind has to think about slashes or
    megabytes. The body is bounded by the middleware, and an error says where it is wrong.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        has_body = self.body_field is not None

        async def handle_checked(request: Request) -> Response:
            # The server has decoded the path, so that a slash in an id would look like one between segments.
            if b"%2f" in request.scope["raw_path"].lower():
                raise NotFound("there is no such route; /openapi.json lists them")
            ids = request.path_params
            if "session_id" in ids and not valid_session_id(ids["session_id"]):
                raise NotFound("there is no such session")
            if "request_id" in ids and not _REQUEST_ID.fullmatch(ids["request_id"]):
                raise NotFound("no such request is open")
            if has_body:
                request = _JsonRequest(request.scope, request.receive)
                await request.parse()
            return await handle(request)

        return handle_checked


class _JsonRequest(Request):
    _value: Any = None

    async def parse(self) -> None:
        """Raises `Invalid`, and what the middleware raises while the body comes in."""
        body = await self.body()
        if not body:
            return
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Invalid(f"send the body as 'Content-Type: application/json', not {kind[:100]!r}")
        self._value = decode(body)

    async def json(self) -> Any:
        return self._value
