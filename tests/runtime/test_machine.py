from __future__ import annotations

from itertools import product

import pytest

from aerodrome._util.transitions import ImpossibleTransition
from aerodrome.runtime.machine import (
    TRANSITIONS,
    RuntimeMachine,
    RuntimeState,
    Stimulus,
)

#: A shortest way into each state.
WAYS = {
    RuntimeState.STARTING: [],
    RuntimeState.WARM: [Stimulus.READY],
    RuntimeState.CLAIMED: [Stimulus.READY, Stimulus.CLAIM],
    RuntimeState.RETIRING: [Stimulus.READY, Stimulus.CLAIM, Stimulus.RETIRE],
    RuntimeState.DRAINING: [Stimulus.STOP],
    RuntimeState.STOPPED: [Stimulus.STOP, Stimulus.ENDED],
    RuntimeState.FAILED: [Stimulus.ENDED],
}


def machine_in(state: RuntimeState) -> RuntimeMachine:
    machine = RuntimeMachine()
    for stimulus in WAYS[state]:
        machine.apply(stimulus)
    assert machine.state is state
    return machine


@pytest.mark.parametrize(("state", "stimulus"), list(product(RuntimeState, Stimulus)))
def test_every_pair_is_a_row_or_an_error_with_its_story(state: RuntimeState, stimulus: Stimulus) -> None:
    machine = machine_in(state)
    if (state, stimulus) in TRANSITIONS:
        assert machine.apply(stimulus) is TRANSITIONS[state, stimulus]
        assert machine.state is TRANSITIONS[state, stimulus]
        return
    with pytest.raises(ImpossibleTransition, match=f"^{stimulus} in state {state}; so far: starting") as caught:
        machine.apply(stimulus)
    for step in WAYS[state]:
        assert f"-{step}->" in str(caught.value)
    assert machine.state is state


def test_the_impossible_is_what_nobody_may_do() -> None:
    impossible = {pair for pair in product(RuntimeState, Stimulus) if pair not in TRANSITIONS}
    ready_twice = {(state, Stimulus.READY) for state in RuntimeState if state is not RuntimeState.STARTING}
    claim_of_others = {(state, Stimulus.CLAIM) for state in RuntimeState if state is not RuntimeState.WARM}
    retire_of_others = {(state, Stimulus.RETIRE) for state in RuntimeState if state is not RuntimeState.CLAIMED}
    assert impossible == ready_twice | claim_of_others | retire_of_others


def test_an_end_is_an_end() -> None:
    for (state, _), target in TRANSITIONS.items():
        if state.is_final:
            assert target is state
    assert {state for state in RuntimeState if state.is_final} == {RuntimeState.STOPPED, RuntimeState.FAILED}


def test_a_claimed_runtime_is_never_handed_on() -> None:
    reachable = {RuntimeState.CLAIMED}
    while (further := {target for (state, _), target in TRANSITIONS.items() if state in reachable}) - reachable:
        reachable |= further
    assert reachable == set(RuntimeState) - {RuntimeState.STARTING, RuntimeState.WARM}
    assert [state for state in reachable if (state, Stimulus.CLAIM) in TRANSITIONS] == []
