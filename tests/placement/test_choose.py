from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aerodrome.placement.choose import Candidate, least_loaded

CANDIDATES = st.lists(
    st.builds(Candidate, id=st.text(max_size=3), load=st.integers(0, 60), capacity=st.integers(0, 50)),
    unique_by=lambda candidate: candidate.id,
    max_size=8,
)


def test_the_emptiest_is_chosen() -> None:
    assert least_loaded([Candidate("a", 3, 10), Candidate("b", 1, 10), Candidate("c", 2, 10)]) == "b"


def test_room_is_measured_against_the_capacity() -> None:
    assert least_loaded([Candidate("small", 1, 2), Candidate("large", 20, 100)]) == "large"


def test_equals_are_chosen_by_name() -> None:
    assert least_loaded([Candidate("b", 1, 10), Candidate("a", 1, 10)]) == "a"


def test_nobody_has_room() -> None:
    assert least_loaded([]) is None
    assert least_loaded([Candidate("full", 10, 10), Candidate("over", 11, 10), Candidate("none", 0, 0)]) is None


@given(candidates=CANDIDATES)
def test_it_is_one_with_room_and_none_has_relatively_more(candidates: list[Candidate]) -> None:
    chosen = least_loaded(candidates)
    with_room = {c.id: c.load / c.capacity for c in candidates if c.load < c.capacity}
    if chosen is None:
        assert with_room == {}
    else:
        assert with_room[chosen] == min(with_room.values())


@given(candidates=CANDIDATES, data=st.data())
def test_the_order_does_not_matter(candidates: list[Candidate], data: st.DataObject) -> None:
    assert least_loaded(data.draw(st.permutations(candidates))) == least_loaded(candidates)
