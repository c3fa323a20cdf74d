"""What the scripted model answers: a pure function of the messages in the request.

The last user message is the script. Text without directives is answered by what the history says
(`aerodrome.demo.memory`) or by an echo. Directives stand in double square brackets anywhere in the prompt and
combine:

=============================== ==========================================================================
``[[say: text]]``               answer exactly this
``[[recall]]``                  answer what earlier user messages asked to remember
``[[turns]]``                   answer a JSON list of the user prompts in the request, this one included
``[[tokens: 300]]``             cut or fill the answer to so many tokens (a token is a word)
``[[delay: 2s]]``               wait before the first byte (``150ms``, ``2s``, ``1m``, or seconds)
``[[rate: 20/s]]``              stream so many tokens a second
``[[gate: name]]``              hold the whole answer until the gate opens
``[[gate-stream: name]]``       send the first half of the answer, hold the rest until the gate opens
``[[tool: name {"a": 1}]]``     call a tool; several in one step are called in one message
``[[fail: 429 retry-after=1]]`` answer this HTTP status
``[[cut]]``, ``[[cut: 3]]``     drop the connection halfway, or after so many tokens (0: before the header)
``[[hang]]``                    never answer
``[[garbage]]``                 answer something that is not JSON
``[[then]]``                    what follows is for the next request of the same turn, after the tool results
=============================== ==========================================================================

The steps that ``[[then]]`` separates are counted by the assistant messages after the last user message, so that
the server itself remembers nothing. A request past the last step gets ``tool said: ...``. A known directive with
a wrong argument is refused (`ScriptError`); double brackets around anything else are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aerodrome._util.durations import parse_duration
from aerodrome.demo import memory

#: Shape of one entry of `messages` in a chat completion request.
Message = dict[str, Any]

#: Longest part of a prompt or a tool result that an answer quotes, in characters.
QUOTE = 500
#: Most tokens of an answer: a prompt shall not be able to exhaust the memory.
MAX_TOKENS = 1_000_000

# What the CLI puts before and after the user's words; it cuts its own reminders off in the same way.
_DATE = re.compile(r"<current_datetime>[^<]*</current_datetime>\n*")
_REMINDER = re.compile(r"<(?:system_)?reminder>")
_OPENING = re.compile(
    r"\[\[(say|recall|turns|tokens|delay|rate|gate-stream|gate|tool|fail|cut|hang|garbage|then)"
    r"(?::[ \t]*|(?=\]\]))"
)
_RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/s)?")
_FAILURE = re.compile(r"([45]\d\d)(?: retry-after=(\d+))?")
_TOOL = re.compile(r"([\w.:-]+)\s*")


class ScriptError(ValueError):
    """A directive has an argument that it cannot have."""


@dataclass(frozen=True, slots=True)
class Failure:
    status: int
    #: Value of the `Retry-After` header, in seconds.
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    #: The arguments as JSON text, as the protocol wants them.
    arguments: str


@dataclass(frozen=True, slots=True)
class Step:
    """How one request of a turn is answered. ``None`` means: not said in the prompt."""

    say: str | None = None
    recall: bool = False
    turns: bool = False
    tokens: int | None = None
    #: Seconds.
    delay: float | None = None
    #: Tokens a second.
    rate: float | None = None
    gate: str | None = None
    gate_stream: str | None = None
    fail: Failure | None = None
    cut: bool = False
    #: Tokens before the cut; ``None``: half of them.
    cut_after: int | None = None
    hang: bool = False
    garbage: bool = False
    #: Name and arguments of each tool to call.
    tools: Sequence[tuple[str, dict[str, Any]]] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer (`text`, `calls`) and how (`step`)."""

    step: Step
    #: ``None`` when the answer consists of tool calls only.
    text: str | None
    calls: tuple[ToolCall, ...] = ()

    def pieces(self, tokens: int | None) -> list[str]:
        """The text as tokens, cut or filled to `tokens` of them if that is given."""
        if self.text is None:
            return []
        pieces = re.findall(r"\s*\S+(?:\s+\Z)?|\s+", self.text)
        if tokens is None:
            return pieces
        return pieces[:tokens] + [f" w{number}" for number in range(len(pieces) + 1, tokens + 1)]


def text_of(message: Message) -> str:
    """The text of a message without what the CLI adds to it; attachments follow the prompt, a line each."""
    content = message.get("content")
    parts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else [content]
    return "\n".join(_bare(part) for part in parts if isinstance(part, str))


def _bare(text: str) -> str:
    date = _DATE.match(text)
    reminder = _REMINDER.search(text)
    if date is None and reminder is None:
        return text
    bare = text[date.end() if date else 0 : reminder.start() if reminder else None]
    return bare.rstrip() if reminder else bare


def prompts_of(messages: Sequence[Message]) -> list[str]:
    """The texts of the user messages, oldest first."""
    return [text_of(message) for message in messages if message.get("role") == "user"]


def read(messages: Sequence[Message]) -> Reply:
    """The reply to a request with these messages.

    Raises:
        ScriptError: A directive of the last user message has a wrong argument.
    """
    prompts = prompts_of(messages)
    prompt = prompts[-1] if prompts else ""
    since = _since_last_prompt(messages)
    answered = sum(message.get("role") == "assistant" for message in since)
    steps, text = parse(prompt)
    step = steps[answered] if answered < len(steps) else Step()
    calls = tuple(
        # The id is unique in the history because the history only grows.
        ToolCall(f"call_{len(messages)}_{index}", name, json.dumps(arguments))
        for index, (name, arguments) in enumerate(step.tools)
    )
    if step.say is not None:
        return Reply(step, step.say, calls)
    if step.turns:
        return Reply(step, json.dumps(prompts, ensure_ascii=False), calls)
    if step.recall:
        return Reply(step, memory.recall(prompts[:-1]), calls)
    if calls:
        return Reply(step, None, calls)
    if answered:
        return Reply(step, f"tool said: {_tool_results(since)[:QUOTE]}")
    return Reply(step, memory.converse(prompts[:-1], text) or f"echo: {text[:QUOTE]}")


def parse(prompt: str) -> tuple[list[Step], str]:
    """The steps of a prompt (at least one) and its text without the directives."""
    steps: list[dict[str, Any]] = [{}]
    text: list[str] = []
    end = 0
    for start, name, argument, after in _directives(prompt):
        text.append(prompt[end:start])
        end = after
        if name == "then":
            steps.append({})
        elif name == "tool":
            steps[-1].setdefault("tools", []).append(argument)
        else:
            steps[-1].update(_fields(name, argument))
    text.append(prompt[end:])
    return [Step(**fields) for fields in steps], "".join(text).strip()


def _directives(prompt: str) -> Iterator[tuple[int, str, Any, int]]:
    """Each directive as (start, name, argument, end). One pass: a prompt may be megabytes of brackets."""
    end = 0
    while opening := _OPENING.search(prompt, end):
        name, argument_at = opening[1], opening.end()
        if name == "tool":
            argument: Any
            argument, close = _tool(prompt, argument_at)
        else:
            close = prompt.find("]]", argument_at)
            if close < 0:
                return
            argument = prompt[argument_at:close].strip()
        end = close + 2
        yield opening.start(), name, argument, end


def _tool(prompt: str, start: int) -> tuple[tuple[str, dict[str, Any]], int]:
    """A tool's name and arguments. They are decoded, not searched for, as JSON may contain ``]]`` itself."""
    name = _TOOL.match(prompt, start)
    if name is None:
        raise ScriptError("[[tool: ...]] needs the name of a tool")
    end = name.end()
    arguments: Any = {}
    if not prompt.startswith("]]", end):
        try:
            arguments, end = json.JSONDecoder().raw_decode(prompt, end)
        except (ValueError, RecursionError) as error:
            raise ScriptError(f"[[tool: {name[1]} ...]] needs arguments in JSON") from error
    close = prompt.find("]]", end)
    if not isinstance(arguments, dict) or close < 0 or prompt[end:close].strip():
        raise ScriptError(f"[[tool: {name[1]} ...]] takes one JSON object")
    return (name[1], arguments), close


def _fields(name: str, argument: str) -> dict[str, Any]:
    try:
        return _READERS[name](argument)
    except (AttributeError, TypeError, ValueError):
        # A pattern that did not match, or a number that is none.
        raise ScriptError(f"[[{name}]] cannot have the argument {argument[:80]!r}") from None


def _flag(name: str) -> Callable[[str], dict[str, Any]]:
    def read_flag(argument: str) -> dict[str, Any]:
        if argument:
            raise ValueError(argument)
        return {name: True}

    return read_flag


def _named(name: str) -> Callable[[str], dict[str, Any]]:
    def read_name(argument: str) -> dict[str, Any]:
        if not argument:
            raise ValueError(argument)
        return {name: argument}

    return read_name


def _rate(argument: str) -> dict[str, Any]:
    (number,) = _matched(_RATE, argument)
    return {"rate": _positive(float(number))}


def _failure(argument: str) -> dict[str, Any]:
    status, retry_after = _matched(_FAILURE, argument)
    return {"fail": Failure(int(status), int(retry_after) if retry_after else None)}


def _cut(argument: str) -> dict[str, Any]:
    return {"cut": True, "cut_after": _count(argument) if argument else None}


def _count(argument: str) -> int:
    if not (argument.isascii() and argument.isdigit()) or len(argument) > 7 or int(argument) > MAX_TOKENS:
        raise ValueError(argument)
    return int(argument)


def _positive(number: float) -> float:
    if number <= 0:
        raise ValueError(number)
    return number


def _matched(pattern: re.Pattern[str], argument: str) -> tuple[Any, ...]:
    match = pattern.fullmatch(argument)
    if match is None:
        raise ValueError(argument)
    return match.groups()


_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "say": lambda argument: {"say": argument},
    "recall": _flag("recall"),
    "turns": _flag("turns"),
    "tokens": lambda argument: {"tokens": _count(argument)},
    "delay": lambda argument: {"delay": parse_duration(argument)},
    "rate": _rate,
    "gate": _named("gate"),
    "gate-stream": _named("gate_stream"),
    "fail": _failure,
    "cut": _cut,
    "hang": _flag("hang"),
    "garbage": _flag("garbage"),
}


def _since_last_prompt(messages: Sequence[Message]) -> Sequence[Message]:
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].get("role") == "user":
            return messages[index + 1 :]
    return messages


def _tool_results(since: Sequence[Message]) -> str:
    """What the tools answered to the last assistant message."""
    results: list[str] = []
    for message in reversed(since):
        if message.get("role") == "assistant":
            break
        if message.get("role") == "tool":
            results.append(text_of(message))
    return " | ".join(reversed(results))
