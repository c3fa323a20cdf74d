"""How many runtimes a pool keeps warm: the claims that it has seen and the machine as it is now, held against
`runtime.demand`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from aerodrome.runtime.demand import RUNTIME_MEMORY, Demand, Headroom, pause, warm_target
from aerodrome.runtime.headroom import read_headroom


@dataclass(frozen=True, slots=True)
class StandbyOptions:
    #: Warm runtimes at least, and at most when they are much in demand.
    least: int = 1
    most: int = 0
    #: Bytes that warm runtimes leave free on the machine; 0: they do not look.
    reserve: int = 0


class Standby:
    def __init__(self, options: StandbyOptions, read: Callable[[], Headroom] = read_headroom) -> None:
        self._options = options
        self._read = read
        self._headroom = Headroom()
        self._demand = Demand()

    def claimed(self) -> None:
        """Somebody has needed a runtime."""
        self._demand.claimed(time.monotonic())

    def started(self, seconds: float) -> None:
        """A runtime has been started in this time."""
        self._demand.started(seconds)

    def look(self) -> Headroom:
        """See what the machine has left."""
        self._headroom = self._read()
        return self._headroom

    def target(self, warm: int, each: int | None) -> int:
        """How many there shall be.

        Args:
            warm: How many there are.
            each: Bytes that one takes, if that was measured.
        """
        return warm_target(
            self._demand.expected(time.monotonic()),
            self._headroom,
            least=self._options.least,
            most=self._options.most,
            warm=warm,
            each=each or RUNTIME_MEMORY,
            reserve=self._options.reserve,
        )

    @property
    def short(self) -> bool:
        """The machine has so little memory left that what is warm is to go."""
        available = self._headroom.available
        return available is not None and available < self._options.reserve // 2

    def pause(self, delay: float) -> float:
        """Seconds to wait before a start that nobody waits for."""
        return pause(delay, self._headroom)
