"""What a deletion that is paused half-way does to those who come after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aerodrome.model import SessionRow
from support.simulation.mutations import ForgetsAllTurns
from support.simulation.plan import MACHINES, Event, Plan
from support.simulation.run import Parts, Simulation
from support.simulation.sites import at_once
from support.simulation.world import Violation

RATES = dict.fromkeys((*MACHINES, "coordination"), 1.0)
#: Longer than the time to live.
PAUSE = 6.0


#: A call that a pause has cut in two ends in an answer or in a time-out, as the seed wants it.
SEEDS = range(8)


def played(*events: Event, parts: Parts | None = None) -> Iterator[Simulation]:
    """The same plan with every seed."""
    for seed in SEEDS:
        simulation = Simulation(seed, Plan(1, RATES, events), parts or Parts(), recording=True)
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


STEPS = ["epoch", "acquire", "raise_epoch", "turn_ids", "get", "delete_session", "forget", "remove", "forget_session"]


@pytest.mark.parametrize("operation", STEPS)
def test_a_deletion_that_was_paused_leaves_its_successors_session_alone(operation: str) -> None:
    """The first turn finds the session there still, or finishes its deletion; the second finds it, or makes it anew."""
    events = pause_after(operation), Event(4.0, "erase", ("n1", 0))
    for done in played(*events, Event(9.5, "turn", ("n2", 0)), Event(9.7, "turn", ("n2", 0))):
        assert done.outcome.acknowledged >= 1
        row, has_files = stored(done)
        assert row is not None
        assert has_files
        done.state.check_ledger(row.key)


def test_that_turns_of_a_successor_were_forgotten_would_be_seen() -> None:
    events = pause_after("delete_session"), Event(4.0, "erase", ("n1", 0))
    turns = Event(9.5, "turn", ("n2", 0)), Event(9.7, "turn", ("n2", 0))
    seen = 0
    # Out of the pause, the deletion goes on when the answer comes before the time-out.
    for done in played(*events, *turns, parts=Parts(ledger=ForgetsAllTurns)):
        try:
            done.state.check_ledger(done.rows[0].key)
        except Violation:
            seen += 1
    assert seen > 0


@pytest.mark.parametrize("operation", STEPS)
def test_a_deletion_that_was_cut_short_is_finished_by_the_next_one(operation: str) -> None:
    dies = Event(3.0, "when", ("n1", operation, Event(3.0, "kill", ("n1", PAUSE))))
    for done in played(
        Event(1.0, "turn", ("n2", 0)),
        Event(5.0, "hibernate", ("n2", 0)),
        dies,
        Event(6.0, "erase", ("n1", 0)),
        Event(12.0, "erase", ("n3", 0)),
        # Nobody asks a second time for one that has come so far that its row has gone: a wake-up finds what is left.
        Event(14.0, "turn", ("n3", 0)),
        Event(19.0, "hibernate", ("n3", 0)),
        Event(20.0, "erase", ("n2", 0)),
    ):
        assert done.outcome.acknowledged == 2
        assert stored(done) == (None, False)
        assert not done.state.files.sessions
        assert not at_once(done.state.ledger.sessions())
        assert not done.coordination.store._leases


@pytest.mark.parametrize("operation", ["epoch", "acquire", "raise_epoch", "turn_ids", "get"])
def test_what_is_used_while_its_expiry_is_paused_does_not_expire(operation: str) -> None:
    events = pause_after(operation), Event(4.0, "expire", ("n1", 0, 2.0)), Event(9.5, "turn", ("n2", 0))
    for done in played(*events):
        assert done.outcome.acknowledged == 1
        row, has_files = stored(done)
        assert row is not None
        assert has_files


def test_what_is_not_used_expires() -> None:
    for done in played(Event(1.0, "turn", ("n2", 0)), Event(9.0, "expire", ("n1", 0, 2.0))):
        row, has_files = stored(done)  # loaded by n2
        assert row is not None
        assert has_files
    for done in played(
        Event(1.0, "turn", ("n2", 0)), Event(5.0, "hibernate", ("n2", 0)), Event(9.0, "expire", ("n1", 0, 2.0))
    ):
        assert stored(done) == (None, False)


@pytest.mark.parametrize("operation", ["epoch", "acquire", "raise_epoch", "get", "read"])
def test_a_wake_up_that_was_paused_brings_nothing_back(operation: str) -> None:
    """Paused on its way, it finds the session deleted."""
    events = pause_after(operation), Event(4.0, "turn", ("n1", 0)), Event(9.5, "erase", ("n2", 0))
    for done in played(*events):
        assert stored(done) == (None, False)
