from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aerodrome.runtime.circuit import StartCircuit


def test_the_wait_doubles_up_to_the_longest() -> None:
    circuit = StartCircuit(first=0.5, longest=4.0)
    waits = []
    for n in range(6):
        circuit.failed(float(n * 100), f"reason {n}")
        waits.append(circuit.wait(float(n * 100)))
    assert waits == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert circuit.reason == "reason 5"


def test_it_opens_at_the_threshold_and_one_success_closes_it() -> None:
    circuit = StartCircuit(threshold=3)
    opened = []
    for _ in range(3):
        opened.append(circuit.is_open)
        circuit.failed(0.0, "no")
    assert (opened, circuit.is_open) == ([False, False, False], True)
    circuit.succeeded()
    assert (circuit.is_open, circuit.wait(0.0), circuit.reason) == (False, 0.0, "")
    circuit.failed(0.0, "again")
    assert circuit.wait(0.0) == 0.5


def test_an_open_circuit_lets_one_start_through_at_a_time() -> None:
    circuit = StartCircuit(first=1.0, longest=8.0, threshold=1)
    circuit.failed(0.0, "no")
    assert circuit.wait(0.0) == 1.0
    assert circuit.wait(1.0) == 0.0
    circuit.trying(1.0)
    assert circuit.wait(1.0) == 2.0
    circuit.failed(1.5, "no")
    assert circuit.wait(1.5) == 2.0


def test_starts_do_not_wait_for_each_other_while_it_is_closed() -> None:
    circuit = StartCircuit()
    circuit.trying(0.0)
    assert circuit.wait(0.0) == 0.0


@given(failures=st.integers(min_value=0, max_value=5000))
def test_a_night_of_failures_does_not_overflow(failures: int) -> None:
    circuit = StartCircuit(failures=failures)
    circuit.failed(0.0, "no")
    assert 0 < circuit.wait(0.0) <= circuit.longest
