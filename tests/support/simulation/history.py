"""What the world knows of a session's history, and what must hold of it.

The rules are about what stands in the files, not about how the store keeps them: a store that does not do what it
should is caught as a node is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from support.simulation.world import Violation, World


def record(record_id: str, parent: str | None, kind: str) -> str:
    """One line of a history, as the CLI writes it."""
    data = {"content": record_id, "messageId": record_id}
    return json.dumps({"type": kind, "id": record_id, "parentId": parent, "data": data}) + "\n"


def chain(text: str) -> list[tuple[str, str | None]]:
    """The records of a history: id and parent."""
    lines = (json.loads(line) for line in text.splitlines())
    return [(line["id"], line["parentId"]) for line in lines]


@dataclass(slots=True)
class _Line:
    records: list[str] = field(default_factory=list)
    epoch: int = 0
    #: Who wrote last.
    writer: str = ""


class Histories:
    """Sees every change that the durable store makes, in its order."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lines: dict[str, _Line] = {}
        self._deleted: set[str] = set()
        #: Records of turns that a caller was told of as completed.
        self.acknowledged: dict[str, list[str]] = {}
        #: When the last of those turns began.
        self.used_at: dict[str, float] = {}

    def _line(self, session: str) -> _Line:
        return self._lines.setdefault(session, _Line())

    def appended(self, session: str, epoch: int, writer: str, text: str) -> None:
        line = self._line(session)
        self._wrote(session, line, epoch, writer)
        for record_id, parent in chain(text):
            self._world.say(f"{writer} writes {record_id} behind {parent} in {session}, epoch {epoch}")
            if record_id in line.records:
                raise Violation(f"{session}: {record_id} stands in the history twice")
            last = line.records[-1] if line.records else None
            if parent != last:
                raise Violation(f"{session}: the history has forked: {record_id} follows {parent}, and so does {last}")
            line.records.append(record_id)

    def rewritten(self, session: str, epoch: int, writer: str, text: str) -> None:
        line = self._line(session)
        self._wrote(session, line, epoch, writer)
        kept = [record_id for record_id, _ in chain(text)]
        self._world.say(f"{writer} cuts {session} back to {len(kept)} of {len(line.records)} records, epoch {epoch}")
        if kept != line.records[: len(kept)]:
            raise Violation(f"{session}: the history was rewritten")
        for lost in line.records[len(kept) :]:
            if lost in self.acknowledged.get(session, ()):
                raise Violation(f"{session}: {lost} was acknowledged, and is cut off")
        line.records = kept

    def deleted(self, session: str) -> None:
        """Whatever is written from here on belongs to another session of the same name."""
        if (line := self._lines.pop(session, None)) is not None:
            self._deleted.update(line.records)
        self.acknowledged.pop(session, None)
        self.used_at.pop(session, None)

    def _wrote(self, session: str, line: _Line, epoch: int, writer: str) -> None:
        if epoch < line.epoch:
            raise Violation(f"{session}: {writer} writes in epoch {epoch}, after {line.writer} did in {line.epoch}")
        if epoch == line.epoch and writer != line.writer:
            raise Violation(f"{session}: {writer} and {line.writer} both write in epoch {epoch}")
        line.epoch, line.writer = epoch, writer

    def acknowledge(self, session: str, *records: str, used_at: float) -> None:
        self._world.say(f"{records} in {session} acknowledged")
        for record_id in records:
            if record_id in self._deleted:
                return  # in between, with the whole session
            if record_id not in self._line(session).records:
                raise Violation(f"{session}: {record_id} was acknowledged, and is not there")
        self.acknowledged.setdefault(session, []).extend(records)
        self.used_at[session] = max(used_at, self.used_at.get(session, 0.0))

    def check(self, session: str, text: str) -> None:
        """At the end, from the file itself."""
        found = chain(text)
        parents = [None, *(record_id for record_id, _ in found)]
        if [parent for _, parent in found] != parents[:-1]:
            raise Violation(f"{session}: the history is not one line: {found}")
        for record_id in self.acknowledged.get(session, ()):
            count = sum(1 for known, _ in found if known == record_id)
            if count != 1:
                raise Violation(f"{session}: {record_id} was acknowledged, and stands {count} times in the history")
