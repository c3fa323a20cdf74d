"""When to come again: as the rate and the line say, within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.fairness.estimate import JITTER, LEAST, MOST, Rate, retry_after


def steady(per_second: float, seconds: float, start: float = 100.0) -> tuple[Rate, float]:
    rate = Rate(start)
    for number in range(1, int(seconds * per_second) + 1):
        rate.note(start + number / per_second)
    return rate, start + seconds


@given(st.floats(0.2, 50), st.floats(20, 300))
def test_a_steady_rate_is_measured(per_second: float, seconds: float) -> None:
    rate, now = steady(per_second, seconds)
    assert rate.per_second(now) == pytest.approx(per_second, rel=0.3, abs=0.06)


def test_it_follows_a_rate_that_changes() -> None:
    rate, now = steady(10, 60)
    for _ in range(120):
        now += 1.0
        rate.note(now)
    assert rate.per_second(now) == pytest.approx(1.0, rel=0.3)


def test_where_nothing_came_back_the_estimate_grows_with_the_silence() -> None:
    rate = Rate(0.0)
    assert [retry_after(0, rate.per_second(now), 0.0) for now in (2.0, 10.0, 30.0)] == [1.9, 8.5, 19.0]


def test_twice_as_many_before_is_twice_as_long() -> None:
    assert retry_after(9, 2.0, 0.0) == 5.0
    assert retry_after(19, 2.0, 0.0) == 10.0
    assert retry_after(9, 4.0, 0.0) == 2.5


@given(st.integers(0, 10**6), st.floats(1e-6, 1e6), st.floats(0, 1))
def test_it_is_within_its_bounds(ahead: int, per_second: float, chance: float) -> None:
    seconds = retry_after(ahead, per_second, chance)
    assert LEAST <= seconds <= MOST * (1 + JITTER)
    assert seconds >= retry_after(ahead, per_second, 0.0)
