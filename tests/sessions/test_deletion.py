"""Deletions of one node as others meet them. What pauses do to them is in tests/simulation/test_deletions.py."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aerodrome.coordination.ports import ClusterEvent
from aerodrome.errors import NotFound, SessionElsewhere
from aerodrome.model import Principal, Role, SessionKey, TurnStatus
from aerodrome.sessions.api import OpenSession
from aerodrome.sessions.hints import DELETED, MEMBERS
from aerodrome.sessions.takeout import Whose, eraser
from support.scripted_node import ALICE, BOB, Counting, ScriptedNode, scripted_node, settle

pytestmark = pytest.mark.timeout(30)

KEY = SessionKey("acme", "s1")


async def asleep(node: ScriptedNode, session_id: str = "s1") -> None:
    await node.open(session_id)
    await node.say(session_id, "one")
    for live in node.service.live:
        await node.service.hibernate(live)
    await settle()


async def cut_short(node: ScriptedNode, store: str, call: str) -> None:
    """The node dies in the middle of deleting the session."""
    unsteady = getattr(node.stores, store)
    unsteady.held_after.add(call)
    deleting = asyncio.create_task(node.service.delete(ALICE, "s1"))
    await settle()
    await node.stop()
    deleting.cancel()
    unsteady.let_go(call)
    await node.stores.coordination.leave(node.incarnation)
    await settle()


@pytest.mark.parametrize(
    ("store", "call"), [("slow_files", "delete_session"), ("slow_ledger", "forget")], ids=["files", "turns"]
)
async def test_a_prompt_finishes_a_deletion_that_was_cut_short(store: str, call: str) -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await asleep(a)
        await cut_short(a, store, call)
        assert KEY in a.stores.files.deleted
        assert await a.stores.directory.get(KEY) is not None
        run = await b.send("s1", "two")
        row = await run.wait()
        assert row.status is TurnStatus.FAILED
        assert row.error is not None
        assert row.error["code"] == "not_found"
        await settle()
        await b.service.tidy()
        assert await b.stores.directory.get(KEY) is None
        assert not b.stores.files.deleted
        # Its own turn came after the look at those that there were.
        await b.janitor.sweep()
        await settle()
        assert b.nothing_left("s1")


@pytest.mark.parametrize("call", ["remove"])
async def test_a_mark_that_outlives_its_session_is_in_nobodys_way(call: str) -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await asleep(a)
        await cut_short(a, "slow_directory", call)
        assert await a.stores.directory.get(KEY) is None
        assert KEY in a.stores.files.deleted
        b.clock.advance(1.0)
        await b.open("s1")
        assert (await b.say("s1", "anew")).status is TurnStatus.COMPLETED
        assert b.prompts("s1") == ["anew"]


async def test_a_mark_without_a_session_is_swept_away() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await asleep(a)
        await cut_short(a, "slow_directory", "remove")
        await b.janitor.sweep()
        await settle()
        assert b.nothing_left("s1")


async def test_whoever_was_faster_keeps_the_session() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await asleep(a)
        a.stores.slow_ledger.held.add("turn_ids")
        deleting = asyncio.create_task(a.service.delete(ALICE, "s1"))
        await settle()
        # Paused for too long: it is held for dead, and another node goes on with the session.
        await a.stores.coordination.leave(a.incarnation)
        assert (await b.say("s1", "two")).status is TurnStatus.COMPLETED
        a.stores.slow_ledger.let_go("turn_ids")
        with pytest.raises(SessionElsewhere):
            await deleting
        assert (await b.say("s1", "three")).status is TurnStatus.COMPLETED
        assert b.prompts("s1") == ["one", "two", "three"]


async def test_a_session_of_somebody_else_under_the_same_id_is_another_one() -> None:
    """What a node still has of one that was deleted elsewhere takes nothing of whoever opened the id anew."""
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await asleep(a)
        reader = await a.service.events(ALICE, "s1")
        live = a.service._sessions.ensure(await a.service.get(ALICE, "s1"))
        await b.service.delete(ALICE, "s1")
        b.clock.advance(1.0)
        await b.service.open_session(BOB, OpenSession(id="s1"))
        # On its way to the old one, a prompt does not get into the new one.
        with pytest.raises(NotFound):
            await live.awake()
        with pytest.raises(NotFound):
            await a.service.get(ALICE, "s1")
        assert a.service._sessions.ensure(await a.service.get(BOB, "s1")) is not live
        assert [event async for event in reader] == []


async def test_a_wake_up_asks_the_stores_no_more_often_than_it_has_to() -> None:
    async with scripted_node() as node:
        await asleep(node)
        stores = node.stores
        counted = {}
        for name in ("slow_coordination", "slow_directory", "slow_files"):
            unsteady = getattr(stores, name)
            counted[name] = unsteady._store = Counting(unsteady._store)
        await node.say("s1", "two")
        assert counted["slow_coordination"].calls["acquire"] == 1
        assert set(counted["slow_coordination"].calls) == {"acquire"}
        assert counted["slow_directory"].calls["get"] == 2  # who may, and whether it is still there
        assert (counted["slow_files"].calls["epoch"], counted["slow_files"].calls["raise_epoch"]) == (1, 1)


async def test_whoever_has_a_session_is_told_that_a_user_was_erased() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.service.set_member(ALICE, "s1", "bob", Role.READER)
        await node.service.open_session(Principal("acme", "bob"), OpenSession(id="s2"))
        told: list[ClusterEvent] = []
        node.stores.coordination.listen(told.append)
        stores: Any = node.stores  # its files are not the whole port
        async with eraser(stores, node.clock) as erasing:
            done = await erasing.erase_all(Whose("acme", "bob"))
        await settle()
        assert (done.memberships, done.sessions) == ([KEY], [SessionKey("acme", "s2")])
        assert [(event.kind, event.subject) for event in told] == [(MEMBERS, "acme/s1"), (DELETED, "acme/s2")]


async def test_an_owner_s_deletion_is_done_also_when_an_expiry_finds_a_use() -> None:
    async with scripted_node() as node:
        await asleep(node)
        row = await node.stores.directory.get(KEY)
        assert row is not None
        node.clock.advance(100.0)
        before = node.clock.time() - 1.0
        node.stores.slow_files.held.add("raise_epoch")
        expiring = asyncio.create_task(node.service.expire(row, before))
        await settle()
        # Another node has used it in the meantime, and the owner wants it gone.
        await node.stores.directory.update(KEY, last_used_at=node.clock.time())
        deleting = asyncio.create_task(node.service.delete(ALICE, "s1"))
        await settle()
        node.stores.slow_files.let_go("raise_epoch")
        assert await expiring is False
        await deleting
        await settle()
        assert node.nothing_left("s1")


async def test_a_hint_that_comes_as_the_node_ends_is_of_no_use_and_does_no_harm() -> None:
    async with scripted_node() as node:
        await asleep(node)
        await node.send("s1", "two")
        (live,) = node.service.live
        assert live.loaded is None
        await node.tasks.aclose()
        node.service.deleted_elsewhere(KEY)
