"""A shortcut past the framework for the one request that comes with every turn.

Routing, dependencies and error handling of a framework cost as much as all we do for a prompt ourselves. A prompt that
is written as most are goes from the middleware straight to its route's function. Everything else takes the framework's
way, and so does what is wrong with a prompt: the errors are said in one place.
"""

from __future__ import annotations

import re

from fastapi import Request
from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aerodrome.errors import Invalid
from aerodrome.http.encoding import decode
from aerodrome.http.middleware import ROUTE
from aerodrome.http.routes_messages import send_message
from aerodrome.http.routing import PRINTABLE
from aerodrome.http.schemas import SendBody

_PATH = re.compile(rb"/api/v1/sessions/([A-Za-z0-9_-]{1,200})/messages")
_TEMPLATE = "/api/v1/sessions/{session_id}/messages"
_KEY = re.compile(PRINTABLE)


class PromptShortcut:
    """The innermost middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (found := _plain_prompt(scope)) is None:
            await self._app(scope, receive, send)
            return
        session_id, idempotency_key = found
        scope[ROUTE] = _TEMPLATE
        data = await Request(scope, receive).body()
        try:
            body = SendBody.model_validate(decode(data))
        except (Invalid, ValidationError):
            await self._app(scope, _once_more(data, receive), send)
            return
        # What was said is in `body`; the turn may last for an hour. A request remembers its body, so another one.
        del data
        response = await send_message(Request(scope, receive), session_id, body, idempotency_key)
        await response(scope, receive, send)


def _plain_prompt(scope: Scope) -> tuple[str, str | None] | None:
    """The session and the idempotency key of a prompt that may take the shortcut."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
        return None
    # As it came: an id with escapes in it is none.
    if (path := _PATH.fullmatch(scope["raw_path"])) is None:
        return None
    kinds: list[bytes] = []
    keys: list[bytes] = []
    for name, value in scope["headers"]:
        if name == b"content-type":
            kinds.append(value)
        elif name == b"idempotency-key":
            keys.append(value)
    if len(kinds) != 1 or kinds[0].lower() != b"application/json" or len(keys) > 1:
        return None
    key = keys[0].decode("latin-1") if keys else None
    if key is not None and _KEY.fullmatch(key) is None:
        return None
    return path[1].decode("ascii"), key


def _once_more(body: bytes, receive: Receive) -> Receive:
    """The body that was read already, and then what comes behind it."""
    read = False

    async def replay() -> Message:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
