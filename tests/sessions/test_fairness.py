"""Ceilings and fairness in a whole session service: who is served next is told by counting, and no clock is asked."""

from __future__ import annotations

import pytest

from aerodrome.errors import Capacity
from aerodrome.fairness.line import Ceilings
from aerodrome.model import OnBusy, Principal, SessionKey, SessionState, TurnStatus
from aerodrome.sessions.api import OpenSession, SendMessage
from aerodrome.sessions.backlog import BacklogLimits
from aerodrome.sessions.run import TurnRun
from support.scripted_node import ALICE, BOB, ScriptedNode, scripted_node, settle
from support.waiting import until

pytestmark = pytest.mark.timeout(60)

CAROL = Principal("bank", "carol")


async def prompt(node: ScriptedNode, who: Principal, session_id: str, text: str = "hello") -> TurnRun:
    await node.service.open_session(who, OpenSession(id=session_id))
    return await node.service.send(who, session_id, SendMessage(text))


def in_turn(node: ScriptedNode) -> list[str]:
    return [name for runtime in node.pool.runtimes for name, session in runtime.sessions.items() if session.turn]


async def order_of_service(node: ScriptedNode, runs: int) -> list[str]:
    """Answer one turn after the other; returns the sessions in the order in which they were served."""
    order = []
    for _ in range(runs):
        await until(lambda: bool(in_turn(node)))
        (session_id,) = in_turn(node)
        order.append(session_id)
        await node.loaded(session_id).answer()
        await until(lambda last=session_id: last not in in_turn(node))  # type: ignore[misc]
    return order


async def end(runs: list[TurnRun], node: ScriptedNode) -> None:
    for run in runs:
        run.stop()
    for session_id in in_turn(node):
        await node.loaded(session_id).answer()
    await until(lambda: not any(live.busy for live in node.service.live))


async def test_a_storm_of_one_tenant_does_not_put_off_another() -> None:
    async with scripted_node(max_turns=1, max_sessions=1000) as node:
        storm = [await prompt(node, ALICE if n % 2 else BOB, f"storm-{n}") for n in range(300)]
        await until(lambda: bool(in_turn(node)))
        quiet = [await prompt(node, CAROL, f"quiet-{n}") for n in range(10)]
        await settle()
        order = await order_of_service(node, 40)
        places = [place for place, name in enumerate(order) if name.startswith("quiet")]
        assert places == list(range(1, 21, 2))  # after the turn that ran when they came, every other one
        await end([*quiet, *storm], node)
        assert node.context.admission.gate.line.tenants == {}
        assert node.context.admission.backlog.tenants == {}


async def test_tenants_that_both_wait_are_served_by_their_weights() -> None:
    async with scripted_node(max_turns=1, max_sessions=1000, weights={"bank": 3.0}) as node:
        runs = [await prompt(node, who, f"{who.tenant}-{n}") for n in range(60) for who in (ALICE, CAROL)]
        order = await order_of_service(node, 41)
        assert 29 <= sum(name.startswith("bank") for name in order[1:]) <= 31
        await end(runs, node)


async def test_users_of_a_tenant_take_turns() -> None:
    async with scripted_node(max_turns=1, max_sessions=1000) as node:
        runs = [await prompt(node, ALICE, f"alice-{n}") for n in range(50)]
        await until(lambda: bool(in_turn(node)))
        runs += [await prompt(node, BOB, f"bob-{n}") for n in range(3)]
        await settle()
        order = await order_of_service(node, 8)
        assert max(place for place, name in enumerate(order) if name.startswith("bob")) <= 6
        await end(runs, node)


async def test_one_prompt_too_many_is_refused_at_once_and_nothing_of_it_is_recorded() -> None:
    async with scripted_node(max_turns=1, backlog=BacklogLimits(per_tenant=5, per_user=3)) as node:
        running = await prompt(node, ALICE, "s0")
        await until(lambda: in_turn(node) == ["s0"])
        waiting = [await prompt(node, ALICE, f"s{n}") for n in range(1, 4)]
        with pytest.raises(Capacity, match="of yours") as refused:
            await prompt(node, ALICE, "s9")
        assert refused.value.retry_after is not None
        assert await node.stores.ledger.turns(SessionKey("acme", "s9")) == []
        waiting += [await prompt(node, BOB, f"b{n}") for n in range(2)]
        with pytest.raises(Capacity, match="of your organisation"):
            await prompt(node, BOB, "b9")
        other = await prompt(node, CAROL, "c1")  # of another tenant
        await node.loaded("s0").answer()
        assert (await running.wait()).status is TurnStatus.COMPLETED
        await until(lambda: in_turn(node) == ["c1"])
        await node.loaded("c1").answer()
        assert (await other.wait()).status is TurnStatus.COMPLETED
        await until(lambda: len(in_turn(node)) == 1 and in_turn(node) != ["c1"])
        waiting.append(await prompt(node, BOB, "b9"))  # one has begun
        await end(waiting, node)
        assert node.context.admission.backlog.tenants == {}


async def test_many_large_prompts_are_too_many_before_they_are_many() -> None:
    backlog = BacklogLimits(characters_per_user=1000, characters_per_tenant=1800)
    async with scripted_node(max_turns=1, backlog=backlog) as node:
        running = await prompt(node, ALICE, "s0", "x" * 5000)  # it is for others to say how large one may be
        await until(lambda: in_turn(node) == ["s0"])
        waiting = [await prompt(node, ALICE, f"s{n}", "x" * 480) for n in range(2)]
        blob = {"type": "blob", "data": "x" * 480, "mimeType": "text/plain"}
        await node.service.open_session(ALICE, OpenSession(id="s9"))
        for message in (SendMessage("x" * 480), SendMessage("", attachments=[blob])):
            with pytest.raises(Capacity, match="2 prompts of yours wait already, with 960 characters"):
                await node.service.send(ALICE, "s9", message)
        waiting.append(await prompt(node, BOB, "b0", "x" * 480))
        with pytest.raises(Capacity, match="3 prompts of your organisation"):
            await prompt(node, BOB, "b1", "x" * 480)
        waiting.append(await prompt(node, CAROL, "c0", "x" * 480))
        waiting.append(await prompt(node, ALICE, "s10", "x" * 20))
        await node.loaded("s0").answer()
        await running.wait()
        await end(waiting, node)
        assert node.context.admission.backlog.tenants == {}


async def test_prompts_that_join_a_turn_or_fail_to_be_recorded_do_not_wait() -> None:
    async with scripted_node(backlog=BacklogLimits(per_tenant=2, per_user=2)) as node:
        await node.open("s1")
        first = await node.send("s1", "one")
        await until(lambda: in_turn(node) == ["s1"])
        for n in range(5):
            await node.send("s1", f"steer {n}", on_busy=OnBusy.STEER)
            await settle()
        node.stores.slow_ledger.fails.add("accept")
        for _ in range(5):
            with pytest.raises(Exception, match="accept"):
                await node.send("s1", "lost")
        node.stores.slow_ledger.fails.clear()
        assert node.context.admission.backlog.tenants == {}
        first.stop()
        await node.service.live[0].turns.abort()


@pytest.mark.parametrize("scope", ["node", "tenant", "user"])
async def test_past_the_ceiling_the_least_recently_used_of_its_own_hibernates(scope: str) -> None:
    ceilings = {"node": Ceilings(total=2), "tenant": Ceilings(per_tenant=2), "user": Ceilings(per_user=2)}[scope]
    async with scripted_node(ceilings=ceilings) as node:
        node.pool.answer_by_themselves()
        if scope != "node":
            # Of somebody else, used before all others: it stays.
            await (await prompt(node, CAROL if scope == "tenant" else BOB, "other")).wait()
        for session_id in ("s1", "s2", "s3"):
            node.clock.advance(1)
            await (await prompt(node, ALICE, session_id)).wait()
        states = {live.row.key.id: live.listed_state for live in node.service.live}
        assert states.pop("other", SessionState.RESIDENT) is SessionState.RESIDENT
        assert states == {"s2": SessionState.RESIDENT, "s3": SessionState.RESIDENT}


async def test_when_all_loaded_sessions_are_in_turns_the_next_waits_for_the_end_of_one() -> None:
    async with scripted_node(ceilings=Ceilings(total=1)) as node:
        first = await prompt(node, ALICE, "s1")
        await until(lambda: in_turn(node) == ["s1"])
        second = await prompt(node, BOB, "s2")
        await settle()
        assert in_turn(node) == ["s1"]
        await node.loaded("s1").answer()
        await first.wait()
        await until(lambda: in_turn(node) == ["s2"])
        await node.loaded("s2").answer()
        await second.wait()
        third = await prompt(node, ALICE, "s1")
        await until(lambda: in_turn(node) == ["s1"])
        node.context.residents._timeout = 0.05
        row = await (await prompt(node, BOB, "s2")).wait()
        assert row.error is not None
        assert (row.error["code"], row.error["retry_after"] >= 1.0) == ("capacity", True)
        await node.loaded("s1").answer()
        await third.wait()


async def test_a_runtime_takes_so_many_turns_at_once() -> None:
    async with scripted_node(turns_per_runtime=1) as node:
        first = await prompt(node, ALICE, "s1")
        await until(lambda: in_turn(node) == ["s1"])
        second, third = await prompt(node, BOB, "s2"), await prompt(node, BOB, "s3")
        elsewhere = await prompt(node, CAROL, "c1")
        await until(lambda: "c1" in in_turn(node))
        assert sorted(in_turn(node)) == ["c1", "s1"]
        third.stop()
        assert (await third.wait()).status is TurnStatus.ABORTED
        await node.loaded("s1").answer()
        await first.wait()
        await until(lambda: "s2" in in_turn(node))
        for session_id, run in (("s2", second), ("c1", elsewhere)):
            await node.loaded(session_id).answer()
            assert (await run.wait()).status is TurnStatus.COMPLETED


async def test_a_turn_that_waits_for_its_runtime_goes_on_elsewhere_when_that_is_lost() -> None:
    async with scripted_node(turns_per_runtime=1) as node:
        node.pool.answer_by_themselves()
        for session_id in ("s1", "s2"):
            await (await prompt(node, ALICE, session_id)).wait()
        (runtime,) = node.pool.runtimes
        runtime.auto = False
        runs = [await prompt(node, ALICE, session_id) for session_id in ("s1", "s2")]
        await until(lambda: len(in_turn(node)) == 1)
        runtime.kill("it died")
        for run in runs:
            assert (await run.wait()).status is TurnStatus.COMPLETED
