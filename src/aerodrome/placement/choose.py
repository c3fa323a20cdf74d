"""Which of several runtimes gets the next session: three strategies over what the caller knows of the runtimes.

A strategy is given the candidates that may be used at all: whoever asks has left out what is unhealthy, draining or
ejected (`placement.outliers`). What is full is passed over here. None of them looks at a clock or draws a number.

- `least_loaded`: where the most room is left, in proportion to capacity and weight.
- `round_robin`: one after the other, heavier ones more often.
- `sticky`: the same runtime for the same affinity (a session's owner) as long as it is there. Rendezvous hashing: each
  runtime has a score for each affinity, the highest wins, and a runtime that is added to n takes its share of 1/(n+1)
  from the others and moves nobody between them (trap 9). No runtime gets more than `BOUND` times its fair share of the
  load; who does not fit goes to the runtime with the next score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

from aerodrome.model import PlacementStrategy

#: How much more than its fair share of the sessions a runtime may have under `sticky`.
BOUND = 1.25
#: Runtimes that `round_robin` remembers beside those it was just asked about.
_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Candidate:
    id: str
    #: Sessions it has, or is about to get.
    load: int
    #: Sessions it may have.
    capacity: int
    #: How much it should get beside the others.
    weight: float = 1.0

    @property
    def has_room(self) -> bool:
        return self.load < self.capacity and self.weight > 0


class Placement(Protocol):
    def choose(self, candidates: Sequence[Candidate], affinity: str | None = None) -> str | None:
        """The id of one that has room; ``None`` when none has.

        Args:
            affinity: What should come to the same one again.
        """
        ...


def placement(strategy: PlacementStrategy) -> Placement:
    """A fresh chooser of this strategy."""
    kinds: dict[PlacementStrategy, type[Placement]] = {
        PlacementStrategy.LEAST_LOADED: LeastLoaded,
        PlacementStrategy.ROUND_ROBIN: RoundRobin,
        PlacementStrategy.STICKY: Sticky,
    }
    return kinds[strategy]()


class LeastLoaded:
    def choose(self, candidates: Sequence[Candidate], affinity: str | None = None) -> str | None:
        room = [candidate for candidate in candidates if candidate.has_room]
        return min(room, key=_fullness).id if room else None


class RoundRobin:
    """Stride scheduling: each choice costs a runtime `1 / weight`, and the one that has paid least is next."""

    def __init__(self) -> None:
        self._paid: dict[str, float] = {}

    def choose(self, candidates: Sequence[Candidate], affinity: str | None = None) -> str | None:
        room = [candidate for candidate in candidates if candidate.has_room]
        if not room:
            return None
        # A newcomer, or one that was away, begins where the others are: it must not get all there is until it is even.
        known = [self._paid[c.id] for c in room if c.id in self._paid]
        least = min(known, default=0.0)
        paid = {c.id: max(self._paid.get(c.id, least), least) for c in room}
        chosen = min(room, key=lambda c: (paid[c.id], c.id))
        self._paid |= paid
        self._paid[chosen.id] += 1 / chosen.weight
        if len(self._paid) > len(candidates) + _REMEMBERED:
            self._paid = paid
        return chosen.id


class Sticky:
    def choose(self, candidates: Sequence[Candidate], affinity: str | None = None) -> str | None:
        room = [candidate for candidate in candidates if candidate.has_room]
        if affinity is None or not room:
            return LeastLoaded().choose(room)
        total = sum(candidate.load for candidate in candidates) + 1
        weights = sum(candidate.weight for candidate in candidates)
        ranked = sorted(room, key=lambda c: rendezvous_score(affinity, c), reverse=True)
        for candidate in ranked:
            if candidate.load < math.ceil(BOUND * total * candidate.weight / weights):
                return candidate.id
        return ranked[0].id  # those within their bound are full


def rendezvous_score(affinity: str, candidate: Candidate) -> float:
    """Weighted rendezvous hashing: the highest score is this candidate's with a probability in proportion to its
    weight, and depends on nothing but the two names and the weight."""
    digest = blake2b(f"{affinity}\0{candidate.id}".encode(errors="surrogatepass"), digest_size=8).digest()
    # Strictly between 0 and 1: 53 bits are what a float holds.
    uniform = ((int.from_bytes(digest, "big") >> 11) + 0.5) / (1 << 53)
    return -candidate.weight / math.log(uniform)


def _fullness(candidate: Candidate) -> tuple[float, str]:
    return candidate.load / (candidate.capacity * candidate.weight), candidate.id
