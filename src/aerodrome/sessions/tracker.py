"""Reads what became of one prompt out of a session's events. Pure: events in, the prompt's outcome out.

A prompt is known by the id of its user message, which is the answer to `session.send`; events that come before that
answer are kept until it is there. A prompt's turn has *begun* when its `user.message` is seen, and has *ended* with the
next `session.idle`: the runtime emits it after the turn's events are stored, so an ended turn is a durable one
(docs/facts.md, "Durability"). An idle before the own message belongs to somebody else's turn.

One idle may end several prompts. A prompt that steers is taken up inside the running turn, and then both have the same
answer; or right behind it, and then each has its own. The runtime throws away what it has not taken up when the
turn is aborted.
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

#: The only events whose content matters here.
_READ = frozenset({"user.message", "assistant.message", "assistant.usage", "session.error", "session.idle", "abort"})
_TOOL_STARTED = "tool.execution_start"
#: The events from which a turn's outcome is read. Of the hundreds in a streamed turn these are a handful.
TELLING = _READ | {_TOOL_STARTED}


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
        #: The last message of the assistant asks for no tool: what comes next is no part of this turn.
        self._answered = False
        #: The next prompt's turn has begun before the session was idle, which will be said once for both.
        self.succeeded = False

    def sending(self) -> None:
        """The prompt is about to be handed to the runtime: what was told until now, such as that something was aborted,
        is about others."""
        self._early.clear()

    def sent_as(self, message_id: str) -> None:
        """The runtime has taken the prompt and gave it this id."""
        self.message_id = message_id
        early, self._early = self._early, []
        for event in early:
            self.feed(event)

    def feed(self, event: SessionEvent) -> None:
        """Take in the session's next event; afterwards look at `ended`."""
        if event.type not in TELLING:
            return
        if self.message_id is None:
            self._early.append(event)
        elif not self.ended:
            self._read(event)

    def _read(self, event: SessionEvent) -> None:
        if event.type == _TOOL_STARTED:
            self.tool_ran = self.tool_ran or (self.begun and not self.succeeded)
            return
        try:
            decoded = _decode(event.raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            decoded = _Event(data=_Data())  # another shape than we know: the event's type alone must do
        data, of_agent = decoded.data, decoded.agentId is not None or decoded.data.agentId is not None
        if event.type == "session.idle":
            self._idle(data.aborted)
        elif event.type == "user.message":
            if data.messageId == self.message_id:
                self.begun = True
                self.aborted = False  # an abort before was of the turn that this prompt did not get into
            elif self.begun and self._answered and not of_agent:
                self.succeeded = True
        elif self.succeeded:
            return
        elif event.type == "abort":
            self.aborted = True
        elif self.begun:
            self._read_turn(event, data, of_agent)

    def _idle(self, aborted: bool) -> None:
        if self.begun:
            self.aborted = self.aborted or (aborted and not self.succeeded)
            self.ended = True
        elif self.aborted:
            self.ended = True  # thrown away before it was taken up

    def _read_turn(self, event: SessionEvent, data: _Data, of_agent: bool) -> None:
        if event.type == "assistant.usage":
            self._add_usage(data)  # a sub-agent's too: somebody pays for it
        elif of_agent:
            return
        elif event.type == "assistant.message":
            if data.content or data.toolRequests:
                self._answered = not data.toolRequests
            if data.content:
                self.answer = {"id": data.messageId or event.id, "content": data.content}
        else:
            self.error = data.message or data.errorType or "the runtime reported an error"

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
