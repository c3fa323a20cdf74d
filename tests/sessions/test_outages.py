"""Stores that are away for a moment, and a node that fences itself: what users see of it."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome._util.patience import Patience
from aerodrome.coordination.ports import Node
from aerodrome.errors import Fenced, SessionBusy, StoreUnavailable
from aerodrome.model import SessionKey, SessionState, TurnStatus
from aerodrome.statestore.provider import EVENTS_PATH
from support.loop_clock import loop_clock
from support.scripted_node import ALICE, ScriptedNode, Unsteady, scripted_node, settle
from support.waiting import until

pytestmark = pytest.mark.timeout(30)

PATIENT = 20.0
KEY = SessionKey("acme", "s1")


class Watched(Patience):
    """Tells when somebody waits."""

    def __init__(self) -> None:
        self.waits = 0
        super().__init__(PATIENT, sleep=self._sleep_and_tell)

    async def _sleep_and_tell(self, seconds: float) -> None:
        self.waits += 1
        await asyncio.sleep(min(seconds, 0.01))


def _stores(node: ScriptedNode) -> list[Unsteady]:
    stores = node.stores
    return [stores.slow_coordination, stores.slow_directory, stores.slow_ledger, stores.slow_files]


def away(node: ScriptedNode, *calls: str, after: bool = False) -> None:
    for store in _stores(node):
        (store.fails_after if after else store.fails).update(calls)


def back(node: ScriptedNode) -> None:
    for store in _stores(node):
        store.fails.clear()
        store.fails_after.clear()


async def answered(node: ScriptedNode, session_id: str = "s1") -> None:
    """Answer the turn, as soon as a runtime has it."""
    await until(lambda: any(s.turn or s.pending for r in node.pool.runtimes for s in r.sessions.values()))
    await node.loaded(session_id).answer()


# --- a store is away, and comes back ---


@pytest.mark.parametrize(
    "call", ["get", "accept", "start", "finish", "epoch", "acquire", "holder", "raise_epoch", "read", "append"]
)
@pytest.mark.parametrize("after", [False, True], ids=["not done", "done and not told"])
async def test_a_turn_waits_for_a_store_and_is_there_once(call: str, after: bool) -> None:
    patience = Watched()
    async with scripted_node(patience=patience) as node:
        await node.open("s1")
        await node.say("s1", "one")
        await node.service.hibernate(node.service.live[0])
        away(node, call, after=after)
        sending = asyncio.create_task(node.send("s1", "two", idempotency_key="k"))
        answering = asyncio.create_task(answered(node))
        if call not in ("holder", "start"):  # not asked when all goes well
            # An append that is found to be done needs no third look.
            await until(lambda: patience.waits > (0 if call == "append" else 2))
        back(node)
        run = await sending
        await answering
        assert (await run.wait()).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one", "two"]
        assert node.event_types("s1").count("assistant.turn_end") == 2
        row = node.ledger_row(run)
        assert row is not None
        assert row.status is TurnStatus.COMPLETED
        # And the key answers for it.
        again = await node.send("s1", "two", idempotency_key="k")
        assert again.row.id == run.row.id


async def test_who_waits_too_long_is_told_when_to_come_again() -> None:
    async with scripted_node(patience=0.05) as node:
        away(node, "insert")
        with pytest.raises(StoreUnavailable) as failure:
            await node.open("s1")
        assert failure.value.retry_after
        back(node)
        await node.open("s1")


async def test_a_list_does_not_wait_for_the_coordination_store() -> None:
    patience = Watched()
    async with scripted_node(patience=patience) as a, scripted_node(a.stores, name="b", patience=patience) as b:
        await a.open("s1")
        await a.say("s1", "one")
        await a.service.live[0].updates.flush()
        away(a, "holder", "holders")
        (row,) = (await b.service.list(ALICE)).rows
        assert row.state is SessionState.RESIDENT, "as it was last said to be"
        assert patience.waits == 0
        back(a)


async def test_a_write_that_fails_for_good_ends_the_turn_loudly() -> None:
    async with scripted_node(patience=0.05) as node:
        await node.open("s1")
        run = await node.send("s1", "one")
        await settle()
        away(node, "append")
        await node.loaded("s1").answer()
        row = await run.wait()
        assert row.status is TurnStatus.FAILED
        assert row.error is not None
        assert row.error["code"] == "store_unavailable"
        back(node)
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["two"]


async def test_a_wait_for_a_store_ends_when_the_turn_is_aborted() -> None:
    patience = Watched()
    async with scripted_node(patience=patience) as node:
        await node.open("s1")
        away(node, "acquire")
        run = await node.send("s1", "one")
        await until(lambda: patience.waits > 2)
        assert await node.service.abort(ALICE, "s1")
        assert (await run.wait()).status is TurnStatus.ABORTED
        back(node)


async def test_a_store_that_has_lost_its_memory_is_waited_for_until_it_knows_us_again() -> None:
    patience = Watched()
    async with scripted_node(patience=patience) as node:
        await node.open("s1")
        await node.say("s1", "one")
        await node.service.hibernate(node.service.live[0])
        await settle()
        epoch = node.stores.files.epochs[KEY]
        coordination = node.stores.coordination
        for memory in (coordination._lives, coordination._leases):
            memory.clear()
        run = await node.send("s1", "two")
        await until(lambda: patience.waits > 2)
        await node.join()
        await answered(node)
        assert (await run.wait()).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one", "two"]
        assert node.stores.files.epochs[KEY] > epoch


async def test_what_a_fail_over_has_lost_is_given_to_nobody_again() -> None:
    """Both stores have gone over to a standby that was behind: a lease and its epoch are gone, the node that has them
    is paused, and another one loads the session."""
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await a.open("s1")
        await a.say("s1", "one")
        await a.service.hibernate(a.service.live[0])
        await settle()
        before = a.stores.files.epochs[KEY]
        a.clock.advance(60.0)
        await a.say("s1", "two")
        lost = a.stores.files.epochs[KEY]
        assert before < lost
        a.stores.files.epochs[KEY] = before
        coordination = a.stores.coordination
        del coordination._leases[KEY]
        b.clock.advance(60.001)
        await b.say("s1", "three")
        assert a.stores.files.epochs[KEY] > lost
        with pytest.raises(Fenced):
            await a.stores.files.append(KEY, lost, EVENTS_PATH, "late")


# --- self-fencing ---


def fence(node: ScriptedNode) -> None:
    """What the heartbeat does when it could not beat."""
    node.may_serve = False
    node.service.give_up_all("the script says so", within=0.0)


async def test_a_node_that_fences_itself_runs_nothing_and_takes_its_turns_up_again() -> None:
    patience = Watched()
    async with scripted_node(patience=patience) as node:
        await node.open("s1")
        await node.say("s1", "one")
        run = await node.send("s1", "two")
        await settle()
        (runtime,) = node.pool.runtimes
        fence(node)
        assert runtime.lost.is_set()
        queued = asyncio.create_task(node.send("s1", "three"))
        await until(lambda: patience.waits > 2)
        assert node.pool.runtimes == []
        node.may_serve = True
        await answered(node)
        row = await run.wait()
        assert row.status is TurnStatus.COMPLETED
        assert row.retried
        await answered(node)
        assert (await (await queued).wait()).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one", "two", "three"]


async def test_a_turn_in_which_a_tool_had_run_is_reported_and_not_repeated() -> None:
    async with scripted_node(patience=Watched()) as node:
        await node.open("s1")
        run = await node.send("s1", "one")
        await settle()
        node.loaded("s1").start_tool()
        fence(node)
        await settle()
        node.may_serve = True
        assert (await run.wait()).status is TurnStatus.INTERRUPTED
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED


async def test_what_another_node_has_taken_meanwhile_stays_there() -> None:
    async with scripted_node(patience=Watched()) as node:
        await node.open("s1")
        run = await node.send("s1", "one")
        await settle()
        fence(node)
        await node.stores.coordination.leave(node.incarnation)
        await node.stores.coordination.join(Node("b", "b-1"), 1e9)
        lease = await node.stores.coordination.acquire(KEY, "b-1")
        await node.stores.files.raise_epoch(KEY, lease.epoch if lease else 0)
        node.incarnation = "a-2"
        await node.join()
        node.may_serve = True
        row = await run.wait()
        assert row.status is TurnStatus.INTERRUPTED
        assert node.prompts("s1") == []
        with pytest.raises(SessionBusy):
            await node.service.delete(ALICE, "s1")
        await node.stores.coordination.leave("b-1")


async def test_idle_sessions_are_unloaded_in_time_or_their_runtime_is_killed() -> None:
    async with scripted_node(max_sessions=1) as node:
        await node.open("s1")
        await node.say("s1", "one")
        (runtime,) = node.pool.runtimes
        # In time: the runtime lives on.
        with loop_clock() as clock:
            node.service.give_up_all("the script says so", within=60.0)
            await settle()
            assert runtime.sessions == {}
            clock.advance(60.0)
            await settle()
        assert not runtime.lost.is_set()
        await node.say("s1", "two")
        # Not in time.
        runtime.held.add("session.detach")
        node.service.give_up_all("the script says so", within=0.05)
        await until(runtime.lost.is_set)
        runtime.release("session.detach")


async def test_a_paused_node_sends_and_stores_nothing_when_it_wakes() -> None:
    """Nothing has told it yet: no timer, no heartbeat."""
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        run = await node.send("s1", "two")
        await settle()
        stored = node.event_types("s1")
        node.may_serve = False
        await node.loaded("s1").answer()
        await settle()
        assert node.event_types("s1") == stored
        assert (await run.wait()).status is TurnStatus.INTERRUPTED
