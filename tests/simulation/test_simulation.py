"""Thousands of runs of a simulated fleet under faults: every history stays one line, and every session comes back.

A run that fails is printed with its seed, with as little of its plan as it takes to fail, and with all that happened;
`pytest tests/simulation --seed N`, or `SIMULATION_SEED=N`, runs it again.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.simulation.plan import make_plan
from support.simulation.run import Outcome, shrink, simulate

RUNS = 2_000
#: What must have happened in some of the runs, or they have shown nothing.
SIGHTS = (
    "is refused append",
    "is refused raise_epoch",
    "is told that it is dead",
    "gives up ['s",
    "the answer to append is lost",
    "the answer to acquire is lost",
    "raise_epoch is lost",
    "cuts s",
    "goes on",
    "*** kill",
    "*** leave",
    "*** empty",
    "*** down state",
    "*** down coordination",
    "*** cut",
    "*** jump",
    "*** wall clock",
    "*** when acquire",
)


def explore(seeds: range) -> list[Outcome]:
    """Run them, up to the first that fails, which is shrunk and reported."""
    outcomes = []
    for seed in seeds:
        outcomes.append(simulate(seed))
        if outcomes[-1].violation is not None:
            pytest.fail(shrink(outcomes[-1]).report(), pytrace=False)
    return outcomes


def test_no_run_breaks_a_promise(seed: int | None) -> None:
    if seed is not None:
        replayed = simulate(seed, recording=True)
        print(replayed.report())
        assert replayed.violation is None, replayed.violation
        return
    began = time.perf_counter()
    outcomes = explore(range(RUNS))
    took = time.perf_counter() - began
    steps, turns = sum(outcome.steps for outcome in outcomes), sum(outcome.turns for outcome in outcomes)
    acknowledged = sum(outcome.acknowledged for outcome in outcomes)
    recovered = sorted(outcome.recovered_after for outcome in outcomes)
    print(
        f"\n{RUNS} runs in {took:.1f} s ({RUNS / took:.0f}/s), {steps} steps; {acknowledged} turns acknowledged, of"
        f" {turns} asked for under faults; all sessions open again after {recovered[RUNS // 2]:.1f} s (median),"
        f" {recovered[-1]:.1f} s (longest)"
    )
    # Faults that stop everything would keep every promise.
    assert acknowledged > turns / 4


@pytest.mark.soak
def test_no_run_of_very_many_breaks_a_promise() -> None:
    explore(range(RUNS, 200_000))


def test_the_runs_see_what_they_are_there_for() -> None:
    unseen = set(SIGHTS)
    for seed in range(500):
        log = "\n".join(simulate(seed, recording=True).log)
        unseen = {sight for sight in unseen if sight not in log}
        if not unseen:
            return
    assert not unseen


def test_leaving_out_a_fault_is_all_that_shrinking_does() -> None:
    """Nothing fails here, so there is nothing that can be left out; and recording a run does not change it."""
    outcome = simulate(7)
    recorded = simulate(7, recording=True)
    assert recorded.plan == outcome.plan == make_plan(7)
    assert (recorded.steps, recorded.acknowledged) == (outcome.steps, outcome.acknowledged)


_DIGEST = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import structlog
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
from support.simulation.run import simulate
log = [line for seed in range(60) for line in simulate(seed, recording=True).log]
print(hashlib.sha256("\\n".join(log).encode()).hexdigest())
"""


def test_a_seed_gives_the_same_run_in_every_process() -> None:
    """Whatever the order of sets and the addresses of objects there."""
    log = [line for seed in range(60) for line in simulate(seed, recording=True).log]
    here = hashlib.sha256("\n".join(log).encode()).hexdigest()
    tests = Path(__file__).parents[1]
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST, str(tests)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here
