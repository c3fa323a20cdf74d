"""A session's history: as messages for people, and as the place where a lost turn's outcome may stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aerodrome.errors import Invalid
from aerodrome.model import TurnRow
from aerodrome.sessions.api import Message, MessagePage
from aerodrome.statestore.history import cut_unanswered, messages


def history_page(text: str, turns: Sequence[TurnRow], *, cursor: str | None, limit: int) -> MessagePage:
    """`limit` messages behind the one with id `cursor`, the oldest first.

    A user message belongs to the turn whose message id it has; an answer to the turn of the message before it.

    Raises:
        Invalid: There is no message with id `cursor`.
    """
    by_message = {turn.message_id: turn for turn in turns if turn.message_id}
    found: list[Message] = []
    turn: TurnRow | None = None
    for message in messages(text):
        if message.role == "user":
            turn = by_message.get(message.id)
        found.append(
            Message(
                id=message.id,
                role=message.role,
                content=message.content,
                created_at=message.created_at,
                turn_id=turn.id if turn else None,
                author=turn.author if turn and message.role == "user" else None,
            )
        )
    start = 0
    if cursor is not None:
        start = next((i + 1 for i, message in enumerate(found) if message.id == cursor), -1)
        if start < 0:
            raise Invalid("unknown cursor; use the `next` of an earlier page")
    page = found[start : start + limit]
    more = start + limit < len(found)
    return MessagePage(page, page[-1].id if more and page else None)


@dataclass(frozen=True, slots=True)
class Standing:
    """A prompt that stands in the history for good: to send it again would be to have it there twice."""

    #: ``None`` when an abort or an error has ended its turn.
    answer: dict[str, Any] | None


def standing(text: str, message_id: str | None) -> Standing | None:
    """What a lost runtime has left of a prompt in the history.

    Returns:
        ``None`` when it does not stand in it, or will not after the repair that comes before a resume.
    """
    found = False
    answer: dict[str, Any] | None = None
    for message in messages(cut_unanswered(text)):
        if message.role == "user":
            if found and answer is not None:
                break  # the next turn; while there is no answer, it is a prompt that steers this one
            found = found or (message_id is not None and message.id == message_id)
        elif found:
            answer = {"id": message.id, "content": message.content}
    return Standing(answer) if found else None
