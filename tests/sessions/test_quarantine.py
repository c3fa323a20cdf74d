"""Who is blamed for the end of a runtime, and what becomes of them. The runtimes are scripts that end when told to."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from aerodrome.errors import Quarantined
from aerodrome.model import SessionKey, TurnStatus
from aerodrome.runtime.deaths import Death
from aerodrome.sessions.blame import FORGOTTEN_AFTER, MOST_SUSPECTED, OPTION, Charges
from aerodrome.sessions.quarantine import released
from aerodrome.sessions.run import TurnRun
from support.scripted_node import ALICE, ScriptedNode, scripted_node, settle
from support.scripted_runtime import ScriptedRuntime
from support.waiting import until

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
            await node.service.native.session(ALICE, "a")
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


@pytest.mark.parametrize("death", [Death.OUTSIDE, Death.STUCK, Death.SHORTAGE])
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


async def test_a_suspicion_is_forgotten_after_a_day() -> None:
    async with scripted_node(max_runtimes=5) as node:
        for name in ("a", "b"):
            await node.open(name)
            await node.say(name, "hello")
            await node.send(name, "work")
        await settle()
        node.runtime.kill("crashed", Death.CRASHED)
        await settle()
        assert len(node.context.suspicions._suspected) == 2
        node.clock.advance(FORGOTTEN_AFTER + 1)
        await node.service.tidy()
        assert not node.context.suspicions._suspected
        for name in ("a", "b"):
            await node.loaded(name).answer()


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


async def test_what_a_runtime_has_not_let_go_of_comes_into_question_too() -> None:
    async with scripted_node(max_runtimes=5) as node:
        for name in ("a", "b"):
            await node.open(name)
            await node.say(name, "hello")
        shared = node.runtime
        # Given up here, and still at work there: an innocent neighbour must not pay for it.
        cast("Any", shared).letting_go = {"a": None}
        await node.send("b", "work")
        await settle()
        shared.kill("no memory", Death.MEMORY)
        await settle()
        assert [await charges(node, name) for name in ("a", "b")] == [0, 0]
        assert runtime_of(node, "b").alone
        cast("Any", runtime_of(node, "b")).letting_go = set()
        await node.loaded("b").answer()


async def test_a_charge_counts_although_the_store_is_away_when_it_is_made() -> None:
    async with scripted_node(max_runtimes=5) as node:
        await node.open("a")
        await node.say("a", "hello")
        await node.send("a", "too much")
        await settle()
        node.stores.slow_directory.fails.add("get")
        node.runtime.kill("no memory", Death.MEMORY)
        await settle()
        node.stores.slow_directory.fails.clear()
        await node.service.tidy()
        assert await charges(node, "a") == 1


async def test_a_process_that_cannot_be_buried_does_not_keep_its_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome.sessions.quarantine.BURIAL", 0.05)
    async with scripted_node(max_runtimes=5) as node:
        await node.open("a")
        await node.say("a", "hello")
        run = await node.send("a", "work")
        await settle()
        node.runtime.kill("its disk is away", death=None)
        await until(lambda: len(node.pool.runtimes) == 1 and "a" in node.pool.runtimes[0].sessions)
        await settle()
        await node.loaded("a").answer()
        assert (await run.wait()).status is TurnStatus.COMPLETED
        assert await charges(node, "a") == 0


async def test_one_that_crashes_among_others_again_and_again_is_found_however_many_they_are() -> None:
    bad, others = "z", [f"s{number}" for number in range(MOST_SUSPECTED + 1)]
    async with scripted_node(max_runtimes=30) as node:
        for name in (bad, *others):
            await node.open(name)
            await node.say(name, "hello")

        async def crash_in_company(company: list[str]) -> dict[str, TurnRun]:
            runs = {name: await node.send(name, "work") for name in (bad, *company)}
            await settle()
            runtime_of(node, bad).kill("crashed", Death.CRASHED)
            await settle()
            return runs

        async def answered(runs: dict[str, TurnRun]) -> None:
            for name, run in runs.items():
                await node.loaded(name).answer()
                assert (await run.wait()).status is TurnStatus.COMPLETED

        runs = await crash_in_company(others)
        assert not runtime_of(node, bad).alone
        await answered(runs)
        # Whoever was there again comes first.
        runs = await crash_in_company([name for name in others if not runtime_of(node, name).alone])
        assert runtime_of(node, bad).alone
        # And one harmless turn does not clear it any more.
        await answered(runs)
        await settle()
        assert runtime_of(node, bad).alone
        await node.say(bad, "harmless")
        assert not runtime_of(node, bad).alone
        assert not any([await charges(node, name) for name in (bad, *others)])


async def test_a_second_loading_counts_for_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome.sessions.activation._REMEMBERED", 0.05)
    async with scripted_node(max_runtimes=5) as node:
        await node.open("b")
        await node.say("b", "hello")
        await node.open("a")
        node.runtime.refusals.append("session.create")
        node.runtime.held.add("session.options.update")
        await node.send("a", "hello")
        await until(lambda: node.runtime.asked("session.options.update") == 2)
        await asyncio.sleep(0.1)  # the first, which was refused, is forgotten
        assert set(node.runtime.loading) == {SessionKey("acme", "a")}
        node.runtime.kill("crashed", Death.CRASHED)
        await settle()
        assert await charges(node, "a") == 1
