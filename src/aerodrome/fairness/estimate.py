"""When somebody who was refused may come again: from how fast places have been given back lately. Pure.

The estimate is what the line says: so many are before you, and so many places come back in a second. It has bounds,
because nobody plans further ahead than two minutes by the last half, and a part that is drawn, so that those who were
refused together do not come back together.
"""

from __future__ import annotations

import math

#: Seconds.
LEAST = 1.0
MOST = 120.0
#: At most so much of the estimate is added by chance.
JITTER = 0.25
#: Seconds over which a rate is measured; what was earlier counts less and less.
WINDOW = 30.0


class Rate:
    """Events a second, lately.

    Args:
        now: Monotonic seconds, here and below.
    """

    def __init__(self, now: float) -> None:
        self._since = now
        self._at = now
        self._count = 0.0

    def note(self, now: float) -> None:
        """One has happened."""
        self._count = self._decayed(now) + 1.0
        self._at = now

    def per_second(self, now: float) -> float:
        """Greater than 0: when none has been seen for long, as if one had in all the time that counts."""
        observed = WINDOW * -math.expm1(-(now - self._since) / WINDOW)
        return max(self._decayed(now), 1.0) / max(observed, 1e-3)

    def _decayed(self, now: float) -> float:
        return self._count * math.exp(-(now - self._at) / WINDOW)


def retry_after(ahead: int, per_second: float, chance: float) -> float:
    """Seconds to wait: from 1 to 150.

    Args:
        ahead: How many places somebody else gets before.
        per_second: How many places are given back.
        chance: Drawn evenly from 0 to 1.
    """
    return round(min(max((ahead + 1) / per_second, LEAST), MOST) * (1.0 + JITTER * chance), 1)
