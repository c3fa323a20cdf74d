"""Whether an `events.jsonl` is whole, and how it is mended. Pure functions over its text.

A process that dies while it appends leaves a torn last line; a machine that dies may leave NUL bytes where data had not
reached the disk; a disk or a second writer may damage a line in the middle. What is no whole event says nothing any
more, so it is dropped, and every whole event is kept. A last line without its line break is kept, too, and gets one:
the next append would be glued to it and lost with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from aerodrome._util.surrogates import replace_lone_escapes, replace_lone_surrogates


class DamageKind(StrEnum):
    #: The last line is not whole.
    TORN = "torn"
    #: NUL bytes where an event should be.
    NUL = "nul"
    #: A line in the middle that is no event.
    CORRUPT = "corrupt"
    #: The last event is whole, and its line has no end.
    UNTERMINATED = "unterminated"


@dataclass(frozen=True, slots=True)
class Damage:
    kind: DamageKind
    #: Number of the line, from 1.
    line: int
    #: Characters that a repair drops.
    dropped: int


@dataclass(frozen=True, slots=True)
class Examination:
    #: Whole events.
    events: int
    damages: tuple[Damage, ...]
    #: The text without its damages.
    mended: str


class _Event(msgspec.Struct):
    type: str


_decode = msgspec.json.Decoder(_Event).decode


def examine(text: str) -> Examination:
    """Look at every line."""
    lines = text.split("\n")
    last = len(lines) - 1
    kept: list[str] = []
    damages: list[Damage] = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        if _is_event(line):
            kept.append(line)
            if number == last:
                damages.append(Damage(DamageKind.UNTERMINATED, number + 1, 0))
            continue
        bare = line.strip("\0")
        if bare != line and (not bare or _is_event(bare)):
            damages.append(Damage(DamageKind.NUL, number + 1, len(line) - len(bare)))
            if bare:
                kept.append(bare)
            continue
        kind = DamageKind.NUL if "\0" in line else DamageKind.TORN if number == last else DamageKind.CORRUPT
        damages.append(Damage(kind, number + 1, len(line)))
    return Examination(len(kept), tuple(damages), "".join(f"{line}\n" for line in kept))


def _is_event(line: str) -> bool:
    raw = replace_lone_surrogates(line).encode()
    for candidate in (raw, replace_lone_escapes(raw)):
        try:
            _decode(candidate)
        except (msgspec.DecodeError, RecursionError):
            continue
        # A text that holds what was no UTF-8 is not what the runtime wrote.
        return not any("\udc80" <= character <= "\udcff" for character in line) if not line.isascii() else True
    return False
