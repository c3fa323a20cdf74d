from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.model import SessionKey
from aerodrome.runtime.deaths import Death
from aerodrome.sessions.blame import (
    FORGOTTEN_AFTER,
    LIMIT,
    MOST_SUSPECTED,
    MOST_TURNS,
    OPTION,
    Charges,
    Record,
    charged,
    in_question,
    refusal,
)

A, B, C = (SessionKey("acme", name) for name in "abc")
sessions = st.sampled_from([A, B, C])


def test_whoever_was_being_loaded_or_in_a_turn_comes_into_question() -> None:
    assert in_question(Death.MEMORY, {A}, {}) == [A]
    assert in_question(Death.CRASHED, set(), {B: 10}) == [B]
    assert in_question(Death.MEMORY, {C}, {A: 10, B: 2000}) == [C, B, A]


def test_a_session_that_is_loaded_for_a_turn_counts_once() -> None:
    assert in_question(Death.MEMORY, {A}, {A: 10}) == [A]


@pytest.mark.parametrize("death", [Death.STUCK, Death.SHORTAGE])
def test_a_machine_that_is_short_of_something_is_no_reason_to_suspect_those_in_a_turn(death: Death) -> None:
    assert in_question(death, {A}, {B: 10}) == [A]
    assert in_question(death, set(), {B: 10}) == []


@given(st.sets(sessions), st.dictionaries(sessions, st.integers(0, 1000)))
def test_an_end_from_outside_is_nobodys_fault(loading: set[SessionKey], in_turn: dict[SessionKey, int]) -> None:
    assert in_question(Death.OUTSIDE, loading, in_turn) == []


@given(st.sampled_from(list(Death)), st.sets(sessions), st.dictionaries(sessions, st.integers(0, 1000)))
def test_nobody_else_comes_into_question_and_nobody_twice(
    death: Death, loading: set[SessionKey], in_turn: dict[SessionKey, int]
) -> None:
    found = in_question(death, loading, in_turn)
    assert set(found) <= loading | set(in_turn)
    assert len(found) == len(set(found))


def test_two_charges_are_a_quarantine() -> None:
    first = charged(None, Death.MEMORY, 100.0)
    assert not first.quarantined
    second = charged(first, Death.CRASHED, 200.0)
    assert second == Charges(LIMIT, 200.0, "crashed")
    assert second.quarantined
    told = refusal(second, A)
    assert (told.code, told.retryable, told.extra["reason"]) == ("quarantined", False, "crashed")
    assert "aerodrome sessions release a --tenant acme" in told.detail


def test_a_charge_is_forgotten_and_a_quarantine_is_not() -> None:
    first = charged(None, Death.MEMORY, 0.0)
    assert first.counts(FORGOTTEN_AFTER - 1)
    assert not first.counts(FORGOTTEN_AFTER)
    assert charged(first, Death.MEMORY, FORGOTTEN_AFTER).count == 1
    assert charged(charged(first, Death.MEMORY, 1.0), Death.MEMORY, 10 * FORGOTTEN_AFTER).quarantined


@pytest.mark.parametrize("death", [death for death in Death if death is not Death.OUTSIDE])
def test_what_is_stored_is_what_is_read(death: Death) -> None:
    charges = charged(charged(None, death, 1.0), death, 2.0)
    assert Charges.of({"tools": [], OPTION: charges.stored()}) == charges
    assert refusal(charges, A).detail
    assert Charges.of({}) is None


def test_whoever_is_there_again_is_likeliest_and_has_more_to_prove() -> None:
    record = Record()
    crowd = [SessionKey("acme", f"s{number}") for number in range(MOST_SUSPECTED)]
    assert record.add([*crowd, A], 0.0) == dict.fromkeys(crowd, 1)
    assert record.add([B, A], 10.0) == {A: 2, B: 1}
    others = [SessionKey("acme", f"t{number}") for number in range(MOST_SUSPECTED)]
    assert record.add([*others, A], 20.0) == {A: 4, **dict.fromkeys(others[:-1], 1)}
    assert record.add([A, B], 20.0 + FORGOTTEN_AFTER) == {A: 1, B: 1}
    for _ in range(30):
        found = record.add([A, C], 30.0 + FORGOTTEN_AFTER)
    assert found[A] == MOST_TURNS
    record.forget(40.0 + 2 * FORGOTTEN_AFTER)
    assert record._times == {}


def test_charges_of_a_release_that_knows_more_kinds_of_ends_are_understood() -> None:
    charges = Charges.of({OPTION: {"count": LIMIT, "at": 1.0, "reason": "eclipse"}})
    assert charges is not None
    assert f"has ended {LIMIT} runtimes" in refusal(charges, A).detail
