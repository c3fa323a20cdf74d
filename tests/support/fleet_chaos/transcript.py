"""What users said, and what they were told became of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

#: Seconds after which a turn, or a recovery, is worth a line in the log.
SLOW = 8.0


class Outcome(StrEnum):
    #: The turn has ended and its caller was told so: it stands in the history, once.
    ACKNOWLEDGED = "acknowledged"
    #: Reported as interrupted or failed: it stands there at most once. So do the following, and how many of them do is
    #: told (`audit.besides`): of an interrupted one everybody expects that it may.
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    #: Its caller could not learn it (an SDK client that lost its connection): at most once.
    UNKNOWN = "unknown"
    #: Refused before it was taken, and not tried again under the same name: at most once.
    REFUSED = "refused"


@dataclass(slots=True, eq=False)
class Prompt:
    session: str
    user: str
    text: str
    #: What the answer says, if there is one.
    answer: str
    #: Monotonic seconds of the first try and of the outcome.
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    outcome: Outcome | None = None
    detail: str = ""
    #: The answer that its user was given; ``None``: none, because the turn was aborted, or has another outcome.
    told: str | None = None
    #: Ids of the events by which its user knows the outcome, with their types.
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.answer} of {self.user} in {self.session}"


@dataclass(frozen=True, slots=True)
class NodeKill:
    at: float
    node: str
    #: Sessions that it had loaded.
    sessions: tuple[str, ...]


class Transcript:
    def __init__(self) -> None:
        self.started = time.monotonic()
        self.prompts: list[Prompt] = []
        #: Everything that is only counted: faults, retries, refusals.
        self.counts: Counter[str] = Counter()
        self.kills: list[NodeKill] = []
        #: Beginning and end of each fault, with its kind.
        self.faults: list[tuple[float, float, str]] = []
        #: Prompts that stand in their history although nobody was told that they would, or might.
        self.unexpected: list[str] = []
        self.log: list[str] = []

    def say(self, text: str) -> None:
        """One line of the run's own log."""
        self.log.append(f"{time.monotonic() - self.started:7.2f}  {text}")

    def end(self, prompt: Prompt, outcome: Outcome, detail: str = "") -> None:
        prompt.outcome, prompt.detail, prompt.ended = outcome, detail, time.monotonic()
        taken = prompt.ended - prompt.began
        if outcome is not Outcome.ACKNOWLEDGED or taken > SLOW:
            self.say(f"{prompt}: {outcome} after {taken:.1f} s {detail}".rstrip())

    def stands(self, prompt: Prompt) -> None:
        """It was not acknowledged, and is in the history all the same."""
        self.counts[f"in the history: {prompt.outcome}"] += 1
        if prompt.outcome is not Outcome.INTERRUPTED:
            self.unexpected.append(f"{prompt}, {prompt.outcome}: {prompt.detail}".rstrip(": "))

    def of(self, session: str) -> list[Prompt]:
        return [prompt for prompt in self.prompts if prompt.session == session]

    @property
    def turns(self) -> int:
        """With an outcome."""
        return sum(prompt.outcome is not None for prompt in self.prompts)

    def recoveries(self) -> Iterator[tuple[float, bool]]:
        """Seconds that somebody waited between each kill of a node and the next served turn, for each session that it
        ran, and whether no other fault came between. What users let pass between their prompts does not count."""
        for kill in self.kills:
            for session in kill.sessions:
                after = [
                    prompt
                    for prompt in self.of(session)
                    if prompt.outcome is Outcome.ACKNOWLEDGED and (prompt.ended or 0.0) > kill.at
                ]
                if not after:
                    continue
                first = min(after, key=lambda prompt: prompt.ended or 0.0)
                ended = first.ended or 0.0
                waited = [
                    (max(kill.at, prompt.began), min(prompt.ended or ended, ended))
                    for prompt in self.of(session)
                    if prompt.began < ended and (prompt.ended or ended) > kill.at
                ]
                alone = all(
                    end <= kill.at or begin >= ended or (kind == "node killed" and begin <= kill.at)
                    for begin, end, kind in self.faults
                )
                taken = _covered(waited)
                if taken > SLOW:
                    self.say(f"{session} of {kill.node} took {taken:.1f} s, until {first}")
                yield taken, alone


def _covered(spans: list[tuple[float, float]]) -> float:
    """How long at least one of the spans lasts."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
