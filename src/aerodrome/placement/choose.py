"""Which runtime gets a session."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    id: str
    #: Sessions it has, or is about to get.
    load: int
    #: Sessions it may have.
    capacity: int


def least_loaded(candidates: Iterable[Candidate]) -> str | None:
    """The one with the most room left, the same one for the same candidates; ``None`` when none has any."""
    room = [candidate for candidate in candidates if candidate.load < candidate.capacity]
    return min(room, key=lambda c: (c.load / c.capacity, c.id)).id if room else None
