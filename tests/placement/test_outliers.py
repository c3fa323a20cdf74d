from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aerodrome.placement.outliers import Kind, OutlierDetector, OutlierOptions, Standing

OPTIONS = OutlierOptions(consecutive_failures=3, min_requests=4, ejection=10.0, max_ejection=60.0)


def detector(count: int = 4, **answers: float) -> OutlierDetector:
    found = OutlierDetector(OPTIONS)
    found.keep(f"s{number}" for number in range(count))
    return found


def answer(found: OutlierDetector, name: str, *, times: int = 4, seconds: float = 0.05, good: bool = True) -> None:
    for _ in range(times):
        found.seen(name, good=good, seconds=seconds, now=0.0)


def test_failures_in_a_row_eject_at_once_and_a_good_answer_between_them_does_not() -> None:
    found = detector()
    answer(found, "s1", good=False, times=2)
    answer(found, "s1", times=1)
    answer(found, "s1", good=False, times=2)
    assert found.standing("s1") is Standing.HEALTHY
    answer(found, "s1", good=False, times=1)
    assert found.standing("s1") is Standing.EJECTED
    assert not found.admits("s1")
    assert "3 failures in a row" in found.reason("s1")


def test_the_one_that_is_slower_than_the_others_is_ejected() -> None:
    found = detector()
    for name, seconds in (("s0", 0.05), ("s1", 0.06), ("s2", 0.9), ("s3", 0.04)):
        answer(found, name, seconds=seconds)
    found.look(0.0)
    assert [found.standing(f"s{n}") for n in range(4)].count(Standing.EJECTED) == 1
    assert found.standing("s2") is Standing.EJECTED
    assert "0.9 s" in found.reason("s2")


def test_when_all_are_slow_nobody_is_an_outlier() -> None:
    found = detector()
    for number in range(4):
        answer(found, f"s{number}", seconds=20.0 + number)
    found.look(0.0)
    assert {found.standing(f"s{n}") for n in range(4)} == {Standing.HEALTHY}


def test_a_few_milliseconds_are_no_reason() -> None:
    found = detector()
    for number in range(4):
        answer(found, f"s{number}", seconds=0.05 if number == 2 else 0.001)
    found.look(0.0)
    assert found.standing("s2") is Standing.HEALTHY


def test_the_one_that_fails_more_often_than_the_others_is_ejected() -> None:
    found = detector()
    for number in range(4):
        answer(found, f"s{number}", times=10)
    for _ in range(5):
        answer(found, "s0", good=False, times=2)
        answer(found, "s0", times=1)
    found.look(0.0)
    assert found.standing("s0") is Standing.EJECTED


def test_too_few_requests_say_nothing() -> None:
    found = detector()
    for number in range(4):
        answer(found, f"s{number}", times=3 if number == 1 else 10, seconds=9.0 if number == 1 else 0.01)
    found.look(0.0)
    assert found.standing("s1") is Standing.HEALTHY


def test_it_comes_back_on_probation_with_few_requests_first() -> None:
    found = detector()
    answer(found, "s1", good=False, times=3)
    found.look(9.9)
    assert found.standing("s1") is Standing.EJECTED
    found.look(10.0)
    assert found.standing("s1") is Standing.PROBATION
    for _ in range(OPTIONS.probation_requests):
        assert found.admits("s1")
        found.placed("s1")
    assert not found.admits("s1")
    answer(found, "s1", times=OPTIONS.probation_requests)
    assert found.standing("s1") is Standing.HEALTHY
    assert found.admits("s1")


def test_one_failure_on_probation_ejects_anew_and_for_longer_up_to_a_limit() -> None:
    found = detector()
    answer(found, "s1", good=False, times=3)
    now, served = 0.0, []
    for _ in range(5):
        began = now
        while found.standing("s1") is Standing.EJECTED:
            now += 1.0
            found.look(now)
        served.append(now - began)
        found.seen("s1", good=False, seconds=0.0, now=now)
    assert served == [10.0, 20.0, 40.0, 60.0, 60.0]


def load(found: OutlierDetector, name: str, *, good: bool, now: float = 0.0) -> None:
    found.seen(name, good=good, seconds=0.0, now=now, kind=Kind.LOAD)


def test_one_that_answers_and_loads_nothing_is_ejected_until_it_loads_again() -> None:
    found = detector()
    for _ in range(3):
        assert found.standing("s1") is Standing.HEALTHY
        load(found, "s1", good=False)
        answer(found, "s1")
    assert found.standing("s1") is Standing.EJECTED
    assert "refused" in found.reason("s1")
    found.look(10.0)
    answer(found, "s1", times=20)
    assert found.standing("s1") is Standing.PROBATION, "it never was its answers"
    for _ in range(OPTIONS.probation_requests):
        load(found, "s1", good=True, now=10.0)
    assert found.standing("s1") is Standing.HEALTHY


def test_one_that_refuses_more_often_than_the_others_is_ejected() -> None:
    found = detector()
    for _ in range(10):
        for number in range(4):
            load(found, f"s{number}", good=True)
        load(found, "s0", good=False)
    found.look(0.0)
    assert found.standing("s0") is Standing.EJECTED
    assert "it took 50% of its sessions, the others 100%" in found.reason("s0")


def test_on_probation_it_is_tried_again_when_nothing_came_of_what_it_was_given() -> None:
    found = detector()
    for _ in range(3):
        load(found, "s1", good=False)
    found.look(10.0)
    for _ in range(OPTIONS.probation_requests):
        found.placed("s1")
    found.look(19.9)
    assert not found.admits("s1")
    found.look(20.0)
    assert found.admits("s1")


def test_time_in_health_makes_up_for_earlier_ejections() -> None:
    found = detector()
    answer(found, "s1", good=False, times=3)
    found.look(10.0)
    answer(found, "s1", times=3)
    answer(found, "s1", times=10)
    found.look(20.0)
    for _ in range(3):
        found.seen("s1", good=False, seconds=0.0, now=30.0)
    found.look(39.9)
    assert found.standing("s1") is Standing.EJECTED
    found.look(40.0)
    assert found.standing("s1") is Standing.PROBATION


def test_a_server_that_is_gone_is_forgotten() -> None:
    found = detector()
    answer(found, "s1", good=False, times=3)
    found.keep(["s0"])
    found.keep(["s0", "s1"])
    assert found.standing("s1") is Standing.HEALTHY


@given(count=st.integers(1, 7))
def test_never_more_than_a_share_and_never_the_last(count: int) -> None:
    found = detector(count)
    for number in range(count):
        answer(found, f"s{number}", good=False, times=10)
    ejected = [found.standing(f"s{n}") for n in range(count)].count(Standing.EJECTED)
    assert ejected == count // 2


def test_the_last_that_can_be_used_is_not_ejected_and_one_that_becomes_it_comes_back() -> None:
    found = detector(2)
    found.keep(["s0", "s1"], absent={"s0"})
    answer(found, "s1", good=False, times=10)
    assert found.standing("s1") is Standing.HEALTHY
    found.keep(["s0", "s1"])
    answer(found, "s1", good=False, times=3)
    assert found.standing("s1") is Standing.EJECTED
    found.keep(["s0", "s1"], absent={"s0"})
    assert found.admits("s1")


def test_on_probation_it_gets_more_than_a_few_when_nobody_else_can_do_the_work() -> None:
    found = detector(2)
    answer(found, "s1", good=False, times=3)
    found.look(10.0)
    for _ in range(OPTIONS.probation_requests):
        found.placed("s1")
    assert not found.admits("s1")
    found.keep(["s0", "s1"], absent={"s0"})
    assert found.admits("s1")


class Detector(RuleBasedStateMachine):
    """Whatever happens, in whatever order: no impossible transition, and the share holds."""

    def __init__(self) -> None:
        super().__init__()
        self.found = OutlierDetector(OPTIONS)
        self.names: list[str] = []
        self.now = 0.0

    @rule(count=st.integers(0, 5), away=st.integers(0, 5))
    def change(self, count: int, away: int) -> None:
        names = [f"s{number}" for number in range(count)]
        self.found.keep(names, names[:away])
        self.names = names[away:]

    @rule(
        number=st.integers(0, 5),
        good=st.booleans(),
        seconds=st.sampled_from([0.01, 3.0]),
        times=st.integers(1, 8),
        kind=st.sampled_from(Kind),
    )
    def seen(self, number: int, good: bool, seconds: float, times: int, kind: Kind) -> None:
        for _ in range(times):
            self.found.seen(f"s{number}", good=good, seconds=seconds, now=self.now, kind=kind)

    @rule(number=st.integers(0, 5))
    def placed(self, number: int) -> None:
        if self.found.admits(f"s{number}"):
            self.found.placed(f"s{number}")

    @rule(seconds=st.floats(0, 100))
    def look(self, seconds: float) -> None:
        self.now += seconds
        self.found.look(self.now)

    @invariant()
    def somebody_is_left(self) -> None:
        if self.names:
            assert any(self.found.standing(name) is not Standing.EJECTED for name in self.names)
            assert any(self.found.admits(name) for name in self.names)


TestDetector = Detector.TestCase
