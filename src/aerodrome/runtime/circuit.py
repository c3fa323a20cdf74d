"""Backoff between starts that fail, and a circuit that stops trying when they go on failing. Pure.

After a failed start the next one waits `first`, then twice as long, up to `longest`. After `threshold` failures in a
row the circuit is open: callers are told why at once instead of waiting for a start that will fail, and one start
is tried each time the wait is over. One success closes it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class StartCircuit:
    first: float = 0.5
    longest: float = 30.0
    threshold: int = 3
    failures: int = 0
    reason: str = ""
    _not_before: float = 0.0

    def succeeded(self) -> None:
        self.failures = 0
        self.reason = ""
        self._not_before = 0.0

    def failed(self, now: float, reason: str) -> None:
        wait = self._backoff()
        self.failures += 1
        self.reason = reason
        self._not_before = now + wait

    def trying(self, now: float) -> None:
        """A start is about to be tried: while the circuit is open, it is the only one until its backoff has passed."""
        if self.is_open:
            self._not_before = now + self._backoff()

    def wait(self, now: float) -> float:
        """Seconds until the next start may be tried; 0 when it may be tried now."""
        return max(0.0, self._not_before - now)

    @property
    def is_open(self) -> bool:
        return self.failures >= self.threshold

    def _backoff(self) -> float:
        # The exponent is bounded: 2.0**1024 overflows, which at 30 s a failure takes a night.
        return min(self.longest, self.first * 2.0 ** min(self.failures, 64))
