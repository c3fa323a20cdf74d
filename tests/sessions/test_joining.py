"""Prompts that come to a turn that runs: in their order, once, and not when the turn is being ended."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.events import SessionEvent
from aerodrome.model import OnBusy, SessionKey, TurnStatus
from aerodrome.sessions.run import TurnRun
from support.scripted_node import ALICE, ScriptedNode, scripted_node, settle


async def running(node: ScriptedNode) -> TurnRun:
    """A turn that waits for its answer in the runtime."""
    await node.open("s1")
    run = await node.send("s1", "one")
    await settle()
    assert node.loaded("s1").turn == ["one"]
    return run


async def native(node: ScriptedNode, prompt: str) -> TurnRun:
    return await node.service.native.send(ALICE, "s1", {"prompt": prompt})


async def status(run: TurnRun) -> TurnStatus:
    assert await run.over(timeout=20), "the turn never ends"
    return (await run.wait()).status


async def test_prompts_of_both_doors_are_answered_in_the_order_in_which_they_came() -> None:
    async with scripted_node() as node:
        runs = [
            await running(node),
            await node.send("s1", "two"),
            await native(node, "three"),
            await native(node, "four"),
        ]
        await settle()
        # Not even in the queue of the runtime: what waits before it waits here.
        assert node.runtime.asked("session.send") == 1
        while not all(run.ended for run in runs):
            await node.loaded("s1").answer()
            await settle()
        assert node.prompts("s1") == ["one", "two", "three", "four"]


async def test_prompts_that_the_ledger_takes_its_time_for_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_node() as node:
        run = await running(node)
        start, slow = node.stores.ledger.start, asyncio.Event()
        asked: list[str] = []

        async def start_slowly(key: SessionKey, turn_id: str, at: float) -> bool:
            asked.append(turn_id)
            if asked[0] == turn_id:
                await slow.wait()
            return await start(key, turn_id, at)

        monkeypatch.setattr(node.stores.ledger, "start", start_slowly)
        first, second = await native(node, "first"), await native(node, "second")
        await settle()
        slow.set()
        await settle()
        await node.loaded("s1").answer()
        assert [await status(each) for each in (run, first, second)] == [TurnStatus.COMPLETED] * 3
        assert node.prompts("s1") == ["one", "first", "second"]


@pytest.mark.parametrize("in_turn", [True, False])
async def test_a_prompt_goes_to_the_runtime_once_it_has_answered_for_the_one_before(in_turn: bool) -> None:
    """What is with it at the same time it takes up in any order."""
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "nothing")  # so that the session is loaded
        runs = [await native(node, "one")] if in_turn else []
        await settle()
        asked = node.runtime.asked("session.send")
        node.runtime.held.add("session.send")
        runs += [await native(node, text) for text in ("two", "three")]
        await settle()
        assert node.runtime.asked("session.send") == asked + 1
        node.runtime.release("session.send")
        await settle()
        assert node.runtime.asked("session.send") == asked + 2
        await node.loaded("s1").answer()
        assert [await status(each) for each in runs] == [TurnStatus.COMPLETED] * len(runs)
        assert node.prompts("s1")[-2:] == ["two", "three"]


async def test_an_abort_does_not_overtake_its_prompt() -> None:
    """It would abort nothing."""
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "nothing")
        node.runtime.held.add("session.send")
        run = await node.send("s1", "one")
        await settle()
        aborting = asyncio.create_task(node.service.abort(ALICE, "s1"))
        await settle()
        assert node.runtime.asked("session.abort") == 0
        node.runtime.release("session.send")
        assert await aborting
        assert await status(run) is TurnStatus.ABORTED
        assert node.runtime.asked("session.abort") == 1


async def test_an_abort_of_something_else_does_not_end_the_prompt_that_waits_behind_it() -> None:
    """A client has aborted what its runtime was at work on without any prompt of ours, such as a compaction."""
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "nothing")
        live, session = node.service.find_live(SessionKey("acme", "s1")), node.loaded("s1")
        assert live is not None
        assert live.loaded is not None
        session.turn.append("a compaction")
        node.runtime.held.add("session.abort")
        aborting = asyncio.create_task(live.loaded.abort())
        await settle()
        run = await node.send("s1", "one")
        await settle()
        assert not aborting.done()
        await session.abort()
        node.runtime.release("session.abort")
        await aborting
        await settle()
        assert not run.ended
        await session.answer()
        assert await status(run) is TurnStatus.COMPLETED


async def test_what_waits_behind_a_prompt_of_a_runtime_that_is_lost_is_sent_to_the_next() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "nothing")
        first = node.runtime
        first.held.add("session.send")
        asked = first.asked("session.send")
        runs = [await native(node, text) for text in ("one", "two")]
        await settle()
        node.pool.auto = True
        first.kill("gone")
        assert [await status(each) for each in runs] == [TurnStatus.COMPLETED] * 2
        assert first.asked("session.send") == asked + 1
        assert node.prompts("s1") == ["nothing", "one", "two"]


@pytest.mark.parametrize("how", ["it is to end", "it has ended"])
async def test_a_prompt_that_leaves_as_the_end_of_the_turn_before_it_is_recorded(how: str) -> None:
    async with scripted_node() as node:
        run = await running(node)
        ledger = node.stores.slow_ledger
        ledger.held |= {"start", "finish"}
        second = await native(node, "two")
        await settle()
        await node.loaded("s1").answer()
        await settle()
        live = node.service.find_live(SessionKey("acme", "s1"))
        assert live is not None
        if how == "it is to end":
            live.turns.request_abort(second)
        else:
            await node.stores.ledger.finish(second.row.key, second.id, TurnStatus.INTERRUPTED, 1.0)
        ledger.let_go("start")
        await settle()
        assert not run.ended
        ledger.let_go("finish")
        assert await status(run) is TurnStatus.COMPLETED
        assert await status(second) is (TurnStatus.ABORTED if how == "it is to end" else TurnStatus.INTERRUPTED)
        await settle()
        # The session stays as it was.
        assert live.loaded is not None
        assert (await node.say("s1", "three")).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one", "three"]


async def test_a_prompt_that_the_runtime_refuses_in_the_turn_is_not_offered_again_before_its_own() -> None:
    async with scripted_node() as node:
        run = await running(node)
        node.runtime.refusals += ["session.send"] * 20
        refused = await native(node, "refused")
        await settle()
        assert node.runtime.asked("session.send") == 2
        node.runtime.refusals.clear()
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED
        await settle()
        await node.loaded("s1").answer()
        assert await status(refused) is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one", "refused"]


async def test_an_abort_while_a_prompt_is_on_its_way_into_the_turn_sends_nothing() -> None:
    async with scripted_node() as node:
        run = await running(node)
        node.stores.slow_ledger.held.add("start")
        steering = await node.send("s1", "left", on_busy=OnBusy.STEER)
        await settle()
        aborting = asyncio.create_task(node.service.abort(ALICE, "s1"))
        await settle()
        node.stores.slow_ledger.let_go("start")
        assert await aborting
        assert [await status(each) for each in (run, steering)] == [TurnStatus.ABORTED] * 2
        await settle()
        assert node.runtime.asked("session.send") == 1
        assert node.loaded("s1").pending == []
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED


async def test_what_came_to_a_turn_ends_also_when_a_bug_of_ours_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_node() as node:
        run = await running(node)
        steering = await node.send("s1", "left", on_busy=OnBusy.STEER)
        await settle()

        async def crash(key: SessionKey, path: str) -> str:
            raise ZeroDivisionError

        with monkeypatch.context() as patched:
            patched.setattr(node.stores.files, "read", crash)
            node.runtime.kill("gone")
            await settle()
        assert [await status(each) for each in (run, steering)] == [TurnStatus.FAILED] * 2
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED


async def test_each_prompt_has_the_whole_time_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    time, later = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: time() + later)
    async with scripted_node(turn_timeout=60.0) as node:
        runs = [await running(node), await native(node, "two"), await native(node, "three")]
        await settle()
        session = node.loaded("s1")
        for number in range(3):
            later += 40.0
            await settle()
            session.emit("assistant.message", messageId=f"a{number}", content="done")
            session.turn.clear()
            session.begin()
            await settle()
        await session.answer()
        assert [await status(run) for run in runs] == [TurnStatus.COMPLETED] * 3
        last = await native(node, "four")
        await settle()
        later += 61.0
        assert await status(last) is TurnStatus.FAILED
        assert "longer than 60 s" in str(last.row.error)


async def test_clients_are_told_of_a_prompt_that_another_node_has_ended_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It took this node for dead when it stood still; the prompt was with a runtime, and is about to be sent again."""
    async with scripted_node() as node:
        run = await running(node)
        joined = await native(node, "joined")
        await settle()
        first_id = joined.first_message_id
        assert first_id is not None
        live = node.service.find_live(SessionKey("acme", "s1"))
        assert live is not None
        assured: list[str] = []
        monkeypatch.setattr(live.attachments, "assured", assured.extend)
        gone = {"code": "turn_interrupted", "detail": "the node has gone"}
        await node.stores.ledger.finish(joined.row.key, joined.id, TurnStatus.INTERRUPTED, 1.0, error=gone)
        told: list[SessionEvent] = []
        publish = live.hub.publish

        def hear(event: SessionEvent) -> SessionEvent:
            told.append(event)
            return publish(event)

        monkeypatch.setattr(live.hub, "publish", hear)
        node.runtime.kill("it hangs")
        await settle()
        await node.loaded("s1").answer()
        assert [await status(each) for each in (run, joined)] == [TurnStatus.COMPLETED, TurnStatus.INTERRUPTED]
        errors = [event.data for event in told if event.type == "session.error"]
        assert [(error["errorType"], error["originatingMessageId"]) for error in errors] == [
            ("turn_interrupted", first_id)
        ]
        assert first_id in assured
