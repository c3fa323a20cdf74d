"""How many runtimes to keep warm. Pure: claims, starts and readings of the machine in, a number out.

A warm runtime is worth having if it is claimed before another could be started in its place. So the pool is as large as
the number of claims that are to be expected in the time that a start takes: by their rate of late (`_RATE_MEMORY`),
with room for chance, and as many as once came together not long ago (`_BURST_HALF_LIFE`), because they tend to come
together again: at nine in the morning, or whenever a workshop begins.

What stands by must not cost what is at work. When the machine is short of memory no more are started, and those that
are there are let go.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

#: Seconds over which the rate of claims is averaged.
_RATE_MEMORY = 60.0
#: Seconds after which half of a burst is forgotten.
_BURST_HALF_LIFE = 600.0
#: Probability with which those who come during one start find a warm runtime.
_CONFIDENCE = 0.95
#: Share of a new measurement in the average start time.
_NEW = 0.3
#: What a runtime is taken to need before one was measured, in bytes (docs/facts.md, "Memory and wear").
RUNTIME_MEMORY = 150 << 20


class Demand:
    """The claims of late, and how long a start takes. Times in seconds, on one clock that does not go back.

    Args:
        start_time: Until a start has been measured.
    """

    def __init__(self, start_time: float = 2.0) -> None:
        self._start_time = start_time
        self._rate = 0.0
        self._burst = 0.0
        self._at = 0.0
        #: Claims within one start time.
        self._together: deque[float] = deque()

    @property
    def start_time(self) -> float:
        return self._start_time

    def claimed(self, now: float) -> None:
        """Somebody has needed a runtime."""
        self._forget(now)
        self._rate += 1.0 / _RATE_MEMORY
        self._together.append(now)
        while self._together[0] < now - self._start_time:
            self._together.popleft()
        self._burst = max(self._burst, float(len(self._together)))

    def started(self, seconds: float) -> None:
        """A runtime has been started in this time."""
        self._start_time += _NEW * (seconds - self._start_time)

    def expected(self, now: float) -> int:
        """Claims to be ready for until one more could be started."""
        self._forget(now)
        return max(_at_most(self._rate * self._start_time), math.floor(self._burst))

    def _forget(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._rate *= math.exp(-passed / _RATE_MEMORY)
        self._burst *= 0.5 ** (passed / _BURST_HALF_LIFE)


def _at_most(mean: float) -> int:
    """The smallest number that so many events of a Poisson process do not pass, but for chance."""
    number, probability = 0, math.exp(-mean)
    total = probability
    while total < _CONFIDENCE and number < 1000:
        number += 1
        probability *= mean / number
        total += probability
    return number


@dataclass(frozen=True, slots=True)
class Headroom:
    """A reading of the machine."""

    #: Bytes that can be used without anybody's harm; ``None``: not known.
    available: int | None = None
    #: Part of the processors that was busy of late, from 0 to 1.
    busy: float = 0.0


def warm_target(expected: int, headroom: Headroom, *, least: int, most: int, warm: int, each: int, reserve: int) -> int:
    """How many warm runtimes there shall be.

    Args:
        least, most: Bounds, as set. A machine that is short of memory goes below the first.
        warm: How many there are.
        each: Bytes that one takes.
        reserve: Bytes that are to stay available. Below half of it what is warm goes; 0: do not look.
    """
    target = min(max(expected, least), max(least, most))
    if not reserve or headroom.available is None:
        return target
    if headroom.available < reserve // 2:
        return min(target, warm - 1) if warm else 0
    return min(target, warm + max(0, (headroom.available - reserve) // max(each, 1)))


def pause(delay: float, headroom: Headroom) -> float:
    """Seconds to wait before a start that nobody waits for: longer when those at work need the processors."""
    return delay * (1.0 + 7.0 * max(0.0, headroom.busy - 0.5) / 0.5)
