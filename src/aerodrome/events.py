"""Session events: what happens in a session, as the runtime says it, with the bytes it said it in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """One event of one session.

    `raw` is the JSON object of the SDK's envelope (`id`, `timestamp`, `parentId`, `type`, `data`, and
    `ephemeral` on events that are not stored), byte for byte as the runtime sent it: an event passes through
    us without being decoded unless somebody needs its content.
    """

    id: str
    type: str
    raw: bytes
    ephemeral: bool = False

    @property
    def data(self) -> dict[str, Any]:
        data = json.loads(self.raw).get("data")
        return data if isinstance(data, dict) else {}

    @property
    def is_trace(self) -> bool:
        """The runtime's own `model.*` trace: large, repeated, and no part of the SDK's event types."""
        return self.type in _TRACE


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
)
