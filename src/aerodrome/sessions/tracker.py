"""Reads one turn out of a session's events. Pure: events in, what became of the turn out.

A turn is known by the id of its user message, which is the answer to `session.send`; events that come before that
answer are kept until it is there. A turn has begun when its `user.message` is seen, and has ended with the next
`session.idle`: the runtime emits it after the turn's events are stored, so an ended turn is a durable one (FACTS,
"Durability"). An idle before the own message belongs to somebody else's turn.
"""

from __future__ import annotations

from typing import Any

import msgspec

from aerodrome.events import SessionEvent


class _Data(msgspec.Struct):
    """The fields of event data that we read, of whichever event."""

    messageId: str | None = None  # noqa: N815 - the wire's names
    content: str | None = None
    toolRequests: list[msgspec.Raw] | None = None  # noqa: N815
    agentId: str | None = None  # noqa: N815
    aborted: bool = False
    message: str | None = None
    errorType: str | None = None  # noqa: N815
    inputTokens: float = 0  # noqa: N815
    outputTokens: float = 0  # noqa: N815
    cacheReadTokens: float = 0  # noqa: N815
    cacheWriteTokens: float = 0  # noqa: N815
    model: str | None = None


class _Event(msgspec.Struct):
    data: _Data
    agentId: str | None = None  # noqa: N815


_decode = msgspec.json.Decoder(_Event).decode

#: The only events whose content matters here; the others pass undecoded.
_READ = frozenset({"user.message", "assistant.message", "assistant.usage", "session.error", "session.idle", "abort"})


class TurnTracker:
    def __init__(self) -> None:
        self.message_id: str | None = None
        self.begun = False
        self.ended = False
        self.aborted = False
        #: A tool has been started: running the turn again could do something twice.
        self.tool_ran = False
        self.answer: dict[str, Any] | None = None
        self.error: str | None = None
        self.usage: dict[str, Any] = {}
        self._early: list[SessionEvent] = []

    def sent_as(self, message_id: str) -> None:
        """The runtime has taken the prompt and gave it this id."""
        self.message_id = message_id
        early, self._early = self._early, []
        for event in early:
            self.feed(event)

    def feed(self, event: SessionEvent) -> None:
        """Take in the session's next event; afterwards look at `ended`."""
        if self.message_id is None:
            if event.type in _READ or event.type == "tool.execution_start":
                self._early.append(event)
        elif event.type == "tool.execution_start":
            self.tool_ran = self.tool_ran or self.begun
        elif event.type in _READ and not self.ended:
            self._read(event)

    def _read(self, event: SessionEvent) -> None:
        try:
            decoded = _decode(event.raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            decoded = _Event(data=_Data())  # another shape than we know: the event's type alone must do
        data = decoded.data
        if event.type == "user.message":
            self.begun = self.begun or data.messageId == self.message_id
        elif not self.begun:
            return
        elif event.type == "assistant.message":
            if data.content and decoded.agentId is None and data.agentId is None:
                self.answer = {"id": data.messageId or event.id, "content": data.content}
        elif event.type == "assistant.usage":
            self._add_usage(data)
        elif event.type == "session.error":
            self.error = data.message or data.errorType or "the runtime reported an error"
        elif event.type == "abort":
            self.aborted = True
        elif event.type == "session.idle":
            self.aborted = self.aborted or data.aborted
            self.ended = True

    def _add_usage(self, data: _Data) -> None:
        for name, amount in (
            ("input_tokens", data.inputTokens),
            ("output_tokens", data.outputTokens),
            ("cache_read_tokens", data.cacheReadTokens),
            ("cache_write_tokens", data.cacheWriteTokens),
        ):
            self.usage[name] = self.usage.get(name, 0) + int(amount)
        self.usage["model_calls"] = self.usage.get("model_calls", 0) + 1
        if data.model:
            self.usage["model"] = data.model
