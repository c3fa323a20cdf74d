"""Histories in the shapes that the CLI writes (1.0.102); `test_provider_with_cli` holds them against a real one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aerodrome._util.surrogates import replace_lone_surrogates
from aerodrome.statestore.history import cut_unanswered, events_after, messages, rest_of_turn, tail


@dataclass
class Writer:
    """Writes an `events.jsonl` as the CLI does."""

    lines: list[str] = field(default_factory=list)

    def add(self, event_type: str, data: dict[str, Any], **head: Any) -> str:
        number = len(self.lines)
        event = {
            "type": event_type,
            "data": data,
            "id": f"e{number}",
            "timestamp": f"2026-11-23T04:30:{number % 60:02d}.008Z",
            "parentId": f"e{number - 1}" if number else None,
            **head,
        }
        # Like `JSON.stringify`: non-ASCII text as it is, lone surrogates as escapes.
        written = json.dumps(event, separators=(",", ":"), ensure_ascii=False)
        self.lines.append("".join(c if not "\ud800" <= c <= "\udfff" else f"\\u{ord(c):04x}" for c in written))
        return f"e{number}"

    def start(self) -> None:
        self.add("session.start", {"sessionId": "s-1", "version": 1, "copilotVersion": "1.0.102"})

    def ask(self, prompt: str, delivery: str = "idle", **head: Any) -> None:
        data = {"content": prompt, "transformedContent": f"<current_datetime/>\n\n{prompt}", "delivery": delivery}
        self.add("user.message", {**data, "messageId": f"m{len(self.lines)}", "turnId": "0"}, **head)
        self.add("assistant.turn_start", {"turnId": "0"}, **head)

    def call_tool(self, text: str = "", **head: Any) -> None:
        request = {"toolCallId": "c1", "name": "ask_user", "arguments": {"question": "which?"}, "type": "function"}
        data = {"messageId": f"a{len(self.lines)}", "content": text, "toolRequests": [request]}
        self.add("assistant.message", data, **head)
        self.add("tool.execution_start", {"toolCallId": "c1", "toolName": "ask_user"}, **head)
        self.add("tool.execution_complete", {"toolCallId": "c1", "success": True}, **head)
        self.add("assistant.turn_end", {"turnId": "0"}, **head)
        self.add("assistant.turn_start", {"turnId": "1"}, **head)

    def answer(self, text: str, **head: Any) -> None:
        self.add("session.usage_record", {"usage": {"model": "gpt-4.1"}}, **head)
        data = {"messageId": f"a{len(self.lines)}", "content": text, "toolRequests": []}
        self.add("assistant.message", data, **head)
        self.add("assistant.turn_end", {"turnId": "0"}, **head)

    def abort(self) -> None:
        self.add("abort", {"reason": "user_initiated"})
        self.add("assistant.turn_end", {"turnId": "0"})

    def fail(self) -> None:
        self.add("assistant.turn_end", {"turnId": "0"})
        self.add("session.error", {"errorType": "query", "message": "400 boom", "statusCode": 400})

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)


#: What prompts and answers may hold: line separators of every kind, quotes, escapes, half characters.
CONTENT = st.text(max_size=8) | st.sampled_from(
    ["\u2028", "\u2029", "\x85\x0b\x0c", "a\nb\r\nc", '"\\"', "\ud83d", "x\ude00y", "😀", "\\ud83d", "\0", "{}\n{}"]
)
ENDS = st.sampled_from(["answered", "aborted", "failed"])


@dataclass(frozen=True)
class Turn:
    prompt: str
    end: str
    answer: str
    tools: int
    steered: str | None
    sub_agent: bool

    def write(self, to: Writer) -> None:
        to.ask(self.prompt)
        for number in range(self.tools):
            to.call_tool(f"calling {number}" if number else "")
            if self.sub_agent:
                to.ask("go and look", agentId="agent-1")
                to.answer("I have looked", agentId="agent-1")
                to.add("session.error", {"message": "the agent's own"}, agentId="agent-1")
            if self.steered is not None:
                to.ask(self.steered, delivery="steering")
        if self.end == "answered":
            to.answer(self.answer)
        elif self.end == "aborted":
            to.abort()
        elif self.end == "failed":
            to.fail()


def turns(ends: st.SearchStrategy[str]) -> st.SearchStrategy[Turn]:
    return st.builds(
        Turn,
        prompt=CONTENT,
        end=ends,
        answer=CONTENT.filter(bool),
        tools=st.integers(0, 2),
        steered=st.none() | CONTENT,
        sub_agent=st.booleans(),
    )


def history(*all_turns: Turn) -> str:
    writer = Writer()
    writer.start()
    for turn in all_turns:
        turn.write(writer)
    return writer.text()


PAST = st.lists(turns(ENDS), max_size=4)
PLAIN = Turn("hello", "answered", "hi", tools=0, steered=None, sub_agent=False)


def asked(text: str) -> list[str]:
    return [message.content for message in messages(text) if message.role == "user"]


# --- cutting ---


@given(past=PAST)
def test_a_history_whose_turns_have_ended_is_not_touched(past: list[Turn]) -> None:
    text = history(*past)
    assert cut_unanswered(text) == text
    assert not tail(text).unanswered


@given(past=PAST, last=turns(st.just("lost")))
def test_a_turn_that_was_lost_is_cut_off_whole(past: list[Turn], last: Turn) -> None:
    before = history(*past)
    text = history(*past, last)
    assert text.startswith(before)
    assert tail(text).unanswered
    assert tail(text).offset == len(before)
    assert cut_unanswered(text) == before


@given(
    past=PAST, last=turns(ENDS | st.just("lost")), torn=st.integers(0, 200), junk=st.sampled_from(["", "\0\0\0", "{"])
)
def test_wherever_a_crash_has_torn_it_no_answer_is_lost_and_no_prompt_left_unanswered(
    past: list[Turn], last: Turn, torn: int, junk: str
) -> None:
    before = history(*past)
    whole = history(*past, last)
    text = whole[: max(len(before), len(whole) - torn)] + junk
    kept = cut_unanswered(text)
    assert text.startswith(kept)
    assert kept.startswith(before)
    assert not tail(kept).unanswered
    assert cut_unanswered(kept) == kept
    # Either the turn has gone, or what is stored of it is untouched.
    assert kept in (before, text)


@given(past=PAST)
def test_a_line_that_is_corrupt_is_passed_over(past: list[Turn]) -> None:
    text = history(PLAIN) + "\0\0\0\0\n{not json}\n\n" + history(*past)
    assert asked(text) == ["hello", *asked(history(*past))]
    assert cut_unanswered(text) == text


@pytest.mark.parametrize("text", ["", "\n", "\n\n\n", "\0", "{", "[]", "null\n7\n", '{"type":7}\n', '{"id":"x"}\n'])
def test_what_is_no_history_is_not_touched(text: str) -> None:
    assert cut_unanswered(text) == text
    assert messages(text) == []
    assert (tail(text).message_id, tail(text).answer) == (None, None)


@pytest.mark.parametrize("content", ["half \ud83d a character", "\ude00", "\ud83d\ud83d"])
@pytest.mark.parametrize("side", ["prompt", "answer"])
def test_half_a_character_hides_neither_a_prompt_nor_its_answer(content: str, side: str) -> None:
    """A prompt that is not seen would be sent twice, a turn whose answer is not seen would be cut off."""
    writer = Writer()
    writer.start()
    before = writer.text()
    writer.ask(content if side == "prompt" else "hello")
    assert cut_unanswered(writer.text()) == before
    writer.answer(content if side == "answer" else "hi")
    assert cut_unanswered(writer.text()) == writer.text()
    said = {message.role: message.content for message in messages(writer.text())}
    assert said["user" if side == "prompt" else "assistant"] == replace_lone_surrogates(content)


def test_what_a_sub_agent_says_is_no_part_of_the_turn() -> None:
    writer = Writer()
    writer.start()
    before = writer.text()
    writer.ask("look into it")
    writer.call_tool()
    writer.ask("go and look", agentId="agent-1")
    writer.answer("I have looked", agentId="agent-1")
    writer.add("abort", {"reason": "user_initiated"}, agentId="agent-1")
    assert asked(writer.text()) == ["look into it"]
    assert cut_unanswered(writer.text()) == before


def test_a_prompt_that_steers_goes_with_the_turn_it_steers() -> None:
    writer = Writer()
    writer.start()
    before = writer.text()
    writer.ask("first")
    writer.call_tool()
    writer.ask("no, rather this", delivery="steering")
    assert cut_unanswered(writer.text()) == before
    writer.answer("done")
    assert cut_unanswered(writer.text()) == writer.text()
    # One that came too late to steer is a turn of its own.
    after = writer.text()
    writer.ask("and that", delivery="steering")
    assert cut_unanswered(writer.text()) == after


def test_an_answer_without_words_is_an_answer() -> None:
    writer = Writer()
    writer.ask("say nothing")
    writer.answer("")
    assert cut_unanswered(writer.text()) == writer.text()
    assert tail(writer.text()).answer == {"id": "a3", "content": ""}


@pytest.mark.parametrize("missing", [{"messageId": None}, {"content": None}, {"toolRequests": None}, {"odd": [1, {}]}])
def test_an_answer_of_an_unusual_shape_is_an_answer(missing: dict[str, Any]) -> None:
    writer = Writer()
    writer.ask("hello")
    writer.add("assistant.message", {"messageId": "a1", "content": "hi", "toolRequests": [], **missing})
    end = tail(writer.text())
    assert end.answer == {
        "id": "e2" if "messageId" in missing else "a1",
        "content": "" if "content" in missing else "hi",
    }
    assert not end.unanswered


def test_a_long_history_with_a_huge_prompt() -> None:
    writer = Writer()
    writer.start()
    for number in range(2000):
        Turn(f"prompt {number}", "answered", "answer", 1, None, sub_agent=False).write(writer)
    before = writer.text()
    writer.ask("x😀" * 2_000_000)
    assert cut_unanswered(writer.text()) == before
    assert len(asked(before)) == 2000


# --- the tail ---


def test_the_tail_names_the_last_prompt_and_its_answer() -> None:
    writer = Writer()
    writer.start()
    assert tail(writer.text()).message_id is None
    writer.ask("one")
    assert (tail(writer.text()).message_id, tail(writer.text()).answer) == ("m1", None)
    writer.call_tool("let me see")
    assert tail(writer.text()).answer is None
    writer.answer("two")
    assert tail(writer.text()).answer == {"id": "a9", "content": "two"}
    assert not tail(writer.text()).ended
    writer.ask("three")
    assert (tail(writer.text()).answer, tail(writer.text()).ended) == (None, False)
    writer.abort()
    assert (tail(writer.text()).answer, tail(writer.text()).ended) == (None, True)


# --- messages ---


def test_messages_are_what_was_said() -> None:
    writer = Writer()
    writer.start()
    writer.add("system.message", {"content": "You are the GitHub Copilot CLI"})
    writer.ask("which?\u2028")
    writer.call_tool()
    writer.call_tool("one moment")
    writer.answer("this")
    found = messages(writer.text())
    assert [(message.role, message.content) for message in found] == [
        ("user", "which?\u2028"),
        ("assistant", "one moment"),
        ("assistant", "this"),
    ]
    assert [message.id for message in found] == ["m2", "a9", "a15"]
    assert found[0].created_at == 1795408202.008


@pytest.mark.parametrize("timestamp", ["", "yesterday", "2026-13-45T00:00:00Z"])
def test_a_message_without_a_time_is_a_message(timestamp: str) -> None:
    writer = Writer()
    writer.add("user.message", {"content": "hi", "messageId": "m1"}, timestamp=timestamp)
    assert [(message.id, message.created_at) for message in messages(writer.text())] == [("m1", 0.0)]


# --- events ---


@given(past=PAST, place=st.integers(0, 200))
@example(past=[PLAIN], place=0)
def test_events_behind_one_are_all_that_follow_with_their_bytes(past: list[Turn], place: int) -> None:
    text = history(*past)
    lines = text[:-1].split("\n")
    place %= len(lines)
    found = events_after(text, f"e{place}")
    assert found is not None
    assert [event.id for event in found] == [f"e{number}" for number in range(place + 1, len(lines))]
    for event, line in zip(found, lines[place + 1 :], strict=True):
        assert json.loads(event.raw) == json.loads(replace_escapes(line))
        assert event.type == json.loads(line)["type"]
        if replace_escapes(line) == line:
            assert event.raw == line.encode()


def replace_escapes(line: str) -> str:
    value = replace_all(json.loads(line))
    return line if value == json.loads(line) else json.dumps(value)


def replace_all(value: Any) -> Any:
    if isinstance(value, str):
        return replace_lone_surrogates(value)
    if isinstance(value, dict):
        return {name: replace_all(item) for name, item in value.items()}
    if isinstance(value, list):
        return [replace_all(item) for item in value]
    return value


@pytest.mark.parametrize("event_id", ["", "unknown", "e99"])
def test_an_event_that_is_not_stored(event_id: str) -> None:
    text = history(PLAIN) + '{"type":"odd"}\n'
    assert events_after(text, event_id) is None


def test_behind_the_last_event_there_is_nothing() -> None:
    assert events_after(history(PLAIN), "e5") == []


def test_the_rest_of_a_turn_ends_where_the_next_begins() -> None:
    writer = Writer()
    writer.start()
    writer.ask("before")  # e1
    writer.answer("done")
    writer.ask("which?")  # e6, as m6
    writer.call_tool()
    writer.ask("no, rather this", delivery="steering")
    writer.ask("go and look", agentId="agent-1")
    writer.answer("I have looked", agentId="agent-1")
    writer.answer("done")
    end = len(writer.lines)
    text = writer.text()
    writer.ask("behind")
    writer.answer("done")

    def rest(message_id: str | None, after: str | None) -> list[str] | None:
        found = rest_of_turn(writer.text(), message_id=message_id, after=after)
        return None if found is None else [event.id for event in found]

    def ids(start: int, stop: int) -> list[str]:
        return [f"e{number}" for number in range(start, stop)]

    assert rest("m6", None) == ids(6, end)
    assert rest("m6", "e8") == ids(9, end)
    assert rest("m6", f"e{end - 1}") == []
    assert rest("m1", "") == ids(0, 6)
    # Of one that no runtime has taken it is only known what came behind the cursor.
    assert rest(None, "e8") == ids(9, end)
    assert rest(None, None) == rest("unknown", None) == []
    assert rest("m6", "unknown") is None
    assert rest_of_turn(text, message_id="m6", after=None) == rest_of_turn(writer.text(), message_id="m6", after=None)
