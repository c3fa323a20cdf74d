"""What nodes say to each other beside the Copilot CLI's own protocol: methods, and values as JSON.

A node connects to another's gateway and says `connect` with that one's peer token. With `onBehalfOf` the connection
is one client's, and the Copilot protocol is spoken on it as with any client. Without, it is the node's own, and
carries the work of all HTTP callers that are connected there: the methods below. Their answers are `{"value": ...}`,
or `{"error": ...}` with what an `AerodromeError` has.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from aerodrome.errors import AerodromeError, Invalid, SessionElsewhere, TurnFailed, all_codes
from aerodrome.events import SessionEvent
from aerodrome.model import Principal, SessionRow, TurnRow
from aerodrome.sessions.api import SendMessage

T = TypeVar("T")

#: Requests of the node that forwards: `{"who", "session", "remembered", ...}`. The last says that the one that asks
#: remembers who runs the session, and has not asked the store: who does not any more is not to load it.
SEND = "aerodrome.send"
EVENTS = "aerodrome.events"
CALL = "aerodrome.call"
#: The Copilot protocol's own, which a node that relays a client sends as well: whether anybody is there.
PING = "ping"
#: Its notifications about a stream it has begun: `{"stream"}`.
FOLLOW = "aerodrome.follow"
ABANDON = "aerodrome.abandon"
CLOSE = "aerodrome.close"
#: Notifications to it: `{"stream", "event"}`, and at the end `{"stream", "row" | "error" | "lagging"}`.
TOLD = "aerodrome.told"
ENDED = "aerodrome.ended"
#: To a node that relays a client's connection: `{"sessionId"}` runs on another node now.
MOVED = "aerodrome.moved"

#: A parameter of the `session.resume` by which a node brings a client's session back: ids of events that the client
#: has, the latest first. It is told what has come behind them.
KNOWN = "aerodromeKnown"

#: Error code of a request that was meant for the node which runs the session, and is not that one (any more). Nothing
#: was done; ask again who is. Only nodes see it.
SESSION_MOVED = "session_moved"


class SessionMoved(SessionElsewhere):
    """A forwarded request has come to the wrong node: the session has moved on."""

    code = SESSION_MOVED


class EventOnWire(msgspec.Struct):
    """A `SessionEvent`; the runtime's bytes as they are."""

    id: str
    type: str
    raw: msgspec.Raw
    ephemeral: bool
    cursor: str


class Told(msgspec.Struct):
    """Parameters of `aerodrome.told`."""

    stream: int
    event: EventOnWire


class Ended(msgspec.Struct):
    """Parameters of `aerodrome.ended`. Of a turn, `row` or `error`; `lagging`: not all of its events were told."""

    stream: int
    row: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    lagging: bool = False


def event_to_wire(event: SessionEvent) -> EventOnWire:
    return EventOnWire(event.id, event.type, msgspec.Raw(event.raw), event.ephemeral, event.cursor)


def event_of(wire: EventOnWire) -> SessionEvent:
    return SessionEvent(wire.id, wire.type, bytes(wire.raw), wire.ephemeral, wire.cursor)


def to_wire(value: Principal | TurnRow | SessionRow | SendMessage) -> Any:
    return msgspec.to_builtins(value)


def principal_of(value: Any) -> Principal:
    """Raises `Invalid`, as all of these: another node, of another release, means something else by it."""
    return _convert(value, Principal)


def turn_row_of(value: Any) -> TurnRow:
    return _convert(value, TurnRow)


def session_row_of(value: Any) -> SessionRow:
    return _convert(value, SessionRow)


def message_of(value: Any) -> SendMessage:
    return _convert(value, SendMessage)


def _convert(value: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Invalid(f"another node sends no {kind.__name__} that can be read: {error}") from error


def error_to_wire(error: AerodromeError) -> dict[str, Any]:
    return {"code": error.code, "detail": error.detail, "retry_after": error.retry_after, "extra": error.extra}


def error_of(value: dict[str, Any]) -> AerodromeError:
    code = str(value.get("code"))
    kind = SessionMoved if code == SESSION_MOVED else all_codes().get(code, TurnFailed)
    extra = value.get("extra")
    return kind(
        str(value.get("detail")), retry_after=value.get("retry_after"), **(extra if isinstance(extra, dict) else {})
    )
