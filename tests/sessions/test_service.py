"""The sessions of a node as its front doors see them, over scripted runtimes: deletion, ephemeral sessions, room,
drain, recovery, events. `scripted_node` checks at the end that every place was given back and no task is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import structlog

from aerodrome.coordination.ports import Node
from aerodrome.errors import (
    AerodromeError,
    Capacity,
    Conflict,
    Draining,
    Invalid,
    NotFound,
    SessionBusy,
    StoreUnavailable,
)
from aerodrome.model import OnBusy, RuntimeKey, SessionKey, SessionKind, SessionRow, SessionState, TurnStatus
from aerodrome.sessions import books
from aerodrome.sessions.api import Ask, OpenSession, SendMessage
from aerodrome.sessions.attachments import Attachment
from aerodrome.sessions.hub import Channel
from aerodrome.sessions.janitor import LEASE
from aerodrome.sessions.machine import State
from aerodrome.sessions.run import TurnRun
from support.loop_clock import loop_clock
from support.scripted_node import ALICE, BOB, ScriptedNode, Stores, scripted_node, settle
from support.waiting import until


async def make_room(node: ScriptedNode) -> bool:
    assert node.pool.make_room is not None
    return await node.pool.make_room(RuntimeKey("acme", None))


async def empty_runtime(node: ScriptedNode) -> bool:
    assert node.pool.empty_runtime is not None
    return await node.pool.empty_runtime(None)


async def running(node: ScriptedNode, session_id: str = "s1", prompt: str = "one") -> TurnRun:
    run = await node.send(session_id, prompt)
    await settle()
    assert node.loaded(session_id).turn == [prompt]
    return run


async def ended(run: TurnRun) -> TurnStatus:
    assert await run.over(timeout=20), "the turn never ends"
    return (await run.wait()).status


async def idle(node: ScriptedNode, *session_ids: str) -> None:
    """Make these sessions resident."""
    for session_id in session_ids:
        await node.open(session_id)
        await node.say(session_id, f"hello of {session_id}")
        node.clock.advance(1.0)


# --- deletion ---


async def test_a_session_is_deleted_with_all_that_runs_and_waits_in_it() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        reader = await node.service.events(ALICE, "s1")
        runs = [await running(node), await node.send("s1", "two"), await node.send("s1", "three")]
        await node.service.delete(ALICE, "s1")
        assert {await ended(run) for run in runs} == {TurnStatus.FAILED}
        assert {run.row.error["code"] for run in runs if run.row.error} == {"not_found"}
        assert [event.type async for event in reader][-3:] == ["assistant.turn_start", "session.error", "session.idle"]
        await settle()
        assert node.nothing_left("s1")
        assert node.places == 0
        with pytest.raises(NotFound):
            await node.service.get(ALICE, "s1")


@pytest.mark.parametrize("moment", ["accept", "acquire", "session.create", "slot", "place"])
async def test_a_session_is_deleted_whatever_its_turn_waits_for(moment: str) -> None:
    async with scripted_node(max_turns=1) as node:
        await idle(node, "s0")
        await node.open("s1")
        if moment == "slot":
            await running(node, "s0")
        node.pool.held = moment == "place"
        if moment == "session.create":
            node.runtime.held.add(moment)
        stores = [node.stores.slow_ledger, node.stores.slow_coordination, node.stores.slow_directory]
        for store in stores:
            store.held.add(moment)
        sending = asyncio.create_task(node.send("s1", "one"))
        await settle()
        deleting = asyncio.create_task(node.service.delete(ALICE, "s1"))
        await settle()
        for store in stores:
            store.let_go(moment)
        await deleting
        with pytest.raises(NotFound):
            # Not recorded, or recorded and then deleted.
            raise_for_error(await sending)
        node.runtime.release("session.create")
        await settle()
        assert node.nothing_left("s1")
        if moment == "slot":
            await node.loaded("s0").answer()


def raise_for_error(run: TurnRun) -> None:
    assert run.ended
    assert run.row.error is not None
    if run.row.error["code"] == "not_found":
        raise NotFound(run.row.error["detail"])


async def test_while_a_session_is_deleted_it_takes_nothing() -> None:
    async with scripted_node() as node:
        await idle(node, "s1")
        node.stores.slow_files.held.add("delete_session")
        deleting = asyncio.create_task(node.service.delete(ALICE, "s1"))
        again = asyncio.create_task(node.service.delete(ALICE, "s1"))
        await settle()
        with pytest.raises(NotFound):
            await node.send("s1", "two")
        node.stores.slow_files.let_go("delete_session")
        await asyncio.gather(deleting, again)
        # The second deletion was the first: nothing is deleted of what is opened now.
        await node.open("s1")
        assert (await node.say("s1", "anew")).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["anew"]


async def test_a_deletion_goes_on_when_its_caller_has_gone() -> None:
    async with scripted_node() as node:
        await idle(node, "s1")
        node.stores.slow_files.held.add("delete_session")
        deleting = asyncio.create_task(node.service.delete(ALICE, "s1"))
        await settle()
        deleting.cancel()
        await asyncio.wait({deleting})
        node.stores.slow_files.let_go("delete_session")
        await settle()
        assert node.nothing_left("s1")


@pytest.mark.parametrize("call", ["delete_session", "forget", "remove"])
async def test_a_deletion_that_the_store_refuses_can_be_repeated(call: str) -> None:
    async with scripted_node() as node:
        await idle(node, "s1")
        slow = node.stores
        stores = [slow.slow_files, slow.slow_ledger, slow.slow_coordination, slow.slow_directory]
        for store in stores:
            store.fails.add(call)
        with pytest.raises(StoreUnavailable):
            await node.service.delete(ALICE, "s1")
        for store in stores:
            store.fails.clear()
        await node.service.delete(ALICE, "s1")
        await settle()
        assert node.nothing_left("s1")


async def test_a_session_that_another_node_runs_is_not_deleted_under_it() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await idle(a, "s1")
        run = await running(a)
        with pytest.raises(SessionBusy):
            await b.service.delete(ALICE, "s1")
        await a.loaded("s1").answer()
        assert await ended(run) is TurnStatus.COMPLETED


async def test_a_session_deleted_by_another_node_is_not_brought_back() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await a.open("s1")
        a.pool.held = True
        run = await a.send("s1", "one")
        await settle()
        await b.service.delete(ALICE, "s1")
        a.pool.let_go()
        assert await ended(run) is TurnStatus.FAILED
        await settle()
        assert a.nothing_left("s1")
        assert a.places == 0


# --- ephemeral sessions ---

Trouble = Callable[[ScriptedNode], Awaitable[None]]


async def answer(node: ScriptedNode) -> None:
    (session,) = node.runtime.sessions.values()
    await session.answer()


async def fail(node: ScriptedNode) -> None:
    (session,) = node.runtime.sessions.values()
    await session.fail()


async def abort(node: ScriptedNode) -> None:
    (live,) = node.service.live
    assert await node.service.abort(ALICE, live.row.key.id)


async def lose(node: ScriptedNode) -> None:
    for _ in range(2):
        node.runtime.kill("gone")
        await settle()


async def refuse_writes(node: ScriptedNode) -> None:
    node.stores.slow_files.fails.add("append")
    await answer(node)
    node.stores.slow_files.fails.clear()


async def drain(node: ScriptedNode) -> None:
    await node.service.drain(0.0)
    assert is_empty(node.stores)  # the stores are closed next


async def delete(node: ScriptedNode) -> None:
    (live,) = node.service.live
    await node.service.delete(ALICE, live.row.key.id)


def is_empty(stores: Stores) -> bool:
    leases = stores.coordination._leases.keys() - {LEASE}
    remembered = (stores.directory._rows, leases, stores.ledger._rows)
    return not (any(remembered) or stores.files.files or stores.files.epochs)


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        (answer, TurnStatus.COMPLETED),
        (fail, TurnStatus.FAILED),
        (abort, TurnStatus.ABORTED),
        (lose, TurnStatus.INTERRUPTED),
        (refuse_writes, TurnStatus.FAILED),
        (drain, TurnStatus.INTERRUPTED),
        (delete, TurnStatus.FAILED),
    ],
)
async def test_nothing_remains_of_a_question_however_it_ends(trouble: Trouble, status: TurnStatus) -> None:
    async with scripted_node() as node:
        run = await node.service.ask(ALICE, Ask("what?"))
        await settle()
        await trouble(node)
        assert await ended(run) is status
        assert is_empty(node.stores)  # at the moment in which it is told
        await settle()
        assert is_empty(node.stores)
        assert node.places == 0
        assert not any(runtime.sessions for runtime in node.pool.runtimes)


async def test_nothing_remains_of_a_question_that_finds_no_room() -> None:
    async with scripted_node() as node:
        node.pool.failure = Capacity("full")
        run = await node.service.ask(ALICE, Ask("what?"))
        assert await ended(run) is TurnStatus.FAILED
        assert is_empty(node.stores)


async def test_nothing_remains_of_a_question_that_cannot_be_recorded() -> None:
    async with scripted_node() as node:
        node.stores.slow_ledger.fails.add("accept")
        with pytest.raises(StoreUnavailable):
            await node.service.ask(ALICE, Ask("what?"))
        await settle()
        assert is_empty(node.stores)


@pytest.mark.parametrize("call", ["insert", "accept"])
async def test_nothing_remains_of_a_question_whose_caller_goes_away(call: str) -> None:
    async with scripted_node(cancel_on_disconnect=True) as node:
        stores = [node.stores.slow_ledger, node.stores.slow_coordination, node.stores.slow_directory]
        for store in stores:
            store.held.add(call)
        asking = asyncio.create_task(node.service.ask(ALICE, Ask("what?")))
        await settle()
        asking.cancel()
        await asyncio.wait({asking})
        for store in stores:
            store.let_go(call)
        await settle()
        assert is_empty(node.stores)


async def test_what_the_store_does_not_delete_at_once_is_deleted_later() -> None:
    async with scripted_node() as node:
        run = await node.service.ask(ALICE, Ask("what?"))
        await settle()
        node.stores.slow_files.fails.add("delete_session")
        await answer(node)
        assert await ended(run) is TurnStatus.COMPLETED
        assert not is_empty(node.stores)
        await node.janitor.sweep()
        node.stores.slow_files.fails.clear()
        await node.janitor.sweep()
        await settle()
        assert is_empty(node.stores)


async def test_an_ephemeral_session_takes_one_prompt() -> None:
    async with scripted_node() as node:
        await node.open("once", SessionKind.EPHEMERAL)
        run = await running(node, "once")
        for on_busy in OnBusy:
            with pytest.raises(Conflict):
                await node.send("once", "two", on_busy=on_busy)
        await node.loaded("once").answer()
        assert await ended(run) is TurnStatus.COMPLETED
        with pytest.raises(NotFound):
            await node.send("once", "three")


async def test_after_a_crash_a_question_is_deleted_and_not_reported() -> None:
    async with scripted_node() as crashed:
        await crashed.service.ask(ALICE, Ask("what?"))
        await settle()
        await crashed.stop()
        stores = crashed.stores
        await stores.coordination.leave(crashed.incarnation)
        async with scripted_node(stores, name="b") as node:
            assert await node.service.recover() == 1
            await settle()
            assert is_empty(stores)
        for runtime in crashed.pool.started:
            runtime.reserved = 0


# --- room ---


async def test_the_least_recently_used_idle_session_makes_room() -> None:
    async with scripted_node(max_sessions=2, max_runtimes=1) as node:
        await idle(node, "a", "b")
        await node.say("a", "used again")
        await idle(node, "c")
        assert {live.row.key.id for live in node.service.live} == {"a", "c"}
        run = await running(node, "a")
        await idle(node, "d")
        assert {live.row.key.id for live in node.service.live} == {"a", "d"}
        await node.loaded("a").answer()
        assert await ended(run) is TurnStatus.COMPLETED
        assert (node.places, node.resident) == (2, 2)


async def test_a_whole_runtime_is_emptied_only_when_all_its_sessions_are_idle() -> None:
    async with scripted_node(max_sessions=5, max_runtimes=1) as node:
        await idle(node, "a", "b")
        run = await running(node, "a")
        assert await empty_runtime(node) is False
        await node.loaded("a").answer()
        await ended(run)
        await settle()
        assert await empty_runtime(node) is True
        assert node.places == 0
        assert await empty_runtime(node) is False


async def test_room_is_made_by_another_session_when_the_first_is_taken_meanwhile() -> None:
    async with scripted_node() as node:
        await idle(node, "a", "b")
        node.runtime.held.add("session.detach")
        first = asyncio.create_task(make_room(node))
        await settle()
        # The first is on its way out; a second request takes the other.
        second = asyncio.create_task(make_room(node))
        await settle()
        node.runtime.release("session.detach")
        assert await first is True
        assert await second is True
        assert node.places == 0


async def test_a_session_that_is_being_loaded_never_blocks_those_who_look_for_room() -> None:
    async with scripted_node() as node:
        await idle(node, "a")
        node.runtime.kill("gone")
        await settle()
        node.pool.held = True
        run = await node.send("a", "two")
        await settle()
        assert node.service.live[0].state is State.WAKING
        assert await node.service.hibernate(node.service.live[0]) is False
        assert await make_room(node) is False
        node.pool.let_go()
        await settle()
        await node.loaded("a").answer()
        assert await ended(run) is TurnStatus.COMPLETED


async def test_hibernating_goes_on_when_whoever_asked_for_it_has_gone() -> None:
    async with scripted_node() as node:
        await idle(node, "a")
        node.runtime.held.add("session.detach")
        asked = asyncio.create_task(node.service.hibernate(node.service.live[0]))
        await settle()
        asked.cancel()
        await asyncio.wait({asked})
        run = await node.send("a", "two")
        await settle()
        node.runtime.release("session.detach")
        await settle()
        await node.loaded("a").answer()
        assert await ended(run) is TurnStatus.COMPLETED
        assert (node.places, node.resident) == (1, 1)


async def test_a_runtime_lost_while_a_session_is_hibernated() -> None:
    async with scripted_node() as node:
        await idle(node, "a")
        node.runtime.held.add("session.detach")
        hibernating = asyncio.create_task(node.service.hibernate(node.service.live[0]))
        await settle()
        node.runtime.kill("gone")
        assert await hibernating is True
        assert node.places == 0
        assert (await node.say("a", "two")).status is TurnStatus.COMPLETED
        assert node.prompts("a") == ["hello of a", "two"]


async def test_a_session_that_does_not_unload_is_void_and_never_attached_to_again() -> None:
    async with scripted_node() as node:
        await idle(node, "a")
        node.runtime.refusals.append("session.detach")
        assert await node.service.hibernate(node.service.live[0]) is True
        assert node.runtime.sessions == {}
        assert (await node.say("a", "two")).status is TurnStatus.COMPLETED
        assert node.prompts("a") == ["hello of a", "two"]


async def test_idle_sessions_hibernate_after_their_time_and_busy_ones_do_not() -> None:
    async with scripted_node(idle_timeout=60.0) as node:
        await idle(node, "a", "b")
        run = await running(node, "b", "two")
        node.clock.advance(61.0)
        assert await node.janitor.hibernate_idle() == 1
        await node.loaded("b").answer()
        await ended(run)
        assert await node.janitor.hibernate_idle() == 0


async def test_expiry_counts_from_the_last_use_and_frees_what_a_crash_left_as_running() -> None:
    async with scripted_node(ttl=100.0) as node:
        for name in ("old", "used", "busy", "stuck"):
            await idle(node, name)
            await node.service.hibernate(node.service.live[0])
        await node.stores.directory.update(SessionKey("acme", "stuck"), state=SessionState.RUNNING)
        run = await running(node, "busy", "two")
        node.clock.advance(101.0)
        await node.say("used", "still needed")
        assert await node.janitor.delete_expired() == 2
        assert {row.key.id for row in (await node.stores.directory.list("acme")).rows} == {"used", "busy"}
        await node.loaded("busy").answer()
        assert await ended(run) is TurnStatus.COMPLETED


async def test_more_sessions_than_a_page_expire_in_one_sweep() -> None:
    async with scripted_node(ttl=100.0) as node:
        for number in range(230):
            await node.open(f"s{number}")
        node.clock.advance(101.0)
        assert await node.janitor.delete_expired() == 230


async def test_sessions_that_another_node_has_keep_no_later_ones_from_expiring() -> None:
    async with scripted_node(ttl=100.0) as node:
        directory, coordination = node.stores.directory, node.stores.coordination
        await coordination.join(Node("other", "o-1"), 1e9)
        for number in range(150):
            row = SessionRow(SessionKey("acme", f"theirs-{number}"), "alice", last_used_at=1.0)
            await directory.insert(row)
            await coordination.acquire(row.key, "o-1")
        for number in range(80):
            await directory.insert(SessionRow(SessionKey("acme", f"free-{number}"), "alice", last_used_at=2.0))
        assert await node.janitor.delete_expired() == 80
        assert await directory.count() == 150
        await coordination.leave("o-1")
        assert await node.janitor.delete_expired() == 150


async def test_a_sweep_does_the_rest_when_one_thing_fails() -> None:
    async with scripted_node(idle_timeout=60.0, ttl=100.0) as node:
        await idle(node, "a")
        node.stores.slow_directory.fails.add("unused_since")
        node.stores.slow_ledger.fails.add("unfinished")
        node.clock.advance(61.0)
        await node.janitor.sweep()
        assert node.service.live == []


# --- drain, death, recovery ---


async def test_a_drain_lets_turns_end_and_ends_those_that_do_not() -> None:
    async with scripted_node() as node:
        await idle(node, "a", "b", "c")
        quick, slow = await running(node, "a"), await running(node, "b")
        queued = await node.send("b", "two", idempotency_key="k")
        with loop_clock() as clock:
            draining = asyncio.create_task(node.service.drain(60.0))
            await settle()
            with pytest.raises(Draining):
                await node.send("a", "more")
            with pytest.raises(Draining):
                await node.service.events(ALICE, "a")
            await node.loaded("a").answer()
            await settle()
            assert not draining.done()
            clock.advance(60.0)
            await draining
        assert await ended(quick) is TurnStatus.COMPLETED
        for run in (slow, queued):
            assert await ended(run) is TurnStatus.INTERRUPTED
            assert run.row.error is not None
            assert run.row.error["code"] == "draining"
            recorded = node.ledger_row(run)
            assert recorded is not None
            assert recorded.status is TurnStatus.INTERRUPTED
        # What was never sent may be sent again, to another node.
        assert await node.stores.ledger.by_idempotency_key(queued.row.key, "k") is None
        assert node.service.live == []
        rows = (await node.stores.directory.list("acme")).rows
        assert {row.state for row in rows} == {SessionState.HIBERNATED}
        await settle()
        assert [await node.stores.coordination.holder(row.key) for row in rows] == [None] * 3


async def test_sessions_leave_a_draining_node_as_soon_as_they_are_quiet() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await idle(a, "s1", "s2")
        long = await running(a, "s1")
        readers = {name: await a.service.events(ALICE, name) for name in ("s1", "s2")}
        seen: dict[str, list[str]] = {name: [] for name in readers}

        async def read(name: str) -> None:
            async for event in readers[name]:
                seen[name].append(event.cursor)

        reading = {name: asyncio.create_task(read(name)) for name in readers}
        draining = asyncio.create_task(a.service.drain(30.0))
        await settle()
        # The one that is idle is free for others at once, and its reader is told.
        with pytest.raises(Draining):
            await reading["s2"]
        assert (await b.say("s2", "two")).status is TurnStatus.COMPLETED
        assert not draining.done()
        assert not reading["s1"].done()
        await a.loaded("s1").answer()
        await draining
        assert await ended(long) is TurnStatus.COMPLETED
        with pytest.raises(Draining):
            await reading["s1"]
        # With the last cursor the reader goes on at the other node, and has missed nothing.
        onward = await b.service.events(ALICE, "s1", after=seen["s1"][-1])
        assert not any(event.type == "aerodrome.gap" for event in onward.backlog)
        onward.close()
        assert (await b.say("s1", "three")).status is TurnStatus.COMPLETED
        assert b.prompts("s1") == ["hello of s1", "one", "three"]


async def test_other_nodes_pass_on_what_is_for_a_session_that_is_still_here_and_wake_none_up() -> None:
    async with scripted_node() as node:
        await idle(node, "s1", "s2")
        run = await running(node, "s1")
        draining = asyncio.create_task(node.service.drain(30.0))
        await settle()
        with pytest.raises(Draining):
            await node.service.native.session(ALICE, "s1")
        for session_id in ("s2", "s3"):
            with pytest.raises(Draining):
                await node.service.native.session(ALICE, session_id, leaving=True)
            with pytest.raises(Draining):
                await node.service.events_elsewhere(ALICE, session_id)
        live = await node.service.native.session(ALICE, "s1", leaving=True)
        events = await node.service.events_elsewhere(ALICE, "s1")
        node.runtime.held.add("session.detach")
        await node.loaded("s1").answer()
        await settle()
        # It is being put to sleep: who comes now does not wake it up again here.
        late = asyncio.create_task(live.awake())
        await settle()
        node.runtime.release("session.detach")
        with pytest.raises(Draining):
            await late
        await draining
        assert await ended(run) is TurnStatus.COMPLETED
        assert node.resident == 0
        with pytest.raises(Draining):
            assert [event.type async for event in events]


@pytest.mark.parametrize("native", [False, True])
async def test_whoever_asks_for_a_session_as_the_drain_begins_loads_nothing_behind_it(native: bool) -> None:
    async with scripted_node() as node:
        object.__setattr__(node.context, "alone", lambda: False)
        await node.open("s1")
        node.stores.slow_directory.held.add("get")
        asking = asyncio.create_task(node.service.native.session(ALICE, "s1") if native else node.send("s1", "hello"))
        await settle()
        await node.service.drain(0.0)
        node.stores.slow_directory.let_go("get")
        with pytest.raises(Draining):
            await asking
        assert (node.resident, node.places, node.service.live) == (0, 0, [])


async def test_a_drain_waits_until_nothing_is_left_of_questions() -> None:
    """The stores are closed behind it."""

    async def pause() -> None:
        await settle(10)

    async with scripted_node(pause=pause) as node:
        await node.service.ask(ALICE, Ask("what?"))
        await settle()
        await node.service.drain(0.0)
        assert is_empty(node.stores)


async def test_a_drain_while_the_store_is_away_ends_all_the_same() -> None:
    async with scripted_node() as node:
        await idle(node, "a")
        run = await running(node, "a")
        node.stores.slow_ledger.fails |= {"finish", "note"}
        node.stores.slow_directory.fails.add("update")
        node.stores.slow_coordination.fails.add("release")
        await node.service.drain(0.0)
        with pytest.raises(Draining):
            await run.wait()
        node.stores.slow_directory.fails.clear()
        node.stores.slow_coordination.fails.clear()
        await until(lambda: not node.tasks._tasks)  # what it could not give back it has given back now
        assert await node.stores.coordination.holder(SessionKey("acme", "a")) is None
        async with scripted_node(node.stores, name="b") as after:
            node.stores.slow_ledger.fails.clear()
            await node.stores.coordination.leave(node.incarnation)
            assert await after.service.recover() == 1
            recorded = node.ledger_row(run)
            assert recorded is not None
            assert recorded.status is TurnStatus.INTERRUPTED


async def test_a_node_that_stops_without_a_drain_leaves_nobody_waiting() -> None:
    async with scripted_node() as node:
        await idle(node, "a")
        runs = [await running(node, "a"), await node.send("a", "two")]
        await node.stop()
        for run in runs:
            with pytest.raises(Draining):
                await run.wait()


async def test_recovery_reports_the_turns_of_the_dead_and_nobody_elses() -> None:
    async with scripted_node() as living, scripted_node(living.stores, name="dead") as crashed:
        stores = living.stores
        await living.open("ours")
        kept = await running(living, "ours")
        await crashed.open("theirs")
        lost = await running(crashed, "theirs")
        waiting = await crashed.send("theirs", "two", idempotency_key="k")
        await crashed.stop()
        await stores.coordination.leave(crashed.incarnation)
        async with scripted_node(stores, name="b") as node:
            assert await node.service.recover() == 2
            assert await node.service.recover() == 0
        for run in (lost, waiting):
            row = living.ledger_row(run)
            assert row is not None
            assert row.status is TurnStatus.INTERRUPTED
        assert (await stores.ledger.by_idempotency_key(waiting.row.key, "k")) is None
        directory = await stores.directory.get(SessionKey("acme", "theirs"))
        assert directory is not None
        assert (directory.state, directory.last_turn and directory.last_turn.id) == (
            SessionState.HIBERNATED,
            waiting.id,
        )
        await living.loaded("ours").answer()
        assert await ended(kept) is TurnStatus.COMPLETED
        for runtime in crashed.pool.started:
            runtime.reserved = 0


async def test_a_turn_that_was_left_behind_is_not_the_last_of_a_session_that_has_gone_on() -> None:
    async with scripted_node() as living, scripted_node(living.stores, name="dead") as crashed:
        await crashed.open("s1")
        lost = await running(crashed, "s1")
        await crashed.stop()
        await living.stores.coordination.leave(crashed.incarnation)
        living.clock.advance(1)
        later = await living.say("s1", "two")
        await settle()
        assert await living.service.recover() == 1
        assert living.ledger_row(lost).status is TurnStatus.INTERRUPTED  # type: ignore[union-attr]
        row = await living.stores.directory.get(SessionKey("acme", "s1"))
        assert row is not None
        assert row.last_turn is not None
        assert (row.last_turn.id, row.last_turn.status) == (later.id, TurnStatus.COMPLETED)
        for runtime in crashed.pool.started:
            runtime.reserved = 0


async def test_more_unfinished_turns_than_a_page_are_recovered() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        # Ours, and from an earlier life of this node: it comes first in every page and stays.
        node.stores.ledger._rows[run.row.key, run.id] = replace(run.row, incarnation="a-0")
        for number in range(2100):
            await node.stores.ledger.accept(replace(run.row, id=f"t{number}", incarnation="dead"))
        assert await node.service.recover() == 2100
        await node.loaded("s1").answer()
        assert await ended(run) is TurnStatus.COMPLETED


async def test_the_turns_of_a_node_that_comes_while_we_look_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_node() as node, scripted_node(node.stores, name="new") as new:
        await new.open("s1")
        await node.stores.coordination.leave(new.incarnation)
        unfinished = node.stores.ledger.unfinished
        accepted: list[TurnRun] = []

        async def look(*args: Any, **kwargs: Any) -> Any:
            if not accepted:
                await new.join()
                accepted.append(await running(new, "s1"))
            return await unfinished(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(node.stores.ledger, "unfinished", look)
            assert await node.service.recover() == 0
        await new.loaded("s1").answer()
        assert await ended(accepted[0]) is TurnStatus.COMPLETED
        assert new.ledger_row(accepted[0]).status is TurnStatus.COMPLETED  # type: ignore[union-attr]


async def test_the_rest_of_a_deletion_that_was_cut_short_is_removed() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        await node.stores.ledger.accept(replace(run.row, key=SessionKey("acme", "gone"), id="t", incarnation="dead"))
        assert await node.service.recover() == 1
        assert await node.stores.ledger.turns(SessionKey("acme", "gone")) == []


async def test_an_append_lasts_when_anybody_is_told_of_it_before_the_end_is_recorded() -> None:
    async with scripted_node() as node:
        await idle(node, "s1")
        files = node.stores.files
        assert files.lasting, "whoever has sent it may have a stream"
        await node.say("s1", "one", told_at_end=True)
        assert not files.lasting, "the record of the end lasts"
        reader = await node.service.events(ALICE, "s1")
        await node.say("s1", "two", told_at_end=True)
        assert files.lasting, "somebody follows the session"
        reader.close()
        run = await node.send("s1", "three", told_at_end=True)
        follower = run.events()
        await settle()
        await node.loaded("s1").answer()
        await run.wait()
        assert files.lasting, "somebody follows the turn, as who repeats a prompt under its key may"
        follower.close()
        run = await node.send("s1", "four", told_at_end=True)
        other = await node.send("s1", "five", on_busy=OnBusy.STEER)
        await settle()
        await node.loaded("s1").answer()
        await other.wait()
        assert files.lasting, "the runtime has another prompt, too"
        await node.say("s1", "six", told_at_end=True)
        assert not files.lasting
        await node.service.hibernate(node.service.live[0])
        assert files.lasting, "nothing is recorded behind it"


async def test_a_kept_prompt_is_recorded_with_its_message_while_its_turn_runs() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await node.service.native.send(ALICE, "s1", {"prompt": "one"})
        message_id = await run.taken()
        await node.service.native.keep(run)
        assert run.naming is None, "nobody records it once more"
        recorded = node.ledger_row(run)
        assert recorded is not None
        assert (recorded.message_id, recorded.status) == (message_id, TurnStatus.RUNNING)
        await node.loaded("s1").answer()
        assert await ended(run) is TurnStatus.COMPLETED


async def test_a_prompt_is_kept_also_while_it_is_sent_again() -> None:
    async with scripted_node() as node:
        await idle(node, "s1")
        run = await node.service.native.send(ALICE, "s1", {"prompt": "one"})
        await run.taken()
        node.pool.held = True
        node.runtime.kill("gone")
        node.pool.runtimes.clear()
        await settle()
        assert run.row.message_id is None
        await node.service.native.keep(run)
        recorded = node.ledger_row(run)
        assert recorded is not None
        assert recorded.retried
        node.pool.let_go()
        await settle()
        await node.loaded("s1").answer()
        assert await ended(run) is TurnStatus.COMPLETED


async def test_a_prompt_that_cannot_be_kept_is_recorded_later_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "NAMED_AFTER", 3600.0)
    async with scripted_node() as node:
        await node.open("s1")
        run = await node.service.native.send(ALICE, "s1", {"prompt": "one"})
        await run.taken()
        await settle()
        node.stores.slow_ledger.fails.add("note")
        with pytest.raises(StoreUnavailable):
            await node.service.native.keep(run)
        assert run.naming is not None, "somebody still will"
        node.stores.slow_ledger.fails.clear()
        await node.loaded("s1").answer()
        assert await ended(run) is TurnStatus.COMPLETED


class Assured:
    """An attachment that notes which of its prompts are in doubt."""

    tools: frozenset[str] = frozenset()
    passive = is_replay = forces_options = False

    def __init__(self) -> None:
        self.in_doubt: set[str] = set()
        #: First message id -> the latest, of prompts that were sent again.
        self.aliases: dict[str, str | None] = {}

    async def open(self, runtime: object, *, resume: bool) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None

    def doubt(self, message_ids: list[str]) -> None:
        self.in_doubt |= set(message_ids)

    def assured(self, message_ids: list[str]) -> None:
        self.in_doubt -= set(message_ids)

    def sent_again(self, first_id: str, latest_id: str | None) -> None:
        self.aliases[first_id] = latest_id


async def test_a_prompt_that_is_aborted_before_it_is_sent_again_is_in_doubt_no_more() -> None:
    async with scripted_node() as node:
        await idle(node, "s1")
        live = node.service.live[0]
        client = Assured()
        live._residency.attachments.add(cast("Attachment", client))
        run = await node.service.native.send(ALICE, "s1", {"prompt": "one"})
        message_id = await run.taken()
        node.pool.held = True
        node.runtime.kill("gone")
        node.pool.runtimes.clear()
        await settle()
        assert client.in_doubt == {message_id}
        assert await node.service.abort(ALICE, "s1")
        assert await ended(run) is TurnStatus.ABORTED
        assert client.in_doubt == set()
        live._residency.attachments.remove(cast("Attachment", client))
        node.pool.let_go()


async def test_clients_know_every_prompt_that_is_sent_again_by_its_first_id() -> None:
    """The first of them begins the new turn; the others are handed in while that runs."""
    async with scripted_node(max_runtimes=2) as node:
        await idle(node, "s1")
        live = node.service.live[0]
        client = Assured()
        live._residency.attachments.add(cast("Attachment", client))
        runs = [await node.service.native.send(ALICE, "s1", {"prompt": prompt}) for prompt in ("one", "two", "three")]
        first = [await run.taken() for run in runs]
        node.runtime.kill("gone")
        await settle()
        assert client.aliases == {known: run.row.message_id for known, run in zip(first, runs, strict=True)}
        assert all(run.row.message_id not in (None, known) for known, run in zip(first, runs, strict=True))
        await node.loaded("s1").answer()
        assert [await ended(run) for run in runs] == [TurnStatus.COMPLETED] * 3
        live._residency.attachments.remove(cast("Attachment", client))


async def test_a_runtime_that_hangs_between_turns_gets_no_prompt() -> None:
    async with scripted_node() as node:
        await idle(node, "s1")
        hung = node.runtime
        hung.hangs = hung.foreign = True
        run = await node.send("s1", "one")
        await settle()
        assert hung.lost.is_set()
        assert hung.asked("session.send") == 1, "the one before it hung"
        await node.loaded("s1").answer()
        assert await ended(run) is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["hello of s1", "one"]


async def test_a_node_that_was_held_for_dead_gives_its_sessions_up() -> None:
    async with scripted_node() as node:
        await idle(node, "a", "b")
        await node.open("c")
        run = await running(node, "a")
        node.runtime.held.add("session.create")
        waking = await node.send("c", "one")
        await settle()
        await node.stores.coordination.leave(node.incarnation)
        node.incarnation = "a-2"
        await node.join()
        (at_work,) = node.pool.runtimes
        node.service.give_up_all("held for dead")
        # Killed, because another node may run the session now: a tool would go on in it.
        assert at_work.lost.is_set()
        await settle()
        # No tool had run: sent again, once, under a lease of the new life.
        await node.loaded("a").answer()
        assert await ended(run) is TurnStatus.COMPLETED
        assert run.row.retried
        assert node.prompts("a") == ["hello of a", "one"]
        # The one that was being loaded under the old lease was loaded again under a new one.
        await node.loaded("c").answer()
        assert await ended(waking) is TurnStatus.COMPLETED
        holder = await node.stores.coordination.holder(SessionKey("acme", "c"))
        assert holder is not None
        assert holder.incarnation == "a-2"
        assert {live.row.key.id for live in node.service.live if live.activation} == {"a", "c"}
        assert node.places == 2


async def test_a_session_is_not_forgotten_while_it_is_being_unloaded() -> None:
    """A second object of the same session would load it again beside the unloading of the first."""
    async with scripted_node() as node:
        await idle(node, "a")
        node.runtime.held.add("session.detach")
        node.service.give_up_all("held for dead")
        await settle()
        await node.service.tidy()
        run = await node.send("a", "two")
        await settle()
        assert node.runtime.asked("session.resume") == 0
        node.runtime.release("session.detach")
        await settle()
        await node.loaded("a").answer()
        assert await ended(run) is TurnStatus.COMPLETED


async def test_a_fenced_session_is_told_as_interrupted() -> None:
    async with scripted_node() as node:
        await idle(node, "a")
        run = await running(node, "a")
        await node.stores.files.raise_epoch(SessionKey("acme", "a"), 1 << 60)
        await node.loaded("a").answer()
        assert await ended(run) is TurnStatus.INTERRUPTED
        assert run.row.error is not None
        assert run.row.error["code"] == "turn_interrupted"
        await node.stores.files.forget_session(SessionKey("acme", "a"), 1 << 60)


async def test_without_its_coordination_store_a_node_takes_and_sends_nothing() -> None:
    async with scripted_node() as node:
        await idle(node, "a")
        run = await running(node, "a")
        queued = await node.send("a", "two")
        node.may_serve = False
        with pytest.raises(StoreUnavailable):
            await node.send("a", "three")
        # The runtime has an answer, and it is not stored: another node may have the session by now.
        await node.loaded("a").answer()
        assert await ended(run) is TurnStatus.INTERRUPTED
        assert await ended(queued) is TurnStatus.FAILED
        assert node.runtime.asked("session.send") == 2
        node.may_serve = True
        assert (await node.say("a", "four")).status is TurnStatus.COMPLETED
        assert node.prompts("a") == ["hello of a", "four"]


async def test_a_session_is_taken_over_from_a_node_that_let_it_go() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await idle(a, "s1")
        run = await b.send("s1", "two")
        assert await ended(run) is TurnStatus.FAILED
        assert run.row.error is not None
        assert run.row.error["code"] == "session_busy"
        await a.service.hibernate(a.service.live[0])
        await settle()
        assert (await b.say("s1", "two")).status is TurnStatus.COMPLETED
        assert b.prompts("s1") == ["hello of s1", "two"]


async def test_a_session_that_could_not_be_loaded_is_free_for_other_nodes() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await idle(a, "s0")
        await a.open("s1")
        a.runtime.refusals += ["session.create"] * 2
        assert await ended(await a.send("s1", "one")) is TurnStatus.FAILED
        await settle()
        assert (await b.say("s1", "one")).status is TurnStatus.COMPLETED
        # Its runtime was told, which may say something of it.
        assert a.runtime.loads == [("s0", True), ("s1", False), ("s1", False)]
        assert b.runtime.loads == [("s1", True)]


# --- events ---


async def test_a_reader_that_comes_back_misses_nothing_over_a_hibernation() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        seen: list[str] = []
        reader = await node.service.events(ALICE, "s1")
        for number in range(4):
            await node.say("s1", f"p{number}")
            if number % 2:
                await node.service.hibernate(node.service.live[0])
            seen += [event.id for event in reader.backlog if not event.ephemeral]
            cursor = reader.backlog[-1].cursor
            reader.close()
            if number == 1:
                await node.service.tidy()  # nobody reads: the hub is forgotten
            reader = await node.service.events(ALICE, "s1", after=cursor)
        seen += [event.id for event in reader.backlog if not event.ephemeral]
        reader.close()
        stored = await node.service.events(ALICE, "s1", after=seen[0])
        assert seen == [seen[0], *(event.id for event in stored.backlog if not event.ephemeral)]
        stored.close()


async def test_an_unknown_cursor_is_a_gap_and_then_goes_on() -> None:
    async with scripted_node() as node:
        await idle(node, "s1")
        reader = await node.service.events(ALICE, "s1", after="never-was")
        await node.say("s1", "two")
        types = [event.type for event in reader.backlog]
        assert types[0] == "aerodrome.gap"
        assert types.count("user.message") == 1
        reader.close()


async def test_a_cursor_inside_a_turn_that_was_cut_back_goes_on_with_its_repetition() -> None:
    async with scripted_node() as node:
        await idle(node, "s1")
        reader = await node.service.events(ALICE, "s1")
        run = await running(node, prompt="two")
        await node.loaded("s1").flush()
        cursor = next(event.cursor for event in reader.backlog if event.type == "user.message")
        reader.close()
        node.runtime.kill("gone")
        await settle()
        await node.loaded("s1").answer()
        await ended(run)
        again = await node.service.events(ALICE, "s1", after=cursor)
        types = [event.type for event in again.backlog]
        assert types.index("aerodrome.turn_retried") < types.index("user.message") < types.index("session.idle")
        again.close()


async def test_a_woken_session_goes_on_where_its_history_ends() -> None:
    async with scripted_node() as node:
        await idle(node, "s1")
        await node.service.hibernate(node.service.live[0])
        await node.service.tidy()
        node.runtime.held.add("session.resume")
        await node.send("s1", "two")
        await settle()
        # An event that is not stored and comes before any that is has a cursor that can be found again.
        hub = node.service._sessions.hub(SessionKey("acme", "s1"))
        assert hub.position
        again = await node.service.events(ALICE, "s1", after=f"{hub.position}~unstored")
        assert again.backlog == ()
        again.close()
        node.runtime.release("session.resume")


async def test_a_session_that_is_renamed_right_behind_its_first_prompt_has_that_name() -> None:
    async with scripted_node() as node:
        await node.service.open_session(ALICE, OpenSession(id="s1", native={}))
        run = await node.service.native.send(ALICE, "s1", {"prompt": "what is this"})
        await settle()
        await node.service.retitle(ALICE, "s1", "mine")
        await node.loaded("s1").answer()
        await run.wait()
        (live,) = node.service.live
        assert await node.service.hibernate(live)
        assert (await node.service.get(ALICE, "s1")).title == "mine"


async def test_hubs_are_kept_for_readers_and_live_sessions_only() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        reader = await node.service.events(ALICE, "s1")
        hubs = node.service._sessions._hubs
        await node.service.tidy()
        assert len(hubs) == 1
        reader.close()
        await node.service.tidy()
        assert hubs == {}
        with pytest.raises(NotFound):
            await node.service.events(BOB, "s1")
        with pytest.raises(NotFound):
            await node.service.events(ALICE, "s2")
        assert hubs == {}


async def test_a_reader_of_a_session_that_is_deleted_as_it_comes_is_not_left_waiting() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.stores.slow_directory.held_after.add("get")
        coming = asyncio.create_task(node.service.events(ALICE, "s1"))
        await settle()
        # That one is held; those of the deletion are not.
        node.stores.slow_directory.held_after.discard("get")
        row = await node.stores.directory.get(SessionKey("acme", "s1"))
        assert row is not None
        await node.service._sessions.delete(row)
        node.stores.slow_directory.let_go("get")
        with pytest.raises(NotFound):
            await coming
        await node.service.tidy()
        assert node.service._sessions._hubs == {}


async def test_a_turn_s_events_are_told_again_from_its_first_or_behind_a_cursor() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "before")
        run = await running(node)
        queued = await node.send("s1", "behind")
        node.loaded("s1").emit("assistant.intent", ephemeral=True)
        assert await node.service.reading.turn_events(ALICE, "s1", "turn_unknown") is None

        async def again(turn: TurnRun, after: str | None = None) -> Channel:
            found = await node.service.reading.turn_events(ALICE, "s1", turn.id, after=after)
            assert found is not None
            assert found[0] is turn
            return found[1]

        whole, unbegun = await again(run), await again(queued)
        first, *others = whole.backlog
        assert first.type == "user.message"
        assert others[-1].type == "assistant.intent"
        behind = await again(run, others[-1].cursor)
        assert behind.backlog == ()
        await node.loaded("s1").answer()
        await ended(run)
        told = [event.type async for event in whole]
        assert told[-1] == "session.idle"
        assert [event.type async for event in behind] == told[told.index("assistant.intent") + 1 :]
        assert await node.service.reading.turn_events(ALICE, "s1", run.id) is None
        with pytest.raises(NotFound):
            await node.service.reading.turn_events(BOB, "s1", queued.id)
        await settle()
        await node.loaded("s1").answer()
        await ended(queued)
        told = [event.type async for event in unbegun]
        assert told[0] == "user.message"


# --- requests ---


async def test_a_request_that_nobody_answers_is_denied_and_said_so() -> None:
    async with scripted_node(request_timeout=0.01) as node:
        await node.open("s1")
        run = await running(node)
        reader = await node.service.events(ALICE, "s1")
        node.loaded("s1").emit("permission.requested", requestId="r1")
        types: list[str] = []
        async for event in reader:
            types.append(event.type)
            if event.type == "permission.completed":
                assert event.data["result"]["kind"] == "reject"
                break
        assert "aerodrome.request_expired" in types
        with pytest.raises(NotFound):
            await node.service.answer(ALICE, "s1", "r1", {"decision": "approve"})
        reader.close()
        await node.loaded("s1").answer()
        assert await ended(run) is TurnStatus.COMPLETED


async def test_a_request_is_answered_once_and_stays_open_when_the_runtime_refuses() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await running(node)
        node.loaded("s1").emit("permission.requested", requestId="r1")
        node.runtime.refusals.append("session.permissions.handlePendingPermissionRequest")
        with pytest.raises(AerodromeError):
            await node.service.answer(ALICE, "s1", "r1", {"decision": "approve"})
        await node.service.answer(ALICE, "s1", "r1", {"decision": "approve"})
        with pytest.raises(NotFound):
            await node.service.answer(ALICE, "s1", "r1", {"decision": "approve"})


# --- the rest ---


async def test_what_a_request_has_bound_for_the_log_does_not_stick_to_later_turns() -> None:
    bound: list[dict[str, object]] = []

    async def pause() -> None:
        bound.append(structlog.contextvars.get_contextvars())

    async with scripted_node(pause=pause) as node:
        node.pool.answer_by_themselves()
        await node.open("s1")
        with structlog.contextvars.bound_contextvars(request="first"):
            await ended(await node.send("s1", "one"))
            assert any("request" in each for each in bound)  # while we read the row for this caller
        bound.clear()
        run = await node.send("s1", "two")
        await ended(run)
        own = {"session": str(run.row.key), "tenant": run.row.key.tenant, "turn": run.id}
        assert own in bound
        assert all(each in ({}, own) for each in bound)


async def test_what_may_not_be_sent_is_refused_before_anything_is_recorded() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        with pytest.raises(Invalid):
            await node.send("s1", "look", attachments=[{"type": "file", "path": "/etc/passwd"}])
        with pytest.raises(NotFound):
            await node.service.send(BOB, "s1", SendMessage("hello"))
        assert node.stores.ledger._rows == {}


async def test_a_taken_id_is_not_found_for_others_and_the_same_session_for_its_owner() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        with pytest.raises(NotFound):
            await node.service.open_session(BOB, OpenSession(id="s1"))
        row, created = await node.service.open_session(ALICE, OpenSession(id="s1"))
        assert (row.key.id, created) == ("s1", False)
