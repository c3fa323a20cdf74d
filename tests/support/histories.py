"""The shape of a stored history: one line, or a fork."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

#: Places by which events that come at the same time may be swapped.
_SWAPPED = 2


@dataclass(frozen=True, slots=True)
class Stored:
    id: str
    parent: str | None
    type: str
    text: str


class Shape:
    """Of one `events.jsonl`."""

    def __init__(self, text: str) -> None:
        self.events = [_stored(json.loads(line)) for line in text.splitlines() if line.strip()]

    @property
    def forks(self) -> list[list[Stored]]:
        """Events that follow the same one: in a line each is followed by at most one."""
        children = Counter(event.parent for event in self.events)
        return [[e for e in self.events if e.parent == parent] for parent, count in children.items() if count > 1]

    @property
    def breaks(self) -> list[Stored]:
        """Events that do not follow one that stands beside them. (Two that come at the same time, such as those of a
        tool's end, the CLI may write in the other order.)"""
        at: dict[str | None, int] = {event.id: number for number, event in enumerate(self.events)}
        at[None] = -1
        return [
            event
            for number, event in enumerate(self.events)
            if event.parent not in at or abs(at[event.parent] + 1 - number) > _SWAPPED
        ]

    def past(self, prompt: str) -> list[str]:
        """The prompts that this one builds on, the first of them first, with itself."""
        by_id: dict[str | None, Stored] = {event.id: event for event in self.events}
        (event,) = [event for event in self.events if event.text == prompt]
        found: list[str] = []
        at: Stored | None = event
        while at is not None:
            if at.type == "user.message":
                found.insert(0, at.text)
            at = by_id.get(at.parent)
        return found

    @property
    def prompts(self) -> list[str]:
        return [event.text for event in self.events if event.type == "user.message"]

    @property
    def answers(self) -> list[str]:
        return [event.text for event in self.events if event.type == "assistant.message"]

    @property
    def exchanges(self) -> list[tuple[str, str]]:
        """Each prompt and the last that was said before the next one; nothing, if nothing was."""
        found: list[tuple[str, str]] = []
        for event in self.events:
            if event.type == "user.message":
                found.append((event.text, ""))
            elif event.type == "assistant.message" and event.text and found:
                found[-1] = (found[-1][0], event.text)
        return found

    def __str__(self) -> str:
        """One event a line, by its number in the file and that of the one it follows."""
        numbers = {event.id: number for number, event in enumerate(self.events)}
        forked = {event.id for fork in self.forks for event in fork}
        lines = []
        for number, event in enumerate(self.events):
            parent = "-" if event.parent is None else str(numbers.get(event.parent, "?"))
            mark = "  <-- fork" if event.id in forked else ""
            lines.append(f"{number:4} after {parent:>3}  {event.type:24} {event.text[:50]}{mark}".rstrip())
        return "\n".join(lines)


def _stored(event: dict[str, Any]) -> Stored:
    content = event.get("data", {}).get("content")
    spoken = event["type"] in ("user.message", "assistant.message") and isinstance(content, str)
    return Stored(event["id"], event.get("parentId"), event["type"], str(content) if spoken else "")
