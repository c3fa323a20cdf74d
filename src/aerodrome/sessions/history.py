"""A session's history for people: the stored messages, with what the ledger knows of them."""

from __future__ import annotations

from collections.abc import Sequence

from aerodrome.errors import Invalid
from aerodrome.model import TurnRow
from aerodrome.sessions.api import Message, MessagePage
from aerodrome.statestore.history import messages


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
