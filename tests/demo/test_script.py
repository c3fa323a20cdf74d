"""The scripted model's answers, as a function of the messages alone."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from aerodrome.demo.script import Failure, Message, Reply, ScriptError, Step, parse, prompts_of, read


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str | None = None) -> Message:
    return {"role": "assistant", "content": text}


def tool(text: str) -> Message:
    return {"role": "tool", "tool_call_id": "c", "content": text}


def answer(*messages: Message) -> str | None:
    return read(messages).text


def chat(*prompts: str) -> str | None:
    """The answer to the last prompt of a conversation in which the assistant always said the same."""
    messages = [message for prompt in prompts for message in (user(prompt), assistant("ok"))]
    return answer({"role": "system", "content": "You are helpful. My name is Copilot."}, *messages[:-1])


def test_a_plain_prompt_is_echoed() -> None:
    assert chat("good morning") == "echo: good morning"


def test_what_the_cli_adds_to_a_prompt_is_not_part_of_it() -> None:
    sent = (
        "<current_datetime>2026-01-01T00:00:00.000+00:00</current_datetime>\n\n  two\nlines \n\n"
        "<system_reminder>no files</system_reminder>"
    )
    assert prompts_of([user(sent)]) == ["  two\nlines"]
    assert answer(user(sent)) == "echo: two\nlines"


def test_attachments_follow_the_prompt() -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "<a/>"}]
    assert answer({"role": "user", "content": parts}) == "echo: see\n<a/>"


@pytest.mark.parametrize(
    ("prompt", "step"),
    [
        ("[[say: one [two] three]]", Step(say="one [two] three")),
        ("[[say: ]]", Step(say="")),
        ("[[recall]]", Step(recall=True)),
        ("[[turns]]", Step(turns=True)),
        ("[[tokens: 300]]", Step(tokens=300)),
        ("[[delay: 2s]]", Step(delay=2.0)),
        ("[[delay: 150ms]]", Step(delay=0.15)),
        ("[[delay:1.5 m]]", Step(delay=90.0)),
        ("[[delay: 3]]", Step(delay=3.0)),
        ("[[rate: 20/s]]", Step(rate=20.0)),
        ("[[gate: a b]]", Step(gate="a b")),
        ("[[gate-stream: g-1]]", Step(gate_stream="g-1")),
        ("[[fail: 500]]", Step(fail=Failure(500))),
        ("[[fail: 429 retry-after=1]]", Step(fail=Failure(429, 1))),
        ("[[cut]]", Step(cut=True)),
        ("[[cut: 3]]", Step(cut=True, cut_after=3)),
        ("[[hang]]", Step(hang=True)),
        ("[[garbage]]", Step(garbage=True)),
        ("a [[delay: 1s]] b [[gate: x]] c [[rate: 5]]", Step(delay=1.0, gate="x", rate=5.0)),
    ],
)
def test_directives(prompt: str, step: Step) -> None:
    assert parse(prompt)[0] == [step]


@pytest.mark.parametrize(
    "prompt",
    [
        "[[delay: soon]]",
        "[[delay]]",
        "[[tokens: -1]]",
        "[[tokens: ²]]",
        "[[tokens: 1000001]]",
        "[[rate: 0/s]]",
        "[[gate]]",
        "[[fail: 200]]",
        "[[fail]]",
        "[[cut: some]]",
        "[[hang: 3s]]",
        "[[tool: ]]",
        "[[tool: ask {not json}]]",
        '[[tool: ask ["no object"]]]',
        '[[tool: ask {"a": 1} more]]',
        '[[tool: ask {"a": 1}',
    ],
)
def test_a_directive_with_a_wrong_argument_is_refused(prompt: str) -> None:
    with pytest.raises(ScriptError, match=r"\[\["):
        parse(prompt)


@pytest.mark.parametrize("prompt", ["if [[ -f x ]]; then", "[[1, 2], [3]]", "[[dealy: 2s]]", "[[say: no end", "]] [["])
def test_other_double_brackets_are_text(prompt: str) -> None:
    assert parse(prompt) == ([Step()], prompt)


def test_directives_are_not_part_of_the_echo() -> None:
    assert chat("well [[delay: 1s]]done[[rate: 3]]") == "echo: well done"


def test_turns_lists_every_prompt_of_the_request() -> None:
    assert json.loads(chat("one", "zwei ü", "[[turns]]") or "") == ["one", "zwei ü", "[[turns]]"]


def test_recall_quotes_what_earlier_prompts_told() -> None:
    assert (
        chat("remember: plum", "hello", "My colour is blue.", "[[recall]]") == "You told me: plum; your colour is blue"
    )
    assert chat("hello", "[[recall]] remember: plum") == "You told me nothing yet."


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (["My name is Ada"], "Nice to meet you, Ada."),
        (["My name is Ada", "What is my name?"], "Your name is Ada."),
        (["My name is Ada. What's my name?"], "Your name is Ada."),
        (["my name is Ada", "no, my name is Grace!", "Do you know what my name is?"], "Your name is Grace."),
        (["What is my name?"], "I don't know your name yet."),
        (["My favourite fruit is the plum", "what is my favourite fruit?"], "Your favourite fruit is the plum."),
        (["My favourite fruit is the plum"], "Noted: your favourite fruit is the plum."),
        (["Please remember the word plum."], "I will remember the word plum."),
        (["Please remember the word plum.", "hm", "Which word did I ask you to remember?"],
         "You asked me to remember the word plum."),
        (["What did I ask you to remember?"], "You asked me to remember nothing yet."),
        (["remember: milk", "remember eggs", "what should you remember?"], "You asked me to remember milk and eggs."),
        (["My name is Ada", "good morning"], "echo: good morning"),
    ],
)  # fmt: skip
def test_facts_come_from_the_history(prompts: list[str], expected: str) -> None:
    assert chat(*prompts) == expected


def test_tool_calls_and_their_results() -> None:
    prompt = user('[[tool: ask_user {"question": "a]]b?", "choices": [["x"]]}]] [[tool: now]]')
    reply = read([prompt])
    assert reply.text is None
    assert [(call.name, json.loads(call.arguments)) for call in reply.calls] == [
        ("ask_user", {"question": "a]]b?", "choices": [["x"]]}),
        ("now", {}),
    ]
    after = read([prompt, assistant(), tool("yes"), tool("noon")])
    assert after == Reply(Step(), "tool said: yes | noon")


def test_a_tool_call_may_come_with_text() -> None:
    reply = read([user("[[say: let me see]] [[tool: now]]")])
    assert (reply.text, len(reply.calls)) == ("let me see", 1)


def test_each_request_of_a_turn_has_its_step() -> None:
    prompt = user("[[tool: a]] [[then]] [[delay: 1s]] [[tool: b]] [[then]] [[gate: end]] [[say: done]]")
    history = [user("[[tool: z]]"), assistant(), tool("old"), assistant("tool said: old"), prompt]
    first = read(history)
    history += [assistant(), tool("1")]
    second = read(history)
    history += [assistant(), tool("2")]
    third = read(history)
    history += [assistant(), tool("3")]
    assert [call.name for call in first.calls + second.calls] == ["a", "b"]
    assert first.calls[0].id != second.calls[0].id
    assert second.step.delay == 1.0
    assert (third.text, third.step.gate) == ("done", "end")
    assert read(history).text == "tool said: 3"


def test_a_new_prompt_in_mid_turn_is_answered_itself() -> None:
    assert answer(user("[[tool: a]]"), assistant(), tool("1"), user("stop that")) == "echo: stop that"


@pytest.mark.parametrize("text", ["", " ", "one", " one  two\n", "\n one\n\n", "[[say: a  b ]]"])
def test_tokens_join_to_the_text(text: str) -> None:
    reply = Reply(Step(), text)
    assert "".join(reply.pieces(None)) == text


def test_tokens_cut_and_fill() -> None:
    reply = Reply(Step(), "one two three")
    assert reply.pieces(2) == ["one", " two"]
    assert reply.pieces(5) == ["one", " two", " three", " w4", " w5"]
    assert reply.pieces(0) == []
    assert Reply(Step(), None).pieces(5) == []


def test_requests_without_a_prompt_are_answered() -> None:
    assert answer() == "echo: "
    assert answer({"role": "user"}) == "echo: "
    assert answer({"role": "system", "content": "x"}) == "echo: "


@pytest.mark.parametrize(
    "unit", ["[[say: ", "[[tool: a ", "]]", "<current_datetime>", " ", "my a is ", "\ud800", "[[hang]]"]
)
def test_prompts_of_megabytes_are_read_in_one_pass(unit: str) -> None:
    prompt = unit * (3_000_000 // len(unit))
    start = time.process_time()
    with contextlib.suppress(ScriptError):
        read([user(prompt)])
    # About 20 times what it takes; anything quadratic takes hours.
    assert time.process_time() - start < 10
