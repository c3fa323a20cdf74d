"""When a runtime is worn out: measurements in, a reason or none out. Pure: no process, no clock, no chance.

Some limits are *counted*: turns and age. They are moved by a share of their own for each runtime (`spread`), so that
runtimes that were started together do not go together. The others are *measured*: memory, descriptors, child processes,
and the drift of the runtime's own latency. A measurement that comes and goes with one turn is no wear, so it has to
stand for `SUSTAINED` looks in a row.

What is measured need not be wear: sessions that are loaded again need their memory again. A runtime that replaces one
which went for the same reason has to be twice as old as that one had to be before it goes for it, too; so what a fresh
process does not mend is tried less and less often, and a node does not spend its time on replacing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

#: Looks in a row at which something measured has to be over its limit.
SUSTAINED = 3
#: Seconds that a runtime has before anything measured counts, and the longest that this becomes by doubling.
YOUTH = 120.0
OLDEST_YOUTH = 6 * 3600.0
#: Part of its descriptor limit that a process may have open, whatever the setting says: past it, turns fail.
DESCRIPTOR_SHARE = 0.8
#: Answers that the first and the latest latency are the median of.
SAMPLES = 50
#: First answers that are passed over: code is being compiled.
_WARMING_UP = 10
#: Seconds by which an answer has to be slower than in the runtime's youth, besides being so many times slower.
SLOWER = 0.05


class Reason(StrEnum):
    """Why a runtime is recycled, the most pressing first."""

    MEMORY = "memory"
    DESCRIPTORS = "descriptors"
    CHILDREN = "children"
    DRIFT = "drift"
    TURNS = "turns"
    AGE = "age"

    @property
    def is_counted(self) -> bool:
        return self in (Reason.TURNS, Reason.AGE)


@dataclass(frozen=True, slots=True)
class WearLimits:
    """0 is no limit. `age` in seconds, `memory` in bytes, `drift` as a multiple of the runtime's first latency."""

    turns: int = 0
    age: float = 0.0
    memory: int = 0
    descriptors: int = 0
    children: int = 0
    drift: float = 0.0


@dataclass(frozen=True, slots=True)
class Wear:
    """What is known of a runtime at one look. ``None``: could not be measured."""

    turns: int
    #: Seconds since its start.
    age: float
    #: Proportional set size of the process, in bytes.
    memory: int | None = None
    descriptors: int | None = None
    #: Descriptors that the process may have.
    descriptor_limit: int | None = None
    children: int | None = None
    #: Seconds in which it answers, in its youth and now; ``None`` before there is enough to compare.
    latency: tuple[float, float] | None = None


def over(wear: Wear, limits: WearLimits, *, spread: float = 1.0) -> Reason | None:
    """The most pressing reason for which this look alone is over a limit.

    Args:
        spread: This runtime's share of the counted limits, up to 1.
    """
    descriptors = limits.descriptors
    if descriptors and wear.descriptor_limit:
        descriptors = min(descriptors, int(wear.descriptor_limit * DESCRIPTOR_SHARE))
    checks = {
        Reason.MEMORY: _reached(wear.memory, limits.memory),
        Reason.DESCRIPTORS: _reached(wear.descriptors, descriptors),
        Reason.CHILDREN: _reached(wear.children, limits.children),
        Reason.DRIFT: _drifted(wear.latency, limits.drift),
        Reason.TURNS: _reached(wear.turns, limits.turns * spread),
        Reason.AGE: _reached(wear.age, limits.age * spread),
    }
    return next((reason for reason, worn in checks.items() if worn), None)


def _reached(value: float | None, limit: float) -> bool:
    return bool(limit) and value is not None and value >= limit


def _drifted(latency: tuple[float, float] | None, limit: float) -> bool:
    if not limit or latency is None:
        return False
    young, now = latency
    return now >= young * limit and now >= young + SLOWER


class WearWatch:
    """The looks at one runtime, in order.

    Args:
        spread: See `over`.
    """

    def __init__(self, limits: WearLimits, *, spread: float = 1.0) -> None:
        self._limits = limits
        self._spread = spread
        #: Looks in a row at which each measured limit was reached.
        self._standing: Counter[Reason] = Counter()

    def look(self, wear: Wear, predecessors: Sequence[str] = ()) -> Reason | None:
        """Why the runtime is to be recycled now, if it is.

        Args:
            predecessors: Why those that it is the latest replacement of were recycled, the first first.
        """
        worn: list[Reason] = []
        for reason in Reason:
            reached = over(wear, _only(self._limits, reason), spread=self._spread) is reason
            if reason in (Reason.TURNS, Reason.AGE):
                if reached:
                    worn.append(reason)
                continue
            self._standing[reason] = self._standing[reason] + 1 if reached else 0
            if self._standing[reason] >= SUSTAINED and wear.age >= youth(reason, predecessors):
                worn.append(reason)
        return worn[0] if worn else None


def _only(limits: WearLimits, reason: Reason) -> WearLimits:
    return WearLimits(**{reason.value: getattr(limits, reason.value)})


def youth(reason: Reason, predecessors: Sequence[str]) -> float:
    """Seconds that a runtime has to be old to be recycled for something measured."""
    in_a_row = 0
    for earlier in reversed(predecessors):
        if earlier != reason:
            break
        in_a_row += 1
    return min(OLDEST_YOUTH, YOUTH * 2.0 ** min(in_a_row, 30))


class Latency:
    """How long a runtime takes to answer: in its youth, and now."""

    def __init__(self) -> None:
        self._passed_over = 0
        self._first: list[float] = []
        self._latest: deque[float] = deque(maxlen=SAMPLES)

    def add(self, seconds: float) -> None:
        if self._passed_over < _WARMING_UP:
            self._passed_over += 1
        elif len(self._first) < SAMPLES:
            self._first.append(seconds)
        else:
            self._latest.append(seconds)

    @property
    def compared(self) -> tuple[float, float] | None:
        """The medians, in seconds, when there are enough answers for both."""
        if len(self._latest) < SAMPLES:
            return None
        return median(self._first), median(self._latest)
