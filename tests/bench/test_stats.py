"""The arithmetic of the benchmarks, and how turns are taken."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.bench.report import Row, Verdict, compare, missed, skipped
from aerodrome.bench.rounds import interleave
from aerodrome.bench.stats import difference_interval, percentile, ratio_interval

times = st.lists(st.floats(min_value=1e-6, max_value=1e3), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3.0], 95, 3.0),
        ([1, 2, 3], 50, 2),
        ([4, 1, 3, 2], 50, 2.5),
        ([0, 10], 95, 9.5),
        ([5, 1], 0, 1),
        ([5, 1], 100, 5),
    ],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_of_nothing(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError):
        percentile(values, percent)


@given(times, st.floats(min_value=0, max_value=100))
def test_a_percentile_lies_within_the_values(values: list[float], percent: float) -> None:
    # Interpolation may round by a bit.
    assert min(values) <= percentile(values, percent) * (1 + 1e-9)
    assert percentile(values, percent) <= max(values) * (1 + 1e-9)


def test_the_interval_of_a_ratio_is_wide_for_scattered_times_and_narrow_for_steady_ones() -> None:
    steady = ratio_interval([2.0] * 20, [4.0] * 20)
    scattered = ratio_interval([1.0, 3.0] * 10, [2.0, 6.0] * 10)
    assert steady == (0.5, 0.5)
    assert scattered[0] < 0.5 < scattered[1]
    assert scattered == ratio_interval([1.0, 3.0] * 10, [2.0, 6.0] * 10)


def test_the_interval_of_a_difference() -> None:
    assert difference_interval([2.0] * 20, [0.5] * 20) == (1.5, 1.5)
    low, high = difference_interval([1.0, 3.0] * 10, [0.0, 2.0] * 10)
    assert low < 1 < high
    with pytest.raises(ValueError):
        difference_interval([1.0], [])


def test_a_comparison_is_the_ratio_of_the_medians() -> None:
    row = compare("turn", "one / other", ("one", "other"), {"one": [0.2, 0.1, 0.3], "other": [0.4] * 3}, target=0.5)
    assert row.value == pytest.approx(0.5)
    assert row.measured["one_p50_ms"] == pytest.approx(200)
    assert row.measured["other_p95_ms"] == pytest.approx(400)
    assert row.measured["samples"] == 3


@pytest.mark.parametrize(
    ("value", "target", "verdict"), [(0.5, 0.5, Verdict.MET), (0.51, 0.5, Verdict.MISSED), (9.0, None, None)]
)
def test_a_verdict(value: float, target: float | None, verdict: Verdict | None) -> None:
    row = Row("turn", "what", value, target=target)
    assert row.verdict is verdict
    assert missed([row]) == ([row] if verdict is Verdict.MISSED else [])
    assert row.as_json()["verdict"] == verdict


@pytest.mark.parametrize(("value", "verdict"), [(0.97, Verdict.MET), (0.96, Verdict.MISSED), (None, None)])
def test_a_verdict_of_what_shall_be_at_least_so_much(value: float | None, verdict: Verdict | None) -> None:
    row = Row("turn", "what", value, target=0.97, at_least=True)
    assert row.verdict is verdict
    assert missed([row]) == ([row] if verdict is Verdict.MISSED else [])


def test_what_could_not_be_measured_misses_nothing() -> None:
    row = skipped("turn", "what", "there is no such thing")
    assert row.verdict is None
    assert missed([row]) == []
    assert row.as_json()["note"] == "skipped: there is no such thing"


async def test_the_compared_take_turns_in_alternating_order() -> None:
    calls: list[str] = []
    progress: list[float] = []

    async def call(name: str) -> None:
        calls.append(name)

    times = await interleave(
        {"a": lambda: call("a"), "b": lambda: call("b")},
        2,
        warm_up=1,
        pause=0,
        prepare=lambda: call("-"),
        progress=progress.append,
    )
    assert "".join(calls) == "-ab-ba-ab"
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
    assert all(math.isfinite(value) and value >= 0 for values in times.values() for value in values)
    assert progress[-1] == 1
