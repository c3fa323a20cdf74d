from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.runtime.wear import (
    OLDEST_YOUTH,
    SAMPLES,
    SUSTAINED,
    YOUTH,
    Latency,
    Reason,
    Wear,
    WearLimits,
    WearWatch,
    over,
    youth,
)

LIMITS = WearLimits(turns=100, age=3600, memory=1000, descriptors=500, children=10, drift=3.0)
FRESH = Wear(turns=1, age=YOUTH, memory=10, descriptors=20, descriptor_limit=4096, children=0, latency=(0.01, 0.01))
WORN = {
    Reason.TURNS: replace(FRESH, turns=100),
    Reason.AGE: replace(FRESH, age=3600.0),
    Reason.MEMORY: replace(FRESH, memory=1000),
    Reason.DESCRIPTORS: replace(FRESH, descriptors=500),
    Reason.CHILDREN: replace(FRESH, children=10),
    Reason.DRIFT: replace(FRESH, latency=(0.03, 0.09)),
}
COUNTED = (Reason.TURNS, Reason.AGE)

wears = st.builds(
    Wear,
    turns=st.integers(0, 300),
    age=st.floats(0, 1e5),
    memory=st.none() | st.integers(0, 3000),
    descriptors=st.none() | st.integers(0, 1000),
    descriptor_limit=st.none() | st.integers(100, 2000),
    children=st.none() | st.integers(0, 30),
    latency=st.none() | st.tuples(st.floats(0.001, 1), st.floats(0.001, 10)),
)


@pytest.mark.parametrize("reason", list(Reason))
def test_each_limit_is_seen(reason: Reason) -> None:
    assert over(FRESH, LIMITS) is None
    assert over(WORN[reason], LIMITS) is reason


@pytest.mark.parametrize("reason", list(Reason))
def test_each_limit_can_be_off(reason: Reason) -> None:
    assert over(WORN[reason], replace(LIMITS, **{reason.value: 0})) is None


@given(wears)
def test_without_limits_nothing_is_worn(wear: Wear) -> None:
    assert over(wear, WearLimits()) is None


def test_what_cannot_be_measured_is_no_reason() -> None:
    assert over(Wear(turns=1, age=1.0), LIMITS) is None


def test_descriptors_stop_short_of_what_the_process_may_have() -> None:
    near = replace(FRESH, descriptors=90, descriptor_limit=100)
    assert over(near, LIMITS) is Reason.DESCRIPTORS
    assert over(replace(near, descriptors=79), LIMITS) is None


def test_a_few_milliseconds_are_no_drift() -> None:
    assert over(replace(FRESH, latency=(0.001, 0.02)), LIMITS) is None


def test_what_is_counted_goes_at_different_moments() -> None:
    assert over(replace(FRESH, turns=80), LIMITS, spread=0.8) is Reason.TURNS
    assert over(replace(FRESH, turns=80), LIMITS, spread=1.0) is None
    assert over(replace(FRESH, age=2880.0), LIMITS, spread=0.8) is Reason.AGE
    assert over(replace(FRESH, memory=800), LIMITS, spread=0.8) is None


@pytest.mark.parametrize("reason", list(Reason))
def test_what_is_measured_has_to_stand(reason: Reason) -> None:
    watch = WearWatch(LIMITS)
    looks = [watch.look(WORN[reason]) for _ in range(SUSTAINED)]
    assert looks == ([reason] * SUSTAINED if reason in COUNTED else [None] * (SUSTAINED - 1) + [reason])


@given(st.sampled_from([r for r in Reason if r not in COUNTED]), st.lists(st.booleans(), max_size=30))
def test_what_comes_and_goes_is_no_wear(reason: Reason, highs: list[bool]) -> None:
    watch = WearWatch(LIMITS)
    standing = 0
    for high in highs:
        standing = standing + 1 if high else 0
        assert watch.look(WORN[reason] if high else FRESH) == (reason if standing >= SUSTAINED else None)


def test_a_young_runtime_is_not_measured() -> None:
    watch = WearWatch(LIMITS)
    young = replace(WORN[Reason.MEMORY], age=YOUTH - 1)
    assert [watch.look(young) for _ in range(SUSTAINED + 2)] == [None] * (SUSTAINED + 2)
    assert watch.look(replace(young, age=YOUTH)) is Reason.MEMORY


def test_what_a_fresh_process_does_not_mend_is_tried_less_and_less_often() -> None:
    ages = [youth(Reason.MEMORY, ["memory"] * n) for n in range(40)]
    assert ages[:4] == [YOUTH, 2 * YOUTH, 4 * YOUTH, 8 * YOUTH]
    assert ages[-1] == OLDEST_YOUTH
    # Something else in between, and it begins anew.
    assert youth(Reason.MEMORY, ["memory", "memory", "turns"]) == YOUTH
    watch = WearWatch(LIMITS)
    worn = replace(WORN[Reason.MEMORY], age=1.5 * YOUTH)
    assert [watch.look(worn, ["memory"]) for _ in range(SUSTAINED)][-1] is None
    # What is counted is meant as it is set.
    assert watch.look(WORN[Reason.TURNS], ["turns"] * 5) is Reason.TURNS


@given(wears, st.integers(1, 5))
def test_a_verdict_is_about_what_is_over_its_limit(wear: Wear, looks: int) -> None:
    watch = WearWatch(LIMITS)
    for _ in range(looks):
        reason = watch.look(wear)
        assert reason is None or over(wear, WearLimits(**{reason.value: getattr(LIMITS, reason.value)})) is reason


def test_latency_is_compared_once_there_is_enough_of_it() -> None:
    latency = Latency()
    for _ in range(10):
        latency.add(5.0)  # passed over
    for _ in range(SAMPLES):
        latency.add(0.01)
    for _ in range(SAMPLES - 1):
        latency.add(0.02)
    assert latency.compared is None
    latency.add(9.0)
    assert latency.compared == (0.01, 0.02)
    for _ in range(SAMPLES):
        latency.add(0.1)
    assert latency.compared == (0.01, 0.1)
