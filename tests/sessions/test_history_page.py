"""A session's history as pages of messages, and what it says of a prompt whose runtime was lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.errors import Invalid
from aerodrome.model import SessionKey, TurnRow, TurnStatus
from aerodrome.sessions.history import Standing, history_page, standing

KEY = SessionKey("acme", "s1")


def line(kind: str, **data: Any) -> str:
    return json.dumps({"type": kind, "id": f"e-{data}", "timestamp": "2026-01-01T00:00:00Z", "data": data}) + "\n"


def user(message_id: str) -> str:
    return line("user.message", messageId=message_id, content=f"prompt {message_id}")


def assistant(message_id: str, content: str = "answer", *, tools: bool = False) -> str:
    return line("assistant.message", messageId=message_id, content=content, toolRequests=[{}] if tools else None)


def turn(turn_id: str, message_id: str | None) -> TurnRow:
    return TurnRow(KEY, turn_id, "alice", TurnStatus.COMPLETED, "?", message_id=message_id)


def test_messages_have_their_turns_and_authors() -> None:
    text = user("u1") + assistant("a1") + user("native") + assistant("a2")
    page = history_page(text, [turn("t0", None), turn("t1", "u1")], cursor=None, limit=10)
    assert [(m.id, m.role, m.turn_id, m.author) for m in page.messages] == [
        ("u1", "user", "t1", "alice"),
        ("a1", "assistant", "t1", None),
        ("native", "user", None, None),
        ("a2", "assistant", None, None),
    ]
    assert page.next is None


@given(count=st.integers(0, 12), limit=st.integers(1, 5))
def test_pages_are_the_whole_in_pieces(count: int, limit: int) -> None:
    text = "".join(user(f"u{number}") for number in range(count))
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = history_page(text, [], cursor=cursor, limit=limit)
        assert len(page.messages) <= limit
        found += [message.id for message in page.messages]
        if (cursor := page.next) is None:
            break
        assert cursor == found[-1]
    assert found == [f"u{number}" for number in range(count)]


def test_a_cursor_that_nobody_gave_out_is_refused() -> None:
    with pytest.raises(Invalid):
        history_page(user("u1"), [], cursor="u9", limit=10)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        (user("other") + assistant("a1"), None),
        (user("u1"), None),  # will be cut off
        (user("u1") + assistant("a1", "", tools=True), None),
        (user("u1") + assistant("a1"), Standing({"id": "a1", "content": "answer"})),
        (
            user("u1") + assistant("a1", "wait", tools=True) + assistant("a2", "done"),
            Standing({"id": "a2", "content": "done"}),
        ),
        # The next prompt's turn was lost; this one's stands.
        (user("u1") + assistant("a1") + user("u2"), Standing({"id": "a1", "content": "answer"})),
        (user("u1") + assistant("a1") + user("u2") + assistant("a2"), Standing({"id": "a1", "content": "answer"})),
        # Steered: both prompts have one answer, or none.
        (user("u1") + user("u2") + assistant("a2", "both"), Standing({"id": "a2", "content": "both"})),
        (user("u1") + user("u2"), None),
        (user("u1") + line("abort"), Standing(None)),
        (user("u1") + line("session.error", message="away"), Standing(None)),
    ],
)
def test_how_a_prompt_stands_after_a_loss(text: str, found: Standing | None) -> None:
    assert standing(text, "u1") == found


def test_a_prompt_without_an_id_stands_nowhere() -> None:
    assert standing(user("u1") + assistant("a1"), None) is None
