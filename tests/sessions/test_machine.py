from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome._util.transitions import ImpossibleTransition
from aerodrome.sessions.machine import TRANSITIONS, SessionMachine, State, Stimulus

#: A shortest way into each state.
WAYS = {
    State.HIBERNATED: [],
    State.WAKING: [Stimulus.WAKE],
    State.IDLE: [Stimulus.WAKE, Stimulus.AWAKE],
    State.RUNNING: [Stimulus.WAKE, Stimulus.AWAKE, Stimulus.SEND],
    State.HIBERNATING: [Stimulus.WAKE, Stimulus.AWAKE, Stimulus.HIBERNATE],
    State.CLOSED: [Stimulus.CLOSE],
}


def machine_in(state: State) -> SessionMachine:
    machine = SessionMachine()
    for stimulus in WAYS[state]:
        machine.apply(stimulus)
    assert machine.state is state
    return machine


@pytest.mark.parametrize(("state", "stimulus"), list(product(State, Stimulus)))
def test_every_pair_is_a_row_or_an_error_with_its_story(state: State, stimulus: Stimulus) -> None:
    machine = machine_in(state)
    if (state, stimulus) in TRANSITIONS:
        assert machine.apply(stimulus) is TRANSITIONS[state, stimulus]
        assert machine.state is TRANSITIONS[state, stimulus]
        return
    with pytest.raises(ImpossibleTransition, match=f"^{stimulus} in state {state}; so far: hibernated") as caught:
        machine.apply(stimulus)
    for step in WAYS[state]:
        assert f"-{step}->" in str(caught.value)
    assert machine.state is state


def test_only_an_idle_session_is_hibernated() -> None:
    """Trap 10: never in a turn, and never while it is on its way in or out."""
    assert [state for state in State if (state, Stimulus.HIBERNATE) in TRANSITIONS] == [State.IDLE]


def test_only_an_idle_session_takes_a_turn() -> None:
    assert [state for state in State if (state, Stimulus.SEND) in TRANSITIONS] == [State.IDLE]


def test_the_runtime_may_be_lost_at_any_moment() -> None:
    for state in set(State) - {State.HIBERNATED}:
        expected = State.CLOSED if state is State.CLOSED else State.HIBERNATED
        assert machine_in(state).apply(Stimulus.LOST) is expected


def test_closed_is_closed() -> None:
    for (state, stimulus), target in TRANSITIONS.items():
        if state is State.CLOSED or stimulus is Stimulus.CLOSE:
            assert target is State.CLOSED


@given(stimuli=st.lists(st.sampled_from(Stimulus), max_size=60))
def test_the_story_of_a_long_life_stays_short(stimuli: list[Stimulus]) -> None:
    machine = SessionMachine()
    for stimulus in stimuli:
        if (machine.state, stimulus) in TRANSITIONS:
            machine.apply(stimulus)
    with pytest.raises(ImpossibleTransition) as caught:
        machine.apply(Stimulus.WAKE if machine.state is not State.HIBERNATED else Stimulus.AWAKE)
    assert str(caught.value).count("->") <= 13
