"""Rates and places over all nodes: two nodes over one store."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from aerodrome.errors import RateLimited
from aerodrome.model import OnBusy, TurnStatus
from aerodrome.sessions.admission import TurnLimits
from aerodrome.sessions.api import OpenSession, SendMessage
from aerodrome.sessions.run import TurnRun
from support.scripted_node import BOB, ScriptedNode, scripted_node, settle
from support.waiting import until

pytestmark = pytest.mark.timeout(30)


def counted(node: ScriptedNode) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """The questions to the store of the limits: call, names of rates, names of caps."""
    calls: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
    store = node.stores.coordination
    admit, vacate = store.admit, store.vacate

    async def admitting(place: str, incarnation: str, *, rates: Any = (), caps: Any = ()) -> Any:
        calls.append(("admit", tuple(rate.name for rate in rates), tuple(cap.name for cap in caps)))
        return await admit(place, incarnation, rates=rates, caps=caps)

    async def vacating(place: str, incarnation: str) -> None:
        calls.append(("vacate", (), ()))
        await vacate(place, incarnation)

    store.admit, store.vacate = admitting, vacating  # type: ignore[method-assign]
    return calls


async def answered(node: ScriptedNode, session_id: str, run: TurnRun) -> None:
    await until(lambda: any(session_id in r.sessions and r.sessions[session_id].turn for r in node.pool.runtimes))
    await node.loaded(session_id).answer()
    assert (await run.wait()).status is TurnStatus.COMPLETED


async def test_without_limits_over_all_nodes_nobody_is_asked() -> None:
    async with scripted_node() as node:
        calls = counted(node)
        await node.open("s1")
        await node.say("s1", "one")
        assert calls == []


async def test_a_turn_of_an_idle_session_asks_twice() -> None:
    limits = TurnLimits(per_minute=10, per_minute_of_tenant=20, at_once=2, at_once_of_tenant=5)
    async with scripted_node(limits=limits) as node:
        await node.open("s1")
        calls = counted(node)
        await node.say("s1", "one")
        await settle()
        assert calls == [
            ("admit", ("turns/acme/alice", "turns/acme"), ("running/acme/alice", "running/acme")),
            ("vacate", (), ()),
        ]
        assert node.stores.coordination._places == {}


async def test_a_rate_holds_over_nodes_and_says_when_to_come_again() -> None:
    limits = TurnLimits(per_minute=2)
    async with scripted_node(limits=limits) as a, scripted_node(a.stores, name="b", limits=limits) as b:
        await a.open("s1")
        await a.say("s1", "one")
        await a.service.hibernate(a.service.live[0])
        await settle()
        await b.say("s1", "two", idempotency_key="k")
        for node in (a, b):
            with pytest.raises(RateLimited) as refused:
                await node.send("s1", "three")
            wait = refused.value.retry_after
            assert wait == pytest.approx(30.0)
        # What was accepted once is no new prompt.
        assert (await b.send("s1", "two", idempotency_key="k")).row.status is TurnStatus.COMPLETED
        assert wait is not None
        # Honest: a moment before it is refused, then it is taken.
        a.clock.advance(wait - 0.5)
        with pytest.raises(RateLimited):
            await b.send("s1", "three")
        a.clock.advance(0.5)
        await b.say("s1", "three")
        assert b.prompts("s1") == ["one", "two", "three"]


async def test_another_user_has_a_rate_of_his_own_and_the_tenant_one_for_all() -> None:
    limits = TurnLimits(per_minute=1, per_minute_of_tenant=2)
    async with scripted_node(limits=limits) as node:
        await node.open("s1")
        await node.service.open_session(BOB, OpenSession(id="b1"))
        await node.say("s1", "one")
        with pytest.raises(RateLimited, match="you"):
            await node.send("s1", "two")
        run = await node.service.send(BOB, "b1", SendMessage("one"))
        await answered(node, "b1", run)
        node.clock.advance(59.0)  # alice may again, and each tenant has its own
        with pytest.raises(RateLimited):
            await node.service.send(replace(BOB, tenant="acme"), "b1", SendMessage("two"))


async def test_a_turn_waits_for_a_place_that_another_node_has() -> None:
    limits = TurnLimits(at_once=1)
    async with scripted_node(limits=limits) as a, scripted_node(a.stores, name="b", limits=limits) as b:
        await a.open("s1")
        await a.open("s2")
        first = await a.send("s1", "one")
        await settle()
        second = await b.send("s2", "one")
        await settle()
        assert b.pool.runtimes == []
        assert second.row.status is TurnStatus.QUEUED
        await a.loaded("s1").answer()
        assert (await first.wait()).status is TurnStatus.COMPLETED
        await answered(b, "s2", second)
        await settle()
        assert a.stores.coordination._places == {}


async def test_places_of_a_dead_node_are_free() -> None:
    limits = TurnLimits(at_once_of_tenant=1)
    async with scripted_node(limits=limits) as a:
        await a.open("s1")
        await a.open("s2")
        await a.send("s1", "one")
        await settle()
        await a.stop()
        async with scripted_node(a.stores, name="b", limits=limits) as b:
            waiting = await b.send("s2", "one")
            await settle()
            assert b.pool.runtimes == []
            await a.stores.coordination.leave(a.incarnation)
            await answered(b, "s2", waiting)


async def test_whoever_gets_no_place_in_time_is_told_so() -> None:
    limits = TurnLimits(at_once=1)
    async with scripted_node(limits=limits) as a, scripted_node(a.stores, name="b", limits=limits) as b:
        a.context.admission.gate._timeout = b.context.admission._timeout = 0.3
        for session_id in ("s1", "s2", "s3"):
            await a.open(session_id)
        first = await a.send("s1", "one")
        # The user's own turns: in this node, and over all nodes.
        for node, session_id in ((a, "s2"), (b, "s3")):
            row = await (await node.send(session_id, "one")).wait()
            assert row.error is not None
            assert row.error["code"] == RateLimited.code
            assert 1.0 <= row.error["retry_after"] <= 150.0
            assert node.context.admission.backlog.tenants == {}
        await a.loaded("s1").answer()
        await first.wait()


async def test_who_came_first_in_this_node_is_first() -> None:
    limits = TurnLimits(at_once=1)
    async with scripted_node(limits=limits) as node:
        sessions = [f"s{number}" for number in range(5)]
        for session_id in sessions:
            await node.open(session_id)
        runs = []
        for session_id in sessions:
            runs.append(await node.send(session_id, "one"))
            await settle()
        for session_id, run in zip(sessions, runs, strict=True):
            await answered(node, session_id, run)
        await settle()
        assert node.stores.coordination._places == {}
        assert node.context.admission._heads == {}


async def test_prompts_of_one_session_never_wait_for_each_other_s_place() -> None:
    """The second would hold what the first needs, and wait for its end."""
    async with scripted_node(limits=TurnLimits(at_once=1)) as node:
        await node.open("s1")
        node.stores.slow_coordination.held.add("admit")
        sending = [asyncio.create_task(node.send("s1", prompt)) for prompt in ("one", "two")]
        await settle()
        node.stores.slow_coordination.let_go("admit")
        runs = [await task for task in sending]
        for run in runs:
            await answered(node, "s1", run)
        interrupted = await node.send("s1", "three")
        await settle()
        urgent = await node.send("s1", "four", on_busy=OnBusy.INTERRUPT)
        assert (await interrupted.wait()).status is TurnStatus.ABORTED
        await answered(node, "s1", urgent)


@pytest.mark.parametrize("call", ["accept", "admit"])
async def test_a_caller_that_goes_away_takes_no_place_with_it(call: str) -> None:
    async with scripted_node(limits=TurnLimits(at_once=1), cancel_on_disconnect=True) as node:
        await node.open("s1")
        store = node.stores.slow_ledger if call == "accept" else node.stores.slow_coordination
        store.held_after.add(call)
        sending = asyncio.create_task(node.send("s1", "one"))
        await settle()
        sending.cancel()
        await asyncio.wait({sending})
        store.let_go(call)
        await until(lambda: node.stores.coordination._places == {})
        await settle()
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED


async def test_a_prompt_that_is_not_recorded_gives_its_place_back() -> None:
    async with scripted_node(limits=TurnLimits(at_once=1)) as node:
        await node.open("s1")
        node.stores.slow_ledger.fails.add("accept")
        with pytest.raises(Exception, match="accept"):
            await node.send("s1", "one")
        node.stores.slow_ledger.fails.clear()
        await settle()
        assert node.stores.coordination._places == {}
        await node.say("s1", "two")


async def test_limits_are_open_while_their_store_is_away() -> None:
    async with scripted_node(limits=TurnLimits(per_minute=1, at_once=1)) as node:
        await node.open("s1")
        await node.open("s2")
        node.stores.slow_coordination.fails.add("admit")
        runs = [await node.send(session_id, "one") for session_id in ("s1", "s2")]
        for session_id, run in zip(("s1", "s2"), runs, strict=True):
            await answered(node, session_id, run)
        node.stores.slow_coordination.fails.clear()
        await node.say("s1", "two")
