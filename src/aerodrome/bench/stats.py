"""The numbers made of measured times: medians, percentiles, and how far a ratio of medians can be trusted."""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable, Sequence
from statistics import median

#: Resamples of a bootstrap: enough for an interval that moves by a hundredth between seeds.
RESAMPLES = 1000


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values do not exceed, interpolated between neighbours.

    Raises:
        ValueError: There are no values, or `percent` is not in 0..100.
    """
    if not values:
        raise ValueError("no values")
    if not 0 <= percent <= 100:
        raise ValueError(f"not a percentage: {percent}")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below, above = math.floor(place), math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratio_interval(
    values: Sequence[float], base: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of `median(values) / median(base)`; the same values always give the same interval."""
    return _interval(operator.truediv, values, base, confidence, seed)


def difference_interval(
    values: Sequence[float], base: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The same of `median(values) - median(base)`."""
    return _interval(operator.sub, values, base, confidence, seed)


def _interval(
    combine: Callable[[float, float], float],
    values: Sequence[float],
    base: Sequence[float],
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    if not values or not base:
        raise ValueError("no values")
    chance = random.Random(seed)
    combined = [
        combine(median(chance.choices(values, k=len(values))), median(chance.choices(base, k=len(base))))
        for _ in range(RESAMPLES)
    ]
    tail = (1 - confidence) / 2 * 100
    return percentile(combined, tail), percentile(combined, 100 - tail)
