"""The simulation can fail: with one promise broken anywhere, it finds a run that shows it, and what that run needs."""

from __future__ import annotations

import pytest

from support.simulation.mutations import MUTATIONS
from support.simulation.run import shrink, simulate

#: Seeds to try; the hardest to find takes some hundreds.
SEEDS = 4_000
#: Plans have 10 to 60 events; what is left must be for a person to read.
SHORT = 25


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_promise_is_found(mutation: str) -> None:
    parts = MUTATIONS[mutation]
    for seed in range(SEEDS):
        found = simulate(seed, parts)
        if found.violation is not None:
            break
    else:
        pytest.fail(f"{SEEDS} runs, and none shows: {mutation}")
    shrunk = shrink(found, parts)
    print(f"\n{mutation}, after {seed + 1} runs:\n{shrunk.report()}")
    assert shrunk.violation is not None
    assert len(shrunk.plan.events) <= min(SHORT, len(found.plan.events))
    # It is the mutation that fails, and the seed leads back to it.
    assert simulate(seed, plan=shrunk.plan).violation is None
    assert simulate(seed, parts).violation == found.violation
