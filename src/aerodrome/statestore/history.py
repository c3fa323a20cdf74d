"""Reading the CLI's `events.jsonl`: what was said, and where a crash has left it. Pure functions over its text.

One JSON object a line: `{type, data, id, timestamp, parentId}`, and `agentId` on what a sub-agent did, which is no
part of the conversation. A turn begins with `user.message`; it has been answered when an `assistant.message` without
tool requests follows, and it has been ended otherwise by `abort` or `session.error`. Lines that are no JSON (a torn
tail) are passed over, as the CLI does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from aerodrome._util.surrogates import replace_lone_escapes, replace_lone_surrogates
from aerodrome.events import SessionEvent


class _Line(msgspec.Struct):
    type: str
    id: str = ""
    timestamp: str = ""
    agentId: str | None = None  # noqa: N815 - the wire's name
    data: msgspec.Raw = msgspec.Raw(b"{}")


class _MessageData(msgspec.Struct):
    content: str | None = None
    messageId: str | None = None  # noqa: N815 - the wire's name
    toolRequests: list[msgspec.Raw] | None = None  # noqa: N815


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_message = msgspec.json.Decoder(_MessageData).decode


@dataclass(frozen=True, slots=True)
class HistoryMessage:
    #: The runtime's id of the message.
    id: str
    role: str
    content: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Tail:
    """How the last prompt in a history stands."""

    #: The runtime's id of the last user message; ``None`` when there is none.
    message_id: str | None
    #: Its answer, when it has been answered.
    answer: dict[str, Any] | None
    #: It was ended by an abort or an error that is in the history.
    ended: bool
    #: Offset of the line in which the last turn begins: that of its first user message.
    offset: int

    @property
    def unanswered(self) -> bool:
        """The runtime was lost in mid-turn: the prompt is in the history and nothing has come of it."""
        return self.message_id is not None and self.answer is None and not self.ended


def _lines(text: str) -> Iterator[tuple[int, bytes, _Line]]:
    """The lines that are events: where each begins, its bytes, what they say."""
    offset = 0
    for line in text.split("\n"):  # not `splitlines`: U+2028 may stand in a JSON string
        raw = replace_lone_surrogates(line).encode()
        if (parsed := _parse(raw)) is None:
            # A prompt may hold half a character; to pass its line over would be to forget that it was asked.
            raw = replace_lone_escapes(raw)
            parsed = _parse(raw)
        if parsed is not None:
            yield offset, raw, parsed
        offset += len(line) + 1


def _parse(raw: bytes) -> _Line | None:
    try:
        return _decode_line(raw)
    except (msgspec.DecodeError, RecursionError):
        return None


def _message(line: _Line) -> _MessageData:
    try:
        return _decode_message(line.data)
    except (msgspec.DecodeError, RecursionError):
        return _MessageData()


def _conversation(text: str) -> Iterator[tuple[int, _Line]]:
    return ((offset, line) for offset, _, line in _lines(text) if line.agentId is None)


def messages(text: str) -> list[HistoryMessage]:
    """What user and assistant said to each other, in order; tool calls and system messages left out."""
    result: list[HistoryMessage] = []
    for _, line in _conversation(text):
        if line.type not in ("user.message", "assistant.message"):
            continue
        data = _message(line)
        if line.type == "assistant.message" and not data.content:
            continue  # nothing but tool requests
        role = line.type.partition(".")[0]
        result.append(HistoryMessage(data.messageId or line.id, role, data.content or "", _unix(line.timestamp)))
    return result


def tail(text: str) -> Tail:
    """Where the last turn of a history stands."""
    message_id: str | None = None
    answer: dict[str, Any] | None = None
    ended = False
    start = 0
    for offset, line in _conversation(text):
        if line.type == "user.message":
            if message_id is None or answer is not None or ended:
                start = offset  # else this one steers the turn that is running: the two go together
            message_id, answer, ended = _message(line).messageId or line.id, None, False
        elif line.type == "assistant.message":
            data = _message(line)
            answer = None if data.toolRequests else {"id": data.messageId or line.id, "content": data.content or ""}
        elif line.type in ("abort", "session.error"):
            ended = True
    return Tail(message_id, answer, ended, start)


def cut_unanswered(text: str) -> str:
    """The history without a last prompt that was never answered, so that it does not stand in it twice after
    it has been sent again (docs/facts.md, "Durability"); unchanged when there is none."""
    end = tail(text)
    return text[: end.offset] if end.unanswered else text


def stored_events(text: str) -> list[SessionEvent]:
    """All events of a history, or of a piece of one that begins with a line."""
    return [SessionEvent(id=line.id, type=line.type, raw=raw) for _, raw, line in _lines(text)]


def events_after(text: str, event_id: str) -> list[SessionEvent] | None:
    """The stored events behind the one with this id; ``None`` when it is not among them."""
    found: list[SessionEvent] | None = None
    for _, raw, line in _lines(text):
        if found is not None:
            found.append(SessionEvent(id=line.id, type=line.type, raw=raw))
        elif line.id and line.id == event_id:
            found = []
    return found


def rest_of_turn(text: str, *, message_id: str | None, after: str | None) -> list[SessionEvent] | None:
    """The stored events of the turn whose prompt has this id, up to where the next turn begins.

    Args:
        after: Only those behind the event with this id; "" is the beginning of the history.

    Returns:
        ``None`` when `after` is not in the history (any more).
    """
    found: list[SessionEvent] | None = [] if after == "" else None
    begun, over = message_id is None, False
    for _, raw, line in _lines(text):
        talk = line.agentId is None
        if talk and line.type == "user.message":
            if begun and over and found is not None:
                break
            own = message_id is not None and (_message(line).messageId or line.id) == message_id
            begun, over = begun or own, False
            if own and after is None:
                found = []
        elif talk and line.type == "assistant.message":
            over = not _message(line).toolRequests
        elif talk and line.type in ("abort", "session.error"):
            over = True
        if found is not None:
            found.append(SessionEvent(id=line.id, type=line.type, raw=raw))
        if after and line.id == after:
            found = []
    return found if found is not None or after else []


def _unix(timestamp: str) -> float:
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return 0.0
