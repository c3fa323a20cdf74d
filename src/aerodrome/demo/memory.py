"""What a conversation says about its user, read from the user messages of the request and nothing else.

The scripted model keeps no state: if it knows a name that was given three turns ago, the whole history was sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

# Only the start of a message is read: the rest of a prompt of some megabytes holds no conversation.
_READ = 2000
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_FACT = re.compile(r"\bmy ([a-z][a-z -]{0,40}?) is ([^\[\]]+)", re.IGNORECASE)
_NOTE = re.compile(r"\bremember\b:?\s+([^\[\]]+)", re.IGNORECASE)
_ASKS_NOTE = re.compile(r"\b(?:what|which)\b[^?]*\bremember\b", re.IGNORECASE)
_ASKS_FACT = re.compile(
    r"\b(?:what|what's|whats|who|who's|know|remember)\b[^?]*?\bmy ([a-z][a-z -]{0,40}?)(?: is)?\s*\?",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Facts:
    """What the user said: `known` from "my X is Y" (the latest counts), `notes` from "remember X", in order."""

    known: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def recall(prompts: Sequence[str]) -> str:
    """Everything these prompts told, in one sentence."""
    facts = _facts(prompts)
    told = facts.notes + [f"your {name} is {value}" for name, value in facts.known.items()]
    return f"You told me: {'; '.join(told)}" if told else "You told me nothing yet."


def converse(earlier: Sequence[str], prompt: str) -> str | None:
    """The natural answer to a question about, or a statement of, such a fact; ``None`` if `prompt` is neither."""
    facts = _facts([*earlier, prompt])
    for sentence in _sentences(prompt):
        if not sentence.endswith("?"):
            continue
        if asked := _ASKS_FACT.search(sentence):
            name = asked[1].lower()
            value = facts.known.get(name)
            return f"I don't know your {name} yet." if value is None else f"Your {name} is {value}."
        if _ASKS_NOTE.search(sentence):
            notes = " and ".join(facts.notes)
            return f"You asked me to remember {notes}." if notes else "You asked me to remember nothing yet."
    return _acknowledge(_facts([prompt]))


def _acknowledge(told: Facts) -> str | None:
    if "name" in told.known:
        return f"Nice to meet you, {told.known['name']}."
    if told.known:
        name, value = next(iter(told.known.items()))
        return f"Noted: your {name} is {value}."
    if told.notes:
        return f"I will remember {' and '.join(told.notes)}."
    return None


def _facts(prompts: Sequence[str]) -> Facts:
    facts = Facts()
    for prompt in prompts:
        for sentence in _sentences(prompt):
            if sentence.endswith("?"):
                continue
            if fact := _FACT.search(sentence):
                facts.known[fact[1].lower()] = _bare(fact[2])
            elif note := _NOTE.search(sentence):
                facts.notes.append(_bare(note[1]))
    return facts


def _sentences(prompt: str) -> list[str]:
    return [sentence for part in _SENTENCE_END.split(prompt[:_READ]) if (sentence := part.strip())]


def _bare(value: str) -> str:
    return value.strip().rstrip(".!,; ")
