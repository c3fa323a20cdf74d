"""The work that concerns all sessions is one node's at a time, and nothing of nodes that have gone stays behind."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace

import pytest

from aerodrome.coordination.ports import Node
from aerodrome.errors import Conflict, NotFound, StoreUnavailable
from aerodrome.model import SessionKey, SessionKind, TurnStatus, valid_name
from aerodrome.sessions import recovery
from aerodrome.sessions.janitor import LEASE
from support.scripted_node import ALICE, MemoryFiles, ScriptedNode, scripted_node, settle

pytestmark = pytest.mark.timeout(30)

KEY = SessionKey("acme", "s1")


def watched(node: ScriptedNode) -> list[str]:
    """What of the work for all nodes this one does."""
    done: list[str] = []
    expire, unfinished = node.janitor.delete_expired, node.service.recover

    async def delete_expired() -> int:
        done.append("expire")
        return await expire()

    async def recover() -> int:
        done.append("recover")
        return await unfinished()

    node.janitor.delete_expired = delete_expired  # type: ignore[method-assign]
    node.service.recover = recover  # type: ignore[method-assign]
    return done


async def test_one_node_at_a_time_cleans_up_and_a_dead_one_is_replaced() -> None:
    assert not valid_name(LEASE.tenant)
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        by_a, by_b = watched(a), watched(b)
        for _ in range(3):
            await a.janitor.sweep()
            await b.janitor.sweep()
        assert by_a == ["expire", "recover"] * 3
        assert by_b == []
        await a.stores.coordination.leave(a.incarnation)
        await b.janitor.sweep()
        assert by_b == ["expire", "recover"]
        # Who was held for dead is no longer the one, whatever it believes.
        a.incarnation = "a-2"
        await a.join()
        by_a.clear()
        await a.janitor.sweep()
        assert by_a == []


async def test_a_node_that_cannot_tell_whether_its_leases_hold_leaves_the_work() -> None:
    async with scripted_node() as a:
        by_a = watched(a)
        a.may_serve = False
        await a.janitor.sweep()
        assert by_a == []


async def test_what_is_loaded_here_is_looked_after_by_every_node() -> None:
    async with scripted_node(idle_timeout=10.0) as a, scripted_node(a.stores, name="b", idle_timeout=10.0) as b:
        await a.janitor.sweep()
        await b.open("s1")
        await b.say("s1", "one")
        b.clock.advance(11.0)
        await b.janitor.sweep()
        assert b.resident == 0


async def test_the_running_turns_of_a_vanished_node_are_reported_by_whoever_cleans_up() -> None:
    async with scripted_node() as a:
        await a.open("s1")
        run = await a.send("s1", "one")
        await settle()
        await a.stop()
        async with scripted_node(a.stores, name="b") as b:
            await b.janitor.sweep()
            row = b.ledger_row(run)
            assert row is not None
            assert row.status is TurnStatus.RUNNING, "its node may live"
            await a.stores.coordination.leave(a.incarnation)
            await b.janitor.sweep()
            row = b.ledger_row(run)
            assert row is not None
            assert row.status is TurnStatus.INTERRUPTED


async def test_the_turns_of_an_earlier_life_are_left_to_a_node_that_says_so() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await a.open("s1")
        run = await a.send("s1", "one")
        await settle()
        await a.stores.coordination.leave(a.incarnation)
        await a.stores.coordination.join(Node("a", "a-2", load={recovery.EARLIER: [a.incarnation]}), 1e9)
        a.incarnation = "a-2"
        a.service.give_up_all("held for dead")
        await settle()
        await b.janitor.sweep()
        await a.loaded("s1").answer()
        assert (await run.wait()).status is TurnStatus.COMPLETED


async def test_nobody_is_held_for_gone_while_an_emptied_store_fills_up_again() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await a.open("s1")
        run = await a.send("s1", "one")
        await settle()
        # Of a process of b's name that was killed before this one was started: its place is ours.
        await a.stores.ledger.accept(replace(run.row, id="t", incarnation="b-0"))
        for node in (a, b):
            await a.stores.coordination.leave(node.incarnation)
        assert await b.service.recover() == 0, "a list without ourselves says nothing of others"
        await b.join()
        b.settled = False
        assert await b.service.recover() == 1
        left = await a.stores.ledger.get(KEY, "t")
        assert left is not None
        assert left.status is TurnStatus.INTERRUPTED
        await a.join()
        b.settled = True
        assert await b.service.recover() == 0
        await a.loaded("s1").answer()
        assert (await run.wait()).status is TurnStatus.COMPLETED


async def test_who_cleaned_up_leaves_that_to_others_when_it_stops() -> None:
    async with scripted_node() as a:
        await a.janitor.sweep()
        assert await a.stores.coordination.holder(LEASE) is not None
        running = asyncio.create_task(a.janitor.run())
        await settle()
        running.cancel()
        await settle()
        assert await a.stores.coordination.holder(LEASE) is None


@pytest.mark.parametrize("page", [1, 100])
async def test_what_is_left_of_a_session_without_a_row_is_cleared_away(
    page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_LOOKED_AT", page)
    async with scripted_node() as a:
        for session_id in ("s0", "s1", "s2"):
            await a.open(session_id)
            await a.say(session_id, "one")
        for live in a.service.live:
            await a.service.hibernate(live)
        await settle()
        # As a paused node leaves it: the row is gone, and files and a turn were written behind the deletion.
        for session_id in ("s1", "s2"):
            await a.remove_row(session_id)
        for _ in range(4):
            await a.janitor.sweep()
            await settle()
        assert a.nothing_left("s1")
        assert a.nothing_left("s2")
        assert a.prompts("s0") == ["one"]
        assert (await a.say("s0", "two")).status is TurnStatus.COMPLETED


async def test_a_turn_that_was_accepted_behind_a_deletion_is_cleared_away() -> None:
    async with scripted_node() as a:
        await a.open("s1")
        run = await a.send("s1", "one")
        await settle()
        await a.loaded("s1").answer()
        row = await run.wait()
        await a.service.delete(ALICE, "s1")
        await a.stores.ledger.accept(replace(row, id="late"))
        await a.janitor.sweep()
        await settle()
        assert a.nothing_left("s1")


async def test_a_session_that_is_opened_again_meanwhile_stays() -> None:
    async with scripted_node() as a:
        await a.open("s1")
        await a.say("s1", "one")
        await a.service.hibernate(a.service.live[0])
        await settle()
        (row,) = (await a.stores.directory.list("acme")).rows
        await a.remove_row("s1")
        acquire = a.stores.coordination.acquire

        async def opened_first(*args: object, **kwargs: object) -> object:
            await a.stores.directory.insert(row)
            return await acquire(*args, **kwargs)  # type: ignore[arg-type]

        a.stores.coordination.acquire = opened_first  # type: ignore[method-assign, assignment]
        await a.janitor.sweep()
        a.stores.coordination.acquire = acquire  # type: ignore[method-assign]
        assert a.prompts("s1") == ["one"]


async def test_a_deletion_that_was_cut_short_can_be_repeated_on_another_node() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await a.open("s1")
        await a.say("s1", "one")
        a.stores.slow_directory.held.add("remove")
        deleting = a.tasks.start(a.service.delete(ALICE, "s1"), "delete")
        await settle()
        deleting.cancel()
        await a.stop()
        a.stores.slow_directory.let_go("remove")
        await a.stores.coordination.leave(a.incarnation)
        assert (await b.service.get(ALICE, "s1")).key == KEY
        await b.service.delete(ALICE, "s1")
        assert b.nothing_left("s1")
        with pytest.raises(NotFound):
            await b.service.get(ALICE, "s1")


def undeletable(node: ScriptedNode, error: Exception, *sessions: str) -> None:
    """Have the store refuse to delete their files, in whatever way."""
    delete = MemoryFiles.delete_session

    async def delete_session(key: SessionKey, epoch: int, created_at: float) -> None:
        if key.id in sessions:
            # Not the same one each time: its traceback would grow with each, and be told in the log each time.
            raise type(error)(*error.args)
        await delete(node.stores.files, key, epoch, created_at)

    node.stores.files.delete_session = delete_session  # type: ignore[method-assign]


ERRORS = [
    StoreUnavailable("it is away"),
    Conflict("it is a link"),
    NotADirectoryError(errno.ENOTDIR, "not a directory"),
    RecursionError("too deep"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_a_session_that_cannot_be_deleted_keeps_no_other_from_expiring(error: Exception) -> None:
    async with scripted_node(ttl=100.0) as a:
        for session_id in ("bad", "s1", "s2"):
            await a.open(session_id)
            a.clock.advance(1.0)
        undeletable(a, error, "bad")
        a.clock.advance(101.0)
        await a.janitor.sweep()
        assert [row.key.id for row in (await a.stores.directory.list("acme")).rows] == ["bad"]
        undeletable(a, error)
        await a.janitor.sweep()
        assert (await a.stores.directory.list("acme")).rows == []


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_remains_that_cannot_be_cleared_keep_no_others(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_LOOKED_AT", 2)
    async with scripted_node() as a:
        for session_id in ("s0", "s1", "s2", "s3"):
            await a.open(session_id)
            await a.say(session_id, "one")
        for live in a.service.live:
            await a.service.hibernate(live)
        await settle()
        for session_id in ("s0", "s1", "s2", "s3"):
            await a.remove_row(session_id)
        undeletable(a, error, "s0")
        for _ in range(4):
            await a.janitor.sweep()
            await settle()
        assert [session_id for session_id in ("s0", "s1", "s2", "s3") if not a.nothing_left(session_id)] == ["s0"]
        undeletable(a, error)
        for _ in range(4):
            await a.janitor.sweep()
            await settle()
        assert a.nothing_left("s0")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_an_ephemeral_session_that_cannot_be_deleted_keeps_no_other(error: Exception) -> None:
    async with scripted_node() as a:
        ids = ("bad", "good")
        undeletable(a, error, *ids)
        for session_id in ids:
            await a.open(session_id, kind=SessionKind.EPHEMERAL)
            await a.say(session_id, "one")
        await settle()
        undeletable(a, error, "bad")
        await a.janitor.sweep()
        await settle()
        assert [session_id for session_id in ids if not a.nothing_left(session_id)] == ["bad"]
        undeletable(a, error)
        await a.janitor.sweep()
        await settle()
        assert a.nothing_left("bad")
