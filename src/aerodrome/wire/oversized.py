"""What a message was that is too large to be read, out of its first bytes as the CLI writes them. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from aerodrome.wire.envelope import RequestId
from aerodrome.wire.framing import Oversized

_ID = re.compile(rb'"id":\s*(?:(\d{1,18})|"([^"\\]{1,200})")[,}]')
_METHOD = re.compile(rb'"method":\s*"([^"\\]{1,200})"')
_SESSION = re.compile(rb'\{"sessionId":\s*"([A-Za-z0-9_-]{1,200})"')


class Head(NamedTuple):
    """A request (`id` and `method`), a notification (`method`), an answer (`id`), or nothing that we know."""

    id: RequestId | None
    method: str | None
    #: What its parameters begin with.
    session_id: str | None


def head_of(body: Oversized) -> Head:
    envelope, params, rest = bytes(body).partition(b'"params"')
    if not params:
        envelope = re.split(rb'"(?:result|error)"', envelope, maxsplit=1)[0]
    found, method, session = _ID.search(envelope), _METHOD.search(envelope), _SESSION.search(rest[:500])
    request_id: RequestId | None = None
    if found is not None:
        request_id = int(found[1]) if found[1] is not None else found[2].decode("utf-8", "replace")
    return Head(
        request_id,
        method[1].decode("utf-8", "replace") if method is not None else None,
        session[1].decode() if session is not None else None,
    )


def complaint(body: Oversized) -> str:
    return f"a message of {body.length} bytes is over the limit (limits.max_frame)"
