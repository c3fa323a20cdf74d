"""A prompt and the lease of its session, where there are other nodes."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.errors import Conflict
from aerodrome.model import SessionKey, TurnStatus
from support.scripted_node import ALICE, ScriptedNode, scripted_node, settle


def among_others(node: ScriptedNode) -> None:
    object.__setattr__(node.context, "alone", lambda: False)


async def test_a_session_stays_where_it_was_loaded_for_a_prompt_until_that_is_in_its_queue() -> None:
    async with scripted_node(max_sessions=1, max_runtimes=1) as a, scripted_node(a.stores, name="b") as b:
        among_others(a)
        await a.open("s1")
        await a.open("s2")
        a.pool.answer_by_themselves()
        b.pool.answer_by_themselves()
        a.stores.slow_ledger.held.add("by_idempotency_key")
        sending = asyncio.create_task(a.send("s1", "one", idempotency_key="k"))
        await settle()
        assert a.resident == 1
        # Somebody needs its place, and another node is asked for it.
        other = asyncio.create_task(a.send("s2", "two"))
        await settle()
        elsewhere = await b.send("s1", "three")
        await settle()
        a.stores.slow_ledger.let_go("by_idempotency_key")
        assert (await (await sending).wait()).status is TurnStatus.COMPLETED
        assert (await elsewhere.wait()).status is TurnStatus.FAILED  # busy here
        await (await other).over()


@pytest.mark.parametrize("waits_for", ["session.create", "by_idempotency_key", "accept"])
async def test_an_abort_ends_a_prompt_that_is_still_on_its_way_in(waits_for: str) -> None:
    """It may be on its way for as long as it takes to load the session, and who sent it sees a turn that begins."""
    async with scripted_node() as node:
        among_others(node)
        await node.open("s0")
        await node.say("s0", "makes the runtime")
        await node.open("s1")
        node.runtime.held.add(waits_for)
        node.stores.slow_ledger.held.add(waits_for)
        sending = asyncio.create_task(node.send("s1", "one", idempotency_key="k"))
        await settle()
        assert not sending.done()
        aborting = asyncio.create_task(node.service.abort(ALICE, "s1"))
        await settle()
        node.stores.slow_ledger.let_go(waits_for)
        assert await aborting is True
        assert (await (await sending).wait()).status is TurnStatus.ABORTED
        node.runtime.release(waits_for)
        assert node.runtime.asked("session.send") == 1
        # It is over with that.
        assert await node.service.abort(ALICE, "s1") is False
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["two"]


async def test_an_abort_of_a_prompt_that_is_refused_waits_for_nothing() -> None:
    async with scripted_node() as node:
        among_others(node)
        await node.open("s1")
        node.pool.answer_by_themselves()
        await (await node.send("s1", "one", idempotency_key="k")).wait()
        node.stores.slow_ledger.held.add("by_idempotency_key")
        sending = asyncio.create_task(node.send("s1", "another", idempotency_key="k"))
        await settle()
        aborting = asyncio.create_task(node.service.abort(ALICE, "s1"))
        await settle()
        node.stores.slow_ledger.let_go("by_idempotency_key")
        with pytest.raises(Conflict):
            await sending
        assert await aborting is True
        assert node.prompts("s1") == ["one"]


async def test_an_abort_ends_the_running_turn_and_not_what_is_about_to_come_behind_it() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await node.send("s1", "one")
        await settle()
        node.stores.slow_ledger.held.add("by_idempotency_key")
        sending = asyncio.create_task(node.send("s1", "two", idempotency_key="k"))
        await settle()
        assert await node.service.abort(ALICE, "s1") is True
        assert run.row.status is TurnStatus.ABORTED
        node.stores.slow_ledger.let_go("by_idempotency_key")
        second = await sending
        await settle()
        await node.loaded("s1").answer()
        assert (await second.wait()).status is TurnStatus.COMPLETED


async def test_a_native_abort_ends_a_prompt_that_is_being_recorded() -> None:
    """The two came without waiting for each other."""
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "nothing")
        node.stores.slow_ledger.held.add("accept")
        sending = asyncio.create_task(node.service.native.send(ALICE, "s1", {"prompt": "one"}))
        await settle()
        live = node.service.find_live(SessionKey("acme", "s1"))
        assert live is not None
        assert node.service.native.stop(live)
        node.stores.slow_ledger.let_go("accept")
        assert (await (await sending).wait()).status is TurnStatus.ABORTED
        assert not node.service.native.stop(live)
        assert node.prompts("s1") == ["nothing"]
