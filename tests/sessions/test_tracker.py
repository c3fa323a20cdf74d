"""What a prompt's tracker reads out of event sequences as the CLI sends them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.events import SessionEvent
from aerodrome.sessions.tracker import TurnTracker

_numbers = itertools.count()


def event(kind: str, *, agent: str | None = None, **data: Any) -> SessionEvent:
    envelope: dict[str, Any] = {
        "type": kind,
        "data": data,
        "id": f"e{next(_numbers)}",
        "timestamp": "2026-01-01T00:00:00Z",
    }
    if agent is not None:
        envelope["agentId"] = agent
    return SessionEvent(envelope["id"], kind, json.dumps(envelope).encode())


def asked(message_id: str, content: str = "?") -> SessionEvent:
    return event("user.message", messageId=message_id, content=content)


def said(content: str, message_id: str = "a1", *, tools: bool = False, agent: str | None = None) -> SessionEvent:
    requests = [{"name": "ask_user", "toolCallId": "t1"}] if tools else None
    return event("assistant.message", agent=agent, messageId=message_id, content=content, toolRequests=requests)


def used(tokens: int) -> SessionEvent:
    return event("assistant.usage", inputTokens=tokens, outputTokens=1, cacheReadTokens=0.0, model="gpt-4.1")


IDLE = event("session.idle")
ABORT = event("abort", reason="user initiated")
TOOL = event("tool.execution_start", toolName="ask_user")
TURN_START = event("assistant.turn_start")


def tracked(*events: SessionEvent, message_id: str = "m1", early: int = 0) -> TurnTracker:
    """A tracker after these events, of which the first `early` came before the answer to the send."""
    tracker = TurnTracker()
    for item in events[:early]:
        tracker.feed(item)
    tracker.sent_as(message_id)
    for item in events[early:]:
        tracker.feed(item)
    return tracker


PLAIN = (TURN_START, asked("m1"), used(10), said("hello"), IDLE)


@pytest.mark.parametrize("early", range(len(PLAIN) + 1))
def test_it_does_not_matter_when_the_answer_to_the_send_comes(early: int) -> None:
    tracker = tracked(*PLAIN, early=early)
    assert (tracker.begun, tracker.ended, tracker.aborted, tracker.tool_ran) == (True, True, False, False)
    assert tracker.answer == {"id": "a1", "content": "hello"}
    assert tracker.usage["input_tokens"] == 10


def test_before_the_answer_to_the_send_nothing_is_known() -> None:
    tracker = TurnTracker()
    for item in PLAIN:
        tracker.feed(item)
    assert not tracker.begun
    assert not tracker.ended


#: What other turns and their sub-agents say, without an end of ours.
FOREIGN = st.sampled_from(
    [
        asked("other"),
        said("not the answer", "a9", agent="helper"),
        event("session.error", agent="helper", message="of a sub-agent"),
        event("assistant.message_delta", deltaContent="x"),
        event("model.messages_snapshot", messages=[]),
        event("session.title_changed", title="t"),
        SessionEvent("bad", "assistant.message", b'{"type": "assistant.message", "data": 7}'),
        SessionEvent("worse", "assistant.usage", b"no JSON"),
    ]
)


@given(data=st.data())
def test_events_of_others_change_nothing(data: st.DataObject) -> None:
    """Any interleaving with events that are not the turn's, the send answered at any moment of it."""
    events: list[SessionEvent] = []
    for own in (asked("m1"), said("", tools=True), TOOL, used(3), said("hello", "a2"), used(4), IDLE):
        before_answer = own.type != "session.idle" and not any(item.type == "assistant.usage" for item in events)
        # A prompt that is taken up behind the answer is one of another turn, and is tested below.
        events += data.draw(st.lists(FOREIGN, max_size=2)) if before_answer else []
        events.append(own)
    tracker = tracked(*events, early=data.draw(st.integers(0, len(events))))
    assert (tracker.ended, tracker.aborted, tracker.error) == (True, False, None)
    assert tracker.answer == {"id": "a2", "content": "hello"}
    assert tracker.tool_ran
    assert tracker.usage["input_tokens"] == 7
    assert tracker.usage["model"] == "gpt-4.1"


@given(before=st.lists(st.sampled_from([IDLE, asked("other"), said("foreign"), TOOL, used(5)]), max_size=6))
def test_nothing_before_the_own_message_counts(before: list[SessionEvent]) -> None:
    tracker = tracked(*before)
    assert not tracker.ended
    assert not tracker.tool_ran
    for item in PLAIN:
        tracker.feed(item)
    assert tracker.ended
    assert tracker.answer == {"id": "a1", "content": "hello"}
    assert tracker.usage["model_calls"] == 1


def test_nothing_after_the_end_counts() -> None:
    tracker = tracked(*PLAIN, asked("m2"), TOOL, said("later", "a2"), used(100), ABORT, IDLE)
    assert tracker.answer == {"id": "a1", "content": "hello"}
    assert (tracker.tool_ran, tracker.aborted, tracker.usage["input_tokens"]) == (False, False, 10)


def test_usage_is_summed_over_all_calls_of_the_model() -> None:
    helper = event("assistant.usage", agent="helper", inputTokens=5, outputTokens=2, model="small")
    tracker = tracked(asked("m1"), used(10), helper, used(20), IDLE)
    assert tracker.usage == {
        "input_tokens": 35,
        "output_tokens": 4,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "model_calls": 3,
        "model": "gpt-4.1",
    }


def test_an_abort_is_told_by_its_event_or_by_the_idle() -> None:
    assert tracked(asked("m1"), ABORT, IDLE).aborted
    assert tracked(asked("m1"), event("session.idle", aborted=True)).aborted
    assert not tracked(asked("m1"), IDLE).aborted


def test_an_error_has_its_message_or_its_kind() -> None:
    assert tracked(asked("m1"), event("session.error", message="away", errorType="query"), IDLE).error == "away"
    assert tracked(asked("m1"), event("session.error", errorType="query"), IDLE).error == "query"
    assert tracked(asked("m1"), event("session.error"), IDLE).error == "the runtime reported an error"


def test_the_text_beside_a_tool_call_is_no_answer_once_there_is_one() -> None:
    tracker = tracked(asked("m1"), said("let me ask", "a1", tools=True), TOOL, said("done", "a2"), IDLE)
    assert tracker.answer == {"id": "a2", "content": "done"}


# --- prompts that steer ---


def test_a_prompt_taken_up_inside_the_turn_shares_its_answer() -> None:
    events = (asked("m1"), said("", tools=True), TOOL, asked("m2"), said("both", "a2"), IDLE)
    for message_id in ("m1", "m2"):
        tracker = tracked(*events, message_id=message_id)
        assert tracker.ended
        assert tracker.answer == {"id": "a2", "content": "both"}
    assert tracked(*events, message_id="m1").tool_ran
    assert not tracked(*events, message_id="m2").tool_ran


def test_a_prompt_taken_up_behind_the_answer_has_its_own() -> None:
    events = (asked("m1"), used(1), said("first", "a1"), asked("m2"), TOOL, used(2), said("second", "a2"), IDLE)
    first, second = tracked(*events, message_id="m1"), tracked(*events, message_id="m2")
    assert first.answer == {"id": "a1", "content": "first"}
    assert (first.usage["input_tokens"], first.tool_ran, first.ended) == (1, False, True)
    assert second.answer == {"id": "a2", "content": "second"}
    assert (second.usage["input_tokens"], second.tool_ran, second.ended) == (2, True, True)


def test_an_abort_or_error_of_the_turn_behind_is_not_of_the_first() -> None:
    aborted = (asked("m1"), said("first", "a1"), asked("m2"), ABORT, event("session.idle", aborted=True))
    assert not tracked(*aborted, message_id="m1").aborted
    assert tracked(*aborted, message_id="m2").aborted
    failed = (asked("m1"), said("first", "a1"), asked("m2"), event("session.error", message="away"), IDLE)
    assert tracked(*failed, message_id="m1").error is None
    assert tracked(*failed, message_id="m2").error == "away"


def test_a_prompt_that_an_abort_threw_away_ends_with_the_turn() -> None:
    tracker = tracked(asked("m1"), ABORT, IDLE, message_id="m2")
    assert (tracker.begun, tracker.ended, tracker.aborted) == (False, True, True)


def test_a_prompt_that_survived_the_abort_of_another_turn_is_not_aborted() -> None:
    tracker = tracked(asked("m1"), ABORT, asked("m2"), said("answer", "a2"), IDLE, message_id="m2")
    assert (tracker.ended, tracker.aborted) == (True, False)
    assert tracker.answer == {"id": "a2", "content": "answer"}


def test_an_end_that_is_nested_too_deeply_to_be_read_is_an_end_all_the_same() -> None:
    deep = b"[" * 2000 + b"]" * 2000
    idle = SessionEvent("e", "session.idle", b'{"type":"session.idle","data":{"made":%b}}' % deep)
    tracker = tracked(asked("m1"), said("hello"), idle)
    assert tracker.ended
    assert tracker.answer == {"id": "a1", "content": "hello"}
