"""Who is blamed for the end of a runtime, and what becomes of them. The runtimes are scripts that end when told to."""

from __future__ import annotations

import pytest

from aerodrome.errors import Quarantined
from aerodrome.model import SessionKey, TurnStatus
from aerodrome.runtime.deaths import Death
from aerodrome.sessions.blame import FORGOTTEN_AFTER, OPTION, Charges
from aerodrome.sessions.quarantine import released
from support.scripted_node import ALICE, ScriptedNode, scripted_node, settle
from support.scripted_runtime import ScriptedRuntime

pytestmark = pytest.mark.timeout(30)


async def charges(node: ScriptedNode, session: str) -> int:
    row = await node.context.directory.get(SessionKey("acme", session))
    assert row is not None
    found = Charges.of(row.options)
    return 0 if found is None else found.count


def runtime_of(node: ScriptedNode, session: str) -> ScriptedRuntime:
    (runtime,) = [r for r in node.pool.runtimes if session in r.sessions]
    return runtime


async def test_the_only_one_in_a_turn_is_charged_and_at_the_second_time_quarantined() -> None:
    async with scripted_node(max_runtimes=5) as node:
        for name in ("a", "b"):
            await node.open(name)
            await node.say(name, "hello")
        run = await node.send("a", "too much")
        await settle()
        node.runtime.kill("no memory", Death.MEMORY)
        await settle()
        # Tried again, where nobody else is; the other goes on somewhere else.
        assert await charges(node, "a") == 1
        assert runtime_of(node, "a").alone
        await node.say("b", "still here?")
        assert runtime_of(node, "b") is not runtime_of(node, "a")
        runtime_of(node, "a").kill("no memory", Death.MEMORY)
        assert (await run.wait()).status is TurnStatus.INTERRUPTED
        await settle()
        assert [await charges(node, name) for name in ("a", "b")] == [2, 0]
        started = len(node.pool.started)
        with pytest.raises(Quarantined, match="has ended 2 runtimes, the last one for want of memory"):
            await node.send("a", "again")
        with pytest.raises(Quarantined):
            await node.service.live_session(ALICE, "a")
        assert len(node.pool.started) == started


async def test_of_several_each_goes_on_alone_and_is_cleared_by_a_turn() -> None:
    async with scripted_node(max_runtimes=5) as node:
        runs = {}
        for name in ("a", "b", "idle"):
            await node.open(name)
            await node.say(name, "hello")
        for name in ("a", "b"):
            runs[name] = await node.send(name, "work")
        await settle()
        shared = node.runtime
        shared.kill("crashed", Death.CRASHED)
        await settle()
        alone = [runtime_of(node, name) for name in ("a", "b")]
        assert alone[0] is not alone[1]
        assert [runtime.alone for runtime in alone] == [True, True]
        await runtime_of(node, "a").sessions["a"].answer()
        assert (await runs["a"].wait()).status is TurnStatus.COMPLETED
        await settle()
        # It was not this one: its runtime takes others again.
        assert not alone[0].alone
        await node.say("idle", "me?")
        assert runtime_of(node, "idle") is alone[0]
        alone[1].kill("crashed", Death.CRASHED)
        await settle()
        assert [await charges(node, name) for name in ("a", "b", "idle")] == [0, 1, 0]
        assert (await runs["b"].wait()).status is TurnStatus.INTERRUPTED


@pytest.mark.parametrize("death", [Death.OUTSIDE, Death.STUCK])
async def test_nobody_in_a_turn_is_blamed_for_what_is_done_to_a_runtime(death: Death) -> None:
    async with scripted_node(max_runtimes=5) as node:
        await node.open("a")
        await node.say("a", "hello")
        for number in range(3):
            run = await node.send("a", f"work {number}")
            await settle()
            node.runtime.kill("kill -9", death)
            await settle()
            assert not node.runtime.alone
            await node.loaded("a").answer()
            assert (await run.wait()).status is TurnStatus.COMPLETED
        assert await charges(node, "a") == 0


async def test_a_charge_that_the_store_refuses_counts_all_the_same() -> None:
    async with scripted_node(max_runtimes=5) as node:
        await node.open("a")
        await node.say("a", "hello")
        node.stores.slow_directory.fails.add("update")
        run = await node.send("a", "too much")
        for _ in range(2):
            await settle()
            runtime_of(node, "a").kill("no memory", Death.MEMORY)
        await run.wait()
        await settle()
        with pytest.raises(Quarantined):
            await node.send("a", "again")
        assert await charges(node, "a") == 0
        # And is stored when the store is back.
        node.stores.slow_directory.fails.clear()
        await node.service.tidy()
        assert await charges(node, "a") == 2


async def test_one_charge_is_forgotten_after_a_day() -> None:
    async with scripted_node(max_runtimes=5) as node:
        await node.open("a")
        await node.say("a", "hello")
        run = await node.send("a", "too much")
        await settle()
        node.runtime.kill("no memory", Death.MEMORY)
        await settle()
        await node.loaded("a").answer()
        await run.wait()
        await settle()
        node.clock.advance(FORGOTTEN_AFTER + 1)
        run = await node.send("a", "too much")
        await settle()
        runtime_of(node, "a").kill("no memory", Death.MEMORY)
        await settle()
        assert await charges(node, "a") == 1
        await node.loaded("a").answer()
        await run.wait()


async def test_a_released_session_is_loaded_again_also_where_it_was_charged() -> None:
    async with scripted_node(max_runtimes=5) as node:
        await node.open("a")
        await node.say("a", "hello")
        run = await node.send("a", "too much")
        for _ in range(2):
            await settle()
            runtime_of(node, "a").kill("no memory", Death.MEMORY)
        await run.wait()
        await settle()
        row = await node.context.directory.get(SessionKey("acme", "a"))
        assert row is not None
        await node.context.directory.update(row.key, options=released(row).options)
        assert OPTION in row.options
        assert (await node.say("a", "again")).status is TurnStatus.COMPLETED
        assert not runtime_of(node, "a").alone
