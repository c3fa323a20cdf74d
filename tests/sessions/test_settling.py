"""A runtime is lost in a turn, and somebody else wants the session before the turn has found out what is left of it."""

from __future__ import annotations

import asyncio

from aerodrome.model import TurnStatus
from aerodrome.sessions.run import TurnRun
from support.scripted_node import ALICE, ScriptedNode, scripted_node, settle


async def flushed_turn(node: ScriptedNode) -> TurnRun:
    await node.open("s1")
    run = await node.send("s1", "one")
    await settle()
    await node.loaded("s1").flush()
    return run


async def test_who_loads_the_session_for_something_else_takes_nothing_from_the_turn() -> None:
    async with scripted_node() as node:
        run = await flushed_turn(node)
        (live,) = node.service.live
        node.runtime.kill("gone")
        waking = asyncio.create_task(live.awake())
        await settle()
        activation = await waking
        # What was loaded is what the lease is for.
        held = await node.stores.coordination.holder(live.row.key)
        assert held is not None
        assert held.epoch == activation.lease.epoch
        await node.loaded("s1").answer()
        row = await run.wait()
        assert (row.status, row.retried) == (TurnStatus.COMPLETED, True)
        assert node.prompts("s1") == ["one"]


async def test_a_prompt_that_comes_in_that_moment_neither() -> None:
    async with scripted_node() as node:
        object.__setattr__(node.context, "alone", lambda: False)
        run = await flushed_turn(node)
        node.runtime.kill("gone")
        sending = asyncio.create_task(node.send("s1", "two"))
        await settle()
        await node.loaded("s1").answer()
        await settle()
        await node.loaded("s1").answer()
        assert (await run.wait()).status is TurnStatus.COMPLETED
        assert (await (await sending).wait()).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one", "two"]


async def test_a_turn_that_ends_with_the_loss_has_ended() -> None:
    async with scripted_node() as node:
        run = await flushed_turn(node)
        (live,) = node.service.live
        await node.loaded("s1").answer()
        node.runtime.kill("gone")
        waking = asyncio.create_task(live.awake())
        assert (await run.wait()).status is TurnStatus.COMPLETED
        await waking


async def test_a_session_is_deleted_in_that_moment() -> None:
    async with scripted_node() as node:
        run = await flushed_turn(node)
        node.runtime.kill("gone")
        await node.service.delete(ALICE, "s1")
        assert run.ended
        await settle()
        assert node.nothing_left("s1")
