from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.model import PlacementStrategy
from aerodrome.placement.choose import BOUND, Candidate, Placement, Sticky, placement

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        id=st.text(max_size=3),
        load=st.integers(0, 60),
        capacity=st.integers(0, 50),
        weight=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    ),
    unique_by=lambda candidate: candidate.id,
    max_size=8,
)
STRATEGIES = st.sampled_from(list(PlacementStrategy))


def least_loaded() -> Placement:
    return placement(PlacementStrategy.LEAST_LOADED)


def spread(chooser: Placement, weights: dict[str, float], users: list[str], *, capacity: int = 10**6) -> dict[str, str]:
    """Where a session of each user goes, none of which ends."""
    load: Counter[str] = Counter()
    placed = {}
    for user in users:
        candidates = [Candidate(name, load[name], capacity, weight) for name, weight in weights.items()]
        chosen = chooser.choose(candidates, user)
        assert chosen is not None
        load[chosen] += 1
        placed[user] = chosen
    return placed


def users(count: int) -> list[str]:
    return [f"user-{number}" for number in range(count)]


# All of them


@given(candidates=CANDIDATES, strategy=STRATEGIES, affinity=st.none() | st.text(max_size=5))
def test_the_chosen_one_has_room_and_somebody_is_chosen_if_anybody_has(
    candidates: list[Candidate], strategy: PlacementStrategy, affinity: str | None
) -> None:
    chosen = placement(strategy).choose(candidates, affinity)
    room = {c.id for c in candidates if c.load < c.capacity and c.weight > 0}
    assert chosen in room if room else chosen is None


@given(candidates=CANDIDATES, strategy=STRATEGIES, data=st.data())
def test_the_order_does_not_matter(
    candidates: list[Candidate], strategy: PlacementStrategy, data: st.DataObject
) -> None:
    mixed = data.draw(st.permutations(candidates))
    assert placement(strategy).choose(mixed, "alice") == placement(strategy).choose(candidates, "alice")


@pytest.mark.parametrize("strategy", list(PlacementStrategy))
def test_twice_the_weight_is_twice_the_sessions(strategy: PlacementStrategy) -> None:
    counted = Counter(spread(placement(strategy), {"a": 1.0, "b": 2.0, "c": 1.0}, users(2000)).values())
    assert counted["b"] == pytest.approx(1000, rel=0.15)
    assert counted["a"] == pytest.approx(500, rel=0.25)
    assert counted["c"] == pytest.approx(500, rel=0.25)


# least_loaded


def test_the_emptiest_is_chosen() -> None:
    assert least_loaded().choose([Candidate("a", 3, 10), Candidate("b", 1, 10), Candidate("c", 2, 10)]) == "b"


def test_room_is_measured_against_the_capacity() -> None:
    assert least_loaded().choose([Candidate("small", 1, 2), Candidate("large", 20, 100)]) == "large"


def test_equals_are_chosen_by_name() -> None:
    assert least_loaded().choose([Candidate("b", 1, 10), Candidate("a", 1, 10)]) == "a"


def test_nobody_has_room() -> None:
    assert least_loaded().choose([]) is None
    full = [Candidate("full", 10, 10), Candidate("over", 11, 10), Candidate("none", 0, 0)]
    assert least_loaded().choose(full) is None


@given(candidates=CANDIDATES)
def test_none_has_relatively_more_room(candidates: list[Candidate]) -> None:
    chosen = least_loaded().choose(candidates)
    fullness = {c.id: c.load / (c.capacity * c.weight) for c in candidates if c.has_room}
    if chosen is not None:
        assert fullness[chosen] == min(fullness.values())


# round_robin


def test_it_goes_round() -> None:
    chooser = placement(PlacementStrategy.ROUND_ROBIN)
    three = [Candidate(name, 0, 10) for name in "abc"]
    assert [chooser.choose(three) for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_a_newcomer_gets_its_share_and_not_all_until_it_is_even() -> None:
    chooser = placement(PlacementStrategy.ROUND_ROBIN)
    two = [Candidate(name, 0, 10**6) for name in "ab"]
    for _ in range(100):
        chooser.choose(two)
    counted = Counter(chooser.choose([*two, Candidate("c", 0, 10**6)]) for _ in range(30))
    assert set(counted.values()) == {10}


def test_one_that_was_full_for_a_while_does_not_make_up_for_it() -> None:
    chooser = placement(PlacementStrategy.ROUND_ROBIN)
    for _ in range(50):
        assert chooser.choose([Candidate("a", 0, 10), Candidate("b", 10, 10)]) == "a"
    both = [Candidate("a", 0, 10), Candidate("b", 0, 10)]
    assert Counter(chooser.choose(both) for _ in range(10)) == {"a": 5, "b": 5}


def test_what_it_remembers_is_bounded() -> None:
    chooser = placement(PlacementStrategy.ROUND_ROBIN)
    for number in range(5000):
        chooser.choose([Candidate(f"rt-{number}", 0, 1)])
    assert len(chooser._paid) < 2000  # type: ignore[attr-defined]


# sticky


@given(count=st.integers(1, 12), user=st.text(max_size=20))
def test_the_same_user_comes_to_the_same_server(count: int, user: str) -> None:
    servers = [Candidate(f"cli-{number}", 0, 10) for number in range(count)]
    assert len({Sticky().choose(servers, user) for _ in range(3)}) == 1


@given(count=st.integers(1, 9), gone=st.integers(0, 8), salt=st.integers(0, 1000))
def test_trap_09_a_server_that_goes_moves_its_own_users_and_nobody_else(count: int, gone: int, salt: int) -> None:
    names = [f"cli-{salt}-{number}" for number in range(count + 1)]
    lost = names[gone % len(names)]
    for user in users(50):
        before = Sticky().choose([Candidate(name, 0, 10) for name in names], user)
        after = Sticky().choose([Candidate(name, 0, 10) for name in names if name != lost], user)
        assert before in (lost, after)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_trap_09_a_server_that_is_added_to_n_moves_about_one_user_in_n_plus_one(count: int) -> None:
    """With the loads of the users who are there, so that the bound has its say."""
    everybody = users(3000)
    before = spread(Sticky(), {f"cli-{number}": 1.0 for number in range(count)}, everybody)
    after = spread(Sticky(), {f"cli-{number}": 1.0 for number in range(count + 1)}, everybody)
    moved = sum(before[user] != after[user] for user in everybody)
    # The obvious `hash(user) % servers` moves n in n + 1.
    assert moved / len(everybody) < 1 / (count + 1) + 0.08


@given(loads=st.lists(st.integers(0, 40), min_size=2, max_size=6), user=st.text(max_size=8))
def test_nobody_gets_more_than_the_bound_while_others_are_below_it(loads: list[int], user: str) -> None:
    servers = [Candidate(f"cli-{number}", load, 1000) for number, load in enumerate(loads)]
    chosen = Sticky().choose(servers, user)
    bound = math.ceil(BOUND * (sum(loads) + 1) / len(loads))
    assert next(server.load for server in servers if server.id == chosen) < bound


def test_one_busy_user_does_not_overrun_the_users_server() -> None:
    counted = Counter(spread_of_one("alice", ["a", "b", "c", "d"], 400))
    assert max(counted.values()) <= math.ceil(BOUND * 400 / 4) + 1


def spread_of_one(user: str, names: list[str], count: int) -> list[str]:
    load: Counter[str] = Counter()
    for _ in range(count):
        chosen = Sticky().choose([Candidate(name, load[name], 10**6) for name in names], user)
        assert chosen is not None
        load[chosen] += 1
    return list(load.elements())


def test_without_an_affinity_it_is_the_emptiest() -> None:
    assert Sticky().choose([Candidate("a", 2, 10), Candidate("b", 1, 10)]) == "b"
