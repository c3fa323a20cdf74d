from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.runtime.demand import Demand, Headroom, pause, warm_target
from aerodrome.runtime.headroom import cgroup_available, read_headroom

MB = 1 << 20
gaps = st.lists(st.floats(0, 100), max_size=60)


def after(*times: float, start_time: float = 2.0) -> Demand:
    demand = Demand(start_time)
    for time in times:
        demand.claimed(time)
    return demand


def test_nobody_is_expected_when_nobody_has_come() -> None:
    assert Demand().expected(1e6) == 0


def test_a_steady_stream_is_met_while_a_start_takes() -> None:
    """Every second for some minutes, 2 s a start: the third one to come at once is rare, the fifth hardly seen."""
    demand = after(*range(300))
    assert 3 <= demand.expected(300) <= 6
    # Twice as slow to start, more have to stand by.
    slow = after(*range(300), start_time=4.0)
    assert slow.expected(300) > demand.expected(300)
    # The stream has ended: so does the wish for more, though not at once.
    assert demand.expected(301) >= 3
    assert demand.expected(300 + 3600) == 0


def test_who_came_together_will_come_together() -> None:
    demand = after(*[100.0] * 6)
    assert demand.expected(130) == 5  # a burst fades
    assert demand.expected(100 + 600) == 3
    assert demand.expected(100 + 1200) == 1
    assert demand.expected(100 + 3600) == 0


def test_those_far_apart_are_no_burst() -> None:
    demand = after(*(n * 3600.0 for n in range(6)))
    assert demand.expected(5 * 3600 + 1) <= 1


def test_starts_are_measured() -> None:
    demand = Demand(2.0)
    for _ in range(30):
        demand.started(6.0)
    assert math.isclose(demand.start_time, 6.0, rel_tol=1e-3)


@given(gaps, st.floats(0, 1e5))
def test_demand_fades_and_never_grows_by_itself(times: list[float], wait: float) -> None:
    demand, now = Demand(), 0.0
    for gap in times:
        now += gap
        demand.claimed(now)
    soon = demand.expected(now)
    assert 0 <= soon <= len(times) + 10
    assert demand.expected(now + wait) <= soon


@given(
    expected=st.integers(0, 50),
    least=st.integers(0, 10),
    most=st.integers(0, 20),
    warm=st.integers(0, 20),
    available=st.none() | st.integers(0, 4000),
)
def test_the_target_stays_in_its_bounds(expected: int, least: int, most: int, warm: int, available: int | None) -> None:
    room = Headroom(None if available is None else available * MB)
    target = warm_target(expected, room, least=least, most=most, warm=warm, each=150 * MB, reserve=500 * MB)
    assert 0 <= target <= max(least, most)
    if available is None or available >= 500 + 150 * 20:
        assert target >= least
    if available is not None and available < 250:
        assert target < max(1, warm)
    if available is not None and available < 500 + 150:
        assert target <= warm  # none is started


def test_between_the_two_marks_what_is_there_stays() -> None:
    def target(available: int) -> int:
        return warm_target(4, Headroom(available * MB), least=1, most=8, warm=2, each=150 * MB, reserve=500 * MB)

    assert [target(n) for n in (240, 260, 500, 651, 800, 2000)] == [1, 2, 2, 3, 4, 4]


def test_without_a_reserve_the_machine_is_not_looked_at() -> None:
    assert warm_target(3, Headroom(0), least=1, most=8, warm=0, each=MB, reserve=0) == 3


@pytest.mark.parametrize(("busy", "factor"), [(0.0, 1), (0.5, 1), (0.75, 4.5), (1.0, 8)])
def test_starts_that_nobody_waits_for_give_way(busy: float, factor: float) -> None:
    assert pause(2.0, Headroom(busy=busy)) == pytest.approx(2.0 * factor)


def test_the_tightest_limit_of_the_control_groups_counts(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/pods/pod1/box\n")
    root = tmp_path / "fs"
    group(root, "max", 900, 0)
    group(root / "pods", "max", 900, 0)
    group(root / "pods" / "pod1", "1000", 700, 100)
    group(root / "pods" / "pod1" / "box", "2000", 100, 0)
    assert cgroup_available(root, own) == 400
    (root / "pods" / "pod1" / "memory.max").write_text("max\n")
    assert cgroup_available(root, own) == 1900
    assert cgroup_available(root, tmp_path / "none") is None
    # Past this one the kernel slows a group down instead of giving it memory.
    (root / "pods" / "memory.high").write_text("950\n")
    assert cgroup_available(root, own) == 50
    own.write_text("1:cpu:/old\n")
    assert cgroup_available(root, own) is None


def test_the_limits_of_control_groups_of_version_1_count(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("11:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n0::/\n")
    memory = tmp_path / "fs" / "memory"
    old_group(memory, 0x7FFFFFFFFFFFF000, 900, 0)
    assert cgroup_available(tmp_path / "fs", own) is None
    old_group(memory / "docker" / "abc", 1000, 700, 100)
    assert cgroup_available(tmp_path / "fs", own) == 400
    # A container that sees its own group as the root of all.
    own.write_text("9:memory:/docker/elsewhere\n")
    old_group(memory, 2000, 700, 100)
    assert cgroup_available(tmp_path / "fs", own) == 1400


def old_group(path: Path, limit: int, used: int, cache: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (path / "memory.usage_in_bytes").write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {cache}\n")


def group(path: Path, limit: str, used: int, cache: int) -> None:
    path.mkdir(parents=True)
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_this_machine_can_be_read() -> None:
    room = read_headroom()
    assert room.available is not None
    assert room.available > 0
    assert 0.0 <= room.busy <= 1.0
