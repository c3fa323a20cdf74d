"""What a deletion that is paused half-way does to those who come after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aerodrome.model import SessionRow
from support.simulation.plan import MACHINES, Event, Plan
from support.simulation.run import Parts, Simulation
from support.simulation.sites import at_once

RATES = dict.fromkeys((*MACHINES, "coordination"), 1.0)
#: Longer than the time to live.
PAUSE = 6.0


#: A call that a pause has cut in two ends in an answer or in a time-out, as the seed wants it.
SEEDS = range(8)


def played(*events: Event) -> Iterator[Simulation]:
    """The same plan with every seed."""
    for seed in SEEDS:
        simulation = Simulation(seed, Plan(1, RATES, events), Parts(), recording=True)
        try:
            simulation.play()
            print("\n".join([f"seed {seed}", *simulation.world.lines]))
            yield simulation
        finally:
            simulation.close()


def pause_after(operation: str) -> Event:
    return Event(3.0, "when", ("n1", operation, Event(3.0, "pause", ("n1", PAUSE))))


def stored(simulation: Simulation) -> tuple[SessionRow | None, bool]:
    """The directory's row, and whether the file store has any file."""
    (row,) = simulation.rows
    session = simulation.state.files.sessions.get(row.key)
    return at_once(simulation.state.directory.get(row.key)), bool(session and session.files)


def test_a_deletion_leaves_nothing() -> None:
    for done in played(
        Event(1.0, "turn", ("n2", 0)), Event(5.0, "hibernate", ("n2", 0)), Event(6.0, "erase", ("n1", 0))
    ):
        assert stored(done) == (None, False)


def test_a_deletion_that_was_paused_leaves_its_successors_lease_alone() -> None:
    """Deleted and made anew in the meantime, the session is another node's."""
    events = pause_after("remove"), Event(4.0, "erase", ("n1", 0)), Event(9.5, "turn", ("n2", 0))
    for done in played(*events):
        assert done.outcome.acknowledged == 1
        (row,) = done.rows
        lease = at_once(done.coordination.store.holder(row.key))
        assert lease is not None
        assert lease.incarnation.startswith("n2")


def test_a_deletion_that_was_paused_leaves_its_successors_session_alone() -> None:
    """The files are gone, the row is not, and another node takes the session over and has a turn in it."""
    events = pause_after("delete_session"), Event(4.0, "erase", ("n1", 0)), Event(9.5, "turn", ("n2", 0))
    for done in played(*events):
        assert done.outcome.acknowledged == 1
        row, has_files = stored(done)
        assert (row is not None) is has_files


@pytest.mark.parametrize("operation", ["epoch", "acquire", "raise_epoch", "get", "read"])
def test_a_wake_up_that_was_paused_brings_nothing_back(operation: str) -> None:
    """Paused on its way, it finds the session deleted."""
    events = pause_after(operation), Event(4.0, "turn", ("n1", 0)), Event(9.5, "erase", ("n2", 0))
    for done in played(*events):
        assert stored(done) == (None, False)
