"""Session events: what happens in a session, as the runtime says it, with the bytes it said it in."""

from __future__ import annotations

import json
from typing import Any

import msgspec


class SessionEvent(msgspec.Struct, frozen=True):
    """One event of one session.

    `raw` is the JSON object of the SDK's envelope (`id`, `timestamp`, `parentId`, `type`, `data`, and
    `ephemeral` on events that are not stored), byte for byte as the runtime sent it: an event passes through
    us without being decoded unless somebody needs its content. A struct, because hundreds of them are made in a
    streamed turn, and a frozen dataclass takes ten times as long to make.
    """

    id: str
    type: str
    raw: bytes
    ephemeral: bool = False
    #: Where a reader continues behind this event: its own id, or, for one that is not stored, the id of the stored
    #: event before it and its own ("stored~own"), so that a reader finds its place also when nobody remembers the
    #: unstored ones any more. Set by whoever publishes the event.
    cursor: str = ""

    @property
    def data(self) -> dict[str, Any]:
        """Empty when it cannot be read: no JSON (a trace nobody has looked at), nested too deeply, or no object."""
        try:
            envelope = json.loads(self.raw)
        except (ValueError, RecursionError):
            return {}
        data = envelope.get("data") if isinstance(envelope, dict) else None
        return data if isinstance(data, dict) else {}

    @property
    def is_piece(self) -> bool:
        """A piece of an answer that is being made (`assistant.message_delta` and the like); more are to come."""
        return self.ephemeral and self.type.endswith("_delta")

    @property
    def is_trace(self) -> bool:
        """The runtime's own trace and accounts (`model.*`, `session.usage_record`): large, repeated, or told in the
        history alone, and no part of the SDK's event types."""
        return self.type in _TRACE


def host_event(event_type: str, data: dict[str, Any], *, event_id: str, timestamp: str) -> SessionEvent:
    """An event of our own (`aerodrome.*`) in the SDK's envelope; it is not stored."""
    envelope = {"type": event_type, "data": data, "ephemeral": True, "id": event_id, "timestamp": timestamp}
    raw = json.dumps(envelope, separators=(",", ":")).encode()
    return SessionEvent(id=event_id, type=event_type, raw=raw, ephemeral=True)


_TRACE = frozenset(
    f"model.{name}"
    for name in (
        "log",
        "message",
        "messages_snapshot",
        "model_call_started",
        "model_call_success",
        "response",
        "telemetry",
        "tool_execution",
        "turn_ended",
        "turn_failed",
        "turn_started",
    )
) | {"session.usage_record"}
