"""Turns of one session through everything that can happen to them, over scripted runtimes: each race is played out
step by step, without sleeps. `scripted_node` checks at the end that every place was given back and no task is left.
"""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.errors import AerodromeError, Capacity, Conflict, SessionBusy, StoreUnavailable
from aerodrome.model import OnBusy, SessionKey, SessionState, TurnStatus
from aerodrome.runtime.pool import RuntimePool
from aerodrome.sessions import aborts, books
from aerodrome.sessions.machine import State
from aerodrome.sessions.run import TurnRun
from support.loop_clock import loop_clock
from support.scripted_node import ALICE, ScriptedNode, no_pause, scripted_node, settle


async def running(node: ScriptedNode, prompt: str = "one", session_id: str = "s1", **message: object) -> TurnRun:
    """A turn that waits for its answer in the runtime."""
    run = await node.send(session_id, prompt, **message)
    await settle()
    assert node.loaded(session_id).turn == [prompt]
    return run


async def status(run: TurnRun) -> TurnStatus:
    assert await run.over(timeout=20), "the turn never ends"
    return (await run.wait()).status


def test_the_scripted_pool_offers_what_the_real_one_does() -> None:
    for name in ("reserve", "release", "notify"):
        assert callable(getattr(RuntimePool, name))


# --- the ordinary day ---


async def test_a_turn_is_told_and_recorded() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        row = await node.say("s1", "one")
        assert row.status is TurnStatus.COMPLETED
        assert row.answer is not None
        assert row.answer["content"] == "answer to one"
        assert row.usage == {
            "input_tokens": 3,
            "output_tokens": 2,
            "cache_read_tokens": 0,
            "cache_write_tokens": 0,
            "model_calls": 1,
            "model": "m1",
        }
        await settle()
        stored = await node.stores.ledger.get(row.key, row.id)
        assert stored is not None
        assert (stored.status, stored.answer, stored.message_id) == (row.status, row.answer, row.message_id)
        directory = await node.service.get(ALICE, "s1")
        assert directory.state is SessionState.RESIDENT
        assert directory.last_turn is not None
        assert (directory.last_turn.id, directory.last_turn.status) == (row.id, TurnStatus.COMPLETED)


async def test_prompts_are_answered_in_order_and_the_worker_ends() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.pool.answer_by_themselves()
        runs = [await node.send("s1", f"p{number}") for number in range(5)]
        assert [await status(run) for run in runs] == [TurnStatus.COMPLETED] * 5
        assert node.prompts("s1") == [f"p{number}" for number in range(5)]
        await settle()
        assert not node.tasks._tasks


async def test_a_late_idle_of_the_turn_before_does_not_end_the_next() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        session = node.loaded("s1")
        session.emit("session.idle", ephemeral=True)  # with no turn at all
        run = await running(node, "two")
        session.pending.append(("m-other", "native"))
        await settle()
        assert not run.ended
        await session.answer()
        assert await status(run) is TurnStatus.COMPLETED


async def test_an_idle_before_the_own_message_ends_nothing() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        session = node.loaded("s1")
        session.turn.append("a native turn")  # the runtime is busy with something else
        run = await node.send("s1", "two")
        await settle()
        session.emit("session.idle", ephemeral=True)
        await settle()
        assert not run.ended
        session.turn.clear()
        await session.answer()
        assert await status(run) is TurnStatus.COMPLETED


async def test_an_error_of_the_runtime_fails_the_turn_and_not_the_session() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        await node.loaded("s1").fail("the model is away")
        row = await run.wait()
        assert row.status is TurnStatus.FAILED
        assert row.error == {"code": "turn_failed", "detail": "the model is away"}
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED


async def test_a_turn_over_its_time_fails_whoever_hangs() -> None:
    async with scripted_node(turn_timeout=60.0) as node:
        await node.open("s1")
        with loop_clock() as clock:
            run = await running(node)
            node.runtime.held.add("session.abort")
            clock.advance(60.0)
            await settle()
            assert node.runtime.asked("session.abort") == 1
            assert not run.ended
            node.runtime.release("session.abort")
            await settle()
        assert await status(run) is TurnStatus.FAILED
        assert "longer than" in str(run.row.error)
        assert run.row.retried is False


# --- abort, interrupt, reject ---


async def test_abort_ends_the_running_turn_and_waits_for_it() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        queued = await node.send("s1", "two")
        assert await node.service.abort(ALICE, "s1") is True
        assert run.row.status is TurnStatus.ABORTED
        await settle()
        await node.loaded("s1").answer()
        assert await status(queued) is TurnStatus.COMPLETED
        assert await node.service.abort(ALICE, "s1") is False


async def test_an_answer_that_was_faster_than_the_abort_counts() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        node.runtime.held.add("session.abort")
        aborting = asyncio.create_task(node.service.abort(ALICE, "s1"))
        await settle()
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED
        assert await aborting is True
        node.runtime.release("session.abort")


@pytest.mark.parametrize("method", ["session.create", "session.options.update"])
async def test_abort_while_the_session_is_being_loaded(method: str) -> None:
    async with scripted_node() as node:
        await node.open("s0")
        await node.say("s0", "makes the runtime")
        node.runtime.held.add(method)
        await node.open("s1")
        run = await node.send("s1", "one")
        await settle()
        assert await node.service.abort(ALICE, "s1") is True
        assert run.row.status is TurnStatus.ABORTED
        node.runtime.release(method)
        assert node.runtime.asked("session.send") == 1
        assert "s1" not in node.runtime.sessions
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["two"]


async def test_abort_while_the_turn_waits_for_a_place() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.pool.held = True
        run = await node.send("s1", "one")
        await settle()
        assert await node.service.abort(ALICE, "s1") is True
        assert run.row.status is TurnStatus.ABORTED
        assert node.places == 0


async def test_abort_while_the_turn_waits_for_its_slot() -> None:
    async with scripted_node(max_turns=1) as node:
        await node.open("s1")
        await node.open("s2")
        first = await running(node)
        second = await node.send("s2", "two")
        await settle()
        assert await node.service.abort(ALICE, "s2") is True
        assert second.row.status is TurnStatus.ABORTED
        assert not first.ended


async def test_abort_while_the_prompt_is_being_sent() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        node.runtime.held.add("session.send")
        run = await node.send("s1", "two")
        await settle()
        aborting = asyncio.create_task(node.service.abort(ALICE, "s1"))
        await settle()
        node.runtime.release("session.send")
        # The runtime takes requests in order: here the abort came first and found nothing to abort.
        await settle()
        await node.loaded("s1").answer()
        assert await status(run) in (TurnStatus.ABORTED, TurnStatus.COMPLETED)
        await aborting


async def test_abort_while_the_start_is_being_recorded_sends_nothing() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.stores.slow_ledger.held.add("start")
        run = await node.send("s1", "one")
        await settle()
        aborting = asyncio.create_task(node.service.abort(ALICE, "s1"))
        await settle()
        node.stores.slow_ledger.let_go("start")
        assert await aborting is True
        assert run.row.status is TurnStatus.ABORTED
        assert node.prompts("s1") == []


async def test_a_prompt_that_nothing_keeps_waiting_is_recorded_as_running_at_once() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        node.stores.slow_ledger.fails.add("start")
        run = await node.send("s1", "two")
        row = node.ledger_row(run)
        assert row is not None
        assert (row.status, row.started_at) == (TurnStatus.RUNNING, run.row.started_at)
        await settle()
        behind = await node.send("s1", "three")
        assert behind.row.status is TurnStatus.QUEUED
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED
        # One that waits behind another is started when its time has come, by the ledger's leave.
        assert await status(behind) is TurnStatus.FAILED
        assert node.prompts("s1") == ["one", "two"]


async def test_a_prompt_that_was_passed_after_all_is_started_by_the_ledgers_leave() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        node.stores.slow_ledger.held.add("accept")
        first = asyncio.create_task(node.send("s1", "two"))
        await settle()
        instead = asyncio.create_task(node.send("s1", "instead", on_busy=OnBusy.INTERRUPT))
        await settle()
        node.stores.slow_ledger.let_go("accept")
        await settle()
        # Meanwhile somebody who holds us for dead ends it.
        passed = await first
        await node.stores.ledger.finish(passed.row.key, passed.id, TurnStatus.INTERRUPTED, 1.0)
        await node.loaded("s1").answer()
        assert await status(await instead) is TurnStatus.COMPLETED
        assert await status(passed) is TurnStatus.INTERRUPTED
        assert node.prompts("s1") == ["one", "instead"]


async def test_a_turn_that_the_runtime_does_not_end_is_taken_from_it() -> None:
    async with scripted_node(abort_timeout=0.01) as node:
        await node.open("s1")
        run = await running(node)
        node.runtime.refusals.append("session.abort")
        assert await node.service.abort(ALICE, "s1") is True
        assert run.row.status is TurnStatus.ABORTED
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["two"]


async def test_an_abort_that_had_no_effect_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        with monkeypatch.context() as patch, loop_clock() as clock:
            patch.setattr(node.loaded("s1"), "abort", no_pause)
            aborting = asyncio.create_task(node.service.abort(ALICE, "s1"))
            await settle()
            assert node.runtime.asked("session.abort") == 1
            patch.undo()
            await settle()
            assert not run.ended
            clock.advance(aborts.AGAIN)
            await settle()
        assert await aborting is True
        assert run.row.status is TurnStatus.ABORTED
        assert node.runtime.asked("session.abort") == 2
        # Nor is it asked for when the turn is over, and only its end is not recorded yet.
        run = await running(node, "two")
        node.stores.slow_ledger.held.add("finish")
        with loop_clock() as clock:
            aborting = asyncio.create_task(node.service.abort(ALICE, "s1"))
            await settle()
            clock.advance(aborts.AGAIN)
            await settle()
        assert node.runtime.asked("session.abort") == 3
        node.stores.slow_ledger.let_go("finish")
        assert await aborting is True


async def test_a_queued_turn_that_is_aborted_is_never_sent() -> None:
    async with scripted_node(cancel_on_disconnect=True) as node:
        await node.open("s1")
        first = await running(node)
        queued = await node.send("s1", "two")
        queued.abandon()
        await settle()
        await node.loaded("s1").answer()
        assert await status(first) is TurnStatus.COMPLETED
        assert await status(queued) is TurnStatus.ABORTED
        assert node.prompts("s1") == ["one"]


async def test_interrupt_ends_the_running_turn_and_goes_before_the_queue() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        first = await running(node)
        queued = await node.send("s1", "two")
        instead = await node.send("s1", "instead", on_busy=OnBusy.INTERRUPT)
        assert await status(first) is TurnStatus.ABORTED
        await settle()
        assert node.loaded("s1").turn == ["instead"]
        await node.loaded("s1").answer()
        assert await status(instead) is TurnStatus.COMPLETED
        await settle()
        await node.loaded("s1").answer()
        assert await status(queued) is TurnStatus.COMPLETED


async def test_interrupt_of_a_turn_that_only_waits_for_a_place() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.pool.held = True
        first = await node.send("s1", "one")
        await settle()
        instead = await node.send("s1", "instead", on_busy=OnBusy.INTERRUPT)
        assert await status(first) is TurnStatus.ABORTED
        node.pool.let_go()
        await settle()
        await node.loaded("s1").answer()
        assert await status(instead) is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["instead"]


async def test_an_interrupting_prompt_that_is_not_recorded_interrupts_nothing() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        first = await running(node)
        node.stores.slow_ledger.fails.add("accept")
        with pytest.raises(StoreUnavailable):
            await node.send("s1", "instead", on_busy=OnBusy.INTERRUPT)
        node.stores.slow_ledger.fails.clear()
        await settle()
        assert not first.ended
        await node.loaded("s1").answer()
        assert await status(first) is TurnStatus.COMPLETED


async def test_an_interrupting_prompt_passes_one_that_is_still_being_recorded() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.stores.slow_ledger.held.add("accept")
        waiting = asyncio.create_task(node.send("s1", "one"))
        await settle()
        node.stores.slow_ledger.held.clear()
        urgent = await node.send("s1", "urgent", on_busy=OnBusy.INTERRUPT)
        await settle()
        assert node.loaded("s1").turn == ["urgent"]
        node.stores.slow_ledger.let_go("accept")
        await node.loaded("s1").answer()
        assert await status(urgent) is TurnStatus.COMPLETED
        await settle()
        await node.loaded("s1").answer()
        assert await status(await waiting) is TurnStatus.COMPLETED


async def test_reject_names_the_running_turn_and_full_queues_refuse() -> None:
    async with scripted_node(max_queued=1) as node:
        await node.open("s1")
        run = await running(node)
        with pytest.raises(SessionBusy) as busy:
            await node.send("s1", "no", on_busy=OnBusy.REJECT)
        assert busy.value.extra == {"turn": run.id, "author": "alice"}
        await node.send("s1", "waits")
        with pytest.raises(Capacity):
            await node.send("s1", "too many")


async def test_without_room_to_wait_an_idle_session_still_takes_a_prompt() -> None:
    async with scripted_node(max_queued=0) as node:
        await node.open("s1")
        assert (await node.say("s1", "one")).status is TurnStatus.COMPLETED


# --- steering ---


async def test_a_prompt_that_steers_ends_with_the_turn() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        steering = await node.send("s1", "left", on_busy=OnBusy.STEER)
        await settle()
        session = node.loaded("s1")
        session.begin()
        assert session.turn == ["one", "left"]
        await session.answer()
        assert [await status(run), await status(steering)] == [TurnStatus.COMPLETED] * 2
        assert run.row.answer == steering.row.answer
        assert steering.row.started_at is not None
        await settle()
        assert node.ledger_row(steering).message_id is not None  # type: ignore[union-attr]


async def test_a_prompt_that_comes_too_late_to_steer_is_answered_by_itself() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        steering = await node.send("s1", "late", on_busy=OnBusy.STEER)
        await settle()
        session = node.loaded("s1")
        await session.answer()  # first the turn's own answer, then the late prompt's, then one idle
        assert [await status(run), await status(steering)] == [TurnStatus.COMPLETED] * 2
        assert run.row.answer is not None
        assert steering.row.answer is not None
        assert run.row.answer["content"] == "answer to one"
        assert steering.row.answer["content"] == "answer to late"


async def test_the_turn_of_a_late_prompt_begins_after_the_idle_and_holds_the_queue() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        session = node.loaded("s1")
        steering = await node.send("s1", "late", on_busy=OnBusy.STEER)
        queued = await node.send("s1", "next")
        await settle()
        late, session.pending = session.pending, []
        await session.answer()
        assert await status(run) is TurnStatus.COMPLETED
        await settle()
        assert not steering.ended
        assert node.runtime.asked("session.send") == 2
        session.pending = late
        await session.answer()
        assert await status(steering) is TurnStatus.COMPLETED
        await settle()
        await session.answer()
        assert await status(queued) is TurnStatus.COMPLETED


async def test_a_steering_prompt_whose_answer_comes_after_the_turn_has_ended() -> None:
    """The runtime takes it up, and its answer to `send` is the last thing that comes."""
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        node.runtime.held.add("session.send")
        steering = await node.send("s1", "left", on_busy=OnBusy.STEER)
        await settle()
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED
        node.runtime.release("session.send")
        await settle()
        await node.loaded("s1").answer()
        assert await status(steering) is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one", "left"]


async def test_a_steering_prompt_that_is_refused_waits_for_its_turn() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        node.runtime.refusals.append("session.send")
        steering = await node.send("s1", "left", on_busy=OnBusy.STEER)
        await settle()
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED
        await settle()
        assert node.loaded("s1").turn == ["left"]
        await node.loaded("s1").answer()
        assert await status(steering) is TurnStatus.COMPLETED


async def test_steering_an_idle_session_is_an_ordinary_turn() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        assert (await node.say("s1", "two", on_busy=OnBusy.STEER)).status is TurnStatus.COMPLETED


async def test_an_abort_throws_away_what_was_not_taken_up() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        steering = await node.send("s1", "left", on_busy=OnBusy.STEER)
        await settle()
        assert await node.service.abort(ALICE, "s1")
        assert [await status(run), await status(steering)] == [TurnStatus.ABORTED] * 2


async def test_a_caller_of_a_steering_prompt_that_goes_away_does_not_end_the_turn() -> None:
    async with scripted_node(cancel_on_disconnect=True) as node:
        await node.open("s1")
        run = await running(node)
        steering = await node.send("s1", "left", on_busy=OnBusy.STEER)
        await settle()
        steering.abandon()
        await settle()
        assert node.runtime.asked("session.abort") == 0
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED


async def test_a_late_prompt_whose_caller_has_gone_is_aborted_once_it_is_alone() -> None:
    async with scripted_node(cancel_on_disconnect=True) as node:
        await node.open("s1")
        run = await running(node)
        late = await node.send("s1", "late", on_busy=OnBusy.STEER)
        await settle()
        late.abandon()
        session = node.loaded("s1")
        pending, session.pending = session.pending, []
        await session.answer()
        session.pending = pending
        session.begin()
        assert await status(run) is TurnStatus.COMPLETED
        assert await status(late) is TurnStatus.ABORTED


async def test_a_turn_is_in_hand_until_its_end_is_recorded() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        steering = await node.send("s1", "left", on_busy=OnBusy.STEER, idempotency_key="k")
        await settle()
        node.loaded("s1").begin()
        node.stores.slow_ledger.held.add("finish")
        await node.loaded("s1").answer()
        await settle()
        # The two ends are recorded one after the other; the second one is no stranger meanwhile.
        assert await node.send("s1", "left", on_busy=OnBusy.STEER, idempotency_key="k") is steering
        node.stores.slow_ledger.let_go("finish")
        assert [await status(run), await status(steering)] == [TurnStatus.COMPLETED] * 2


async def test_nothing_steers_a_turn_that_is_being_aborted() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        node.runtime.held.add("session.abort")
        aborting = asyncio.create_task(node.service.abort(ALICE, "s1"))
        await settle()
        steering = await node.send("s1", "left", on_busy=OnBusy.STEER)
        node.runtime.release("session.abort")
        await aborting
        assert await status(run) is TurnStatus.ABORTED
        await settle()
        await node.loaded("s1").answer()
        assert await status(steering) is TurnStatus.COMPLETED


async def test_a_lost_runtime_repeats_the_turn_and_then_what_steered_it() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        steering = await node.send("s1", "left", on_busy=OnBusy.STEER)
        await settle()
        node.loaded("s1").begin()
        await node.loaded("s1").flush()
        node.runtime.kill("gone")
        await settle()
        assert node.loaded("s1").turn == ["one"]
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED
        await settle()
        await node.loaded("s1").answer()
        assert await status(steering) is TurnStatus.COMPLETED
        assert (run.row.retried, steering.row.retried) == (True, True)
        assert node.prompts("s1") == ["one", "left"]


# --- losing the runtime ---


async def test_a_loss_between_turns_is_not_noticed() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        node.runtime.kill("gone")
        await settle()
        assert node.service.live[0].state is State.HIBERNATED
        assert (await node.say("s1", "two")).retried is False
        assert node.prompts("s1") == ["one", "two"]


async def test_a_loss_in_the_moment_in_which_the_session_is_loaded_is_not_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others who wait for the session are loading it again when the turn is about to begin."""
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        live = node.service.live[0]
        assert await live.hibernate()
        losses = iter(["gone"])

        def lose(*_: object) -> None:
            if (reason := next(losses, None)) is not None and live.activation is not None:
                live.activation.discard(reason)

        monkeypatch.setattr(live._residency, "note_state", lose)
        node.runtime.held.add("session.resume")
        run = await node.send("s1", "two")
        await settle()
        other = asyncio.create_task(live._residency.awake())
        await settle()
        node.runtime.release("session.resume")
        await settle()
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED
        assert not (await other).lost.done()
        assert node.prompts("s1") == ["one", "two"]


@pytest.mark.parametrize("flushed", [False, True])
async def test_a_loss_in_mid_turn_repeats_it_once(flushed: bool) -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        if flushed:
            await node.loaded("s1").flush()
        node.runtime.kill("gone")
        await settle()
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED
        assert run.row.retried is True
        assert node.prompts("s1") == ["one"]
        await settle()
        assert node.ledger_row(run).retried is True  # type: ignore[union-attr]


@pytest.mark.parametrize(("kind", "told"), [("session.error", TurnStatus.FAILED), ("abort", TurnStatus.ABORTED)])
@pytest.mark.parametrize("heard", [True, False])
async def test_a_turn_whose_bad_end_is_stored_is_not_repeated(kind: str, told: TurnStatus, heard: bool) -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        session, activation = node.loaded("s1"), node.service.live[0].activation
        assert activation is not None
        if not heard:
            node.runtime.control.unbind("s1", activation)
        session.emit(kind, message="away")
        if not heard:
            node.runtime.control.bind("s1", activation)
        await session.flush()
        node.runtime.kill("before the idle")
        assert await status(run) is (told if heard else TurnStatus.INTERRUPTED)
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one", "two"]


async def test_a_half_loaded_session_is_unloaded_before_it_is_loaded_again() -> None:
    async with scripted_node() as node:
        await node.open("s0")
        await node.say("s0", "makes the runtime")
        await node.open("s1")
        node.runtime.refusals.append("session.options.update")
        assert (await node.say("s1", "one")).status is TurnStatus.COMPLETED
        assert node.runtime.asked("session.create") == 3


async def test_a_second_loss_is_told_as_interrupted() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        for _ in range(2):
            await node.loaded("s1").flush()
            node.runtime.kill("gone")
            await settle()
        assert await status(run) is TurnStatus.INTERRUPTED
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["two"]


async def test_a_turn_in_which_a_tool_ran_is_not_repeated() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        node.loaded("s1").start_tool()
        node.runtime.kill("gone")
        assert await status(run) is TurnStatus.INTERRUPTED
        await settle()
        row = node.ledger_row(run)
        assert row is not None
        assert row.tool_ran is True
        assert node.pool.runtimes == []


async def test_a_loss_while_the_prompt_is_being_sent() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        node.runtime.held.add("session.send")
        run = await node.send("s1", "two")
        await settle()
        node.runtime.kill("gone")
        await settle()
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one", "two"]


async def test_a_loss_while_the_session_is_loaded_sends_nothing_twice() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        await node.service.hibernate(node.service.live[0])
        node.runtime.held.add("session.resume")
        run = await node.send("s1", "two")
        await settle()
        node.runtime.kill("gone")
        await settle()
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED
        assert run.row.retried is False


async def test_an_answer_that_was_stored_before_the_loss_is_not_asked_for_again() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        session = node.loaded("s1")
        reader = await node.service.events(ALICE, "s1")
        session.emit("assistant.message", messageId="m-a", content="the answer")
        await session.flush()
        node.runtime.kill("between storing and telling")
        assert await status(run) is TurnStatus.COMPLETED
        assert run.row.answer == {"id": "m-a", "content": "the answer"}
        assert node.pool.runtimes == []
        assert [event.type for event in reader.backlog].count("assistant.message") == 1
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one", "two"]
        reader.close()


async def test_a_stored_answer_that_nobody_was_told_of_is_told_after_the_loss() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        session, binding = node.loaded("s1"), node.service.live[0].activation
        reader = await node.service.events(ALICE, "s1")
        # Stored, and lost on its way to us.
        assert binding is not None
        node.runtime.control.unbind("s1", binding)
        session.emit("assistant.message", messageId="m-a", content="the answer")
        node.runtime.control.bind("s1", binding)
        await session.flush()
        node.runtime.kill("gone")
        assert await status(run) is TurnStatus.COMPLETED
        assert [event.type for event in reader.backlog][-2:] == ["assistant.message", "session.idle"]
        reader.close()


async def test_an_answered_turn_whose_successor_was_lost_is_complete() -> None:
    """Two prompts share one idle; the runtime goes between the first one's answer and the second one's."""
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        late = await node.send("s1", "late", on_busy=OnBusy.STEER)
        await settle()
        session = node.loaded("s1")
        session.emit("assistant.message", messageId="m-a", content="first answer")
        session.turn.clear()
        session.begin()
        await session.flush()
        node.runtime.kill("gone")
        assert await status(run) is TurnStatus.COMPLETED
        assert run.row.answer == {"id": "m-a", "content": "first answer"}
        await settle()
        await node.loaded("s1").answer()
        assert await status(late) is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one", "late"]


async def test_the_end_of_one_prompt_is_not_told_as_that_of_another_which_is_sent_again() -> None:
    """Both were answered and one answer was stored. Whoever has seen the other one must not be told that the session is
    idle, and so take it for stored, before it is."""
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        late = await node.send("s1", "late", on_busy=OnBusy.STEER)
        await settle()
        session = node.loaded("s1")
        reader = await node.service.events(ALICE, "s1")
        session.emit("assistant.message", messageId="m-a", content="first answer")
        await session.flush()
        session.turn.clear()
        session.begin()
        session.emit("assistant.message", messageId="m-b", content="an answer that is not stored")
        node.runtime.kill("gone")
        assert await status(run) is TurnStatus.COMPLETED
        await settle()
        assert "session.idle" not in [event.type for event in reader.backlog]
        assert node.prompts("s1") == ["one"]
        await node.loaded("s1").answer()
        assert await status(late) is TurnStatus.COMPLETED
        assert [event.type for event in reader.backlog].count("session.idle") == 1
        assert node.prompts("s1") == ["one", "late"]
        reader.close()


async def test_a_write_that_lands_after_the_loss_is_seen_before_anything_is_sent_again() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        session = node.loaded("s1")
        node.stores.slow_files.held.add("append")
        session.emit("assistant.message", messageId="m-a", content="the answer")
        writing = asyncio.create_task(session.flush())
        await settle()
        node.stores.slow_coordination.held.add("acquire")
        node.runtime.kill("gone")
        await settle()
        node.stores.slow_files.let_go("append")  # the store had it in hand
        await settle()
        node.stores.slow_coordination.let_go("acquire")
        assert await status(run) is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one"]
        await writing


async def test_an_abort_while_the_turn_is_repeated_ends_it() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        node.pool.held = True
        node.runtime.kill("gone")
        await settle()
        assert await node.service.abort(ALICE, "s1")
        assert run.row.status is TurnStatus.ABORTED


async def test_a_turn_that_cannot_be_repeated_for_want_of_room_is_interrupted() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        node.pool.failure = Capacity("full")
        node.runtime.kill("gone")
        assert await status(run) is TurnStatus.INTERRUPTED
        node.pool.failure = None


async def test_a_turn_that_finds_no_room_fails_and_frees_its_key() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.pool.failure = Capacity("full", retry_after=3.0)
        run = await node.send("s1", "one", idempotency_key="k")
        assert await status(run) is TurnStatus.FAILED
        assert run.row.error == {"code": "capacity", "detail": "full", "retry_after": 3.0}
        node.pool.failure = None
        assert (await node.say("s1", "one", idempotency_key="k")).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["one"]


async def test_a_refused_prompt_is_tried_in_a_newly_loaded_session_and_then_fails() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        await node.say("s1", "one")
        node.runtime.refusals += ["session.send"] * 2
        run = await node.send("s1", "two")
        assert await status(run) is TurnStatus.FAILED
        assert run.row.error is not None
        assert run.row.error["code"] == "turn_failed"
        assert (await node.say("s1", "three")).status is TurnStatus.COMPLETED


# --- the store fails ---


async def test_a_prompt_that_cannot_be_recorded_never_was() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.stores.slow_ledger.fails.add("accept")
        with pytest.raises(StoreUnavailable):
            await node.send("s1", "one")
        node.stores.slow_ledger.fails.clear()
        await settle()
        assert not node.service.live or not node.service.live[0].busy
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED


async def test_a_turn_whose_start_cannot_be_recorded_is_not_sent() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.stores.slow_ledger.fails.add("start")
        run = await node.send("s1", "one")
        assert await status(run) is TurnStatus.FAILED
        node.stores.slow_ledger.fails.clear()
        assert node.pool.started == []


async def test_an_end_that_cannot_be_recorded_is_told_as_an_error_and_recorded_later() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node, idempotency_key="k")
        node.stores.slow_ledger.fails.add("finish")
        await node.loaded("s1").answer()
        with pytest.raises(StoreUnavailable):
            await run.wait()
        later = await node.send("s1", "two")
        await settle()
        assert node.ledger_row(run).status is TurnStatus.RUNNING  # type: ignore[union-attr]
        # Whoever asks again under the same key gets the outcome, not a second turn.
        assert await status(await node.send("s1", "one", idempotency_key="k")) is TurnStatus.COMPLETED
        node.stores.slow_ledger.fails.clear()
        await node.loaded("s1").answer()
        assert await status(later) is TurnStatus.COMPLETED
        await node.janitor.sweep()
        await settle()
        row = node.ledger_row(run)
        assert row is not None
        assert row.status is TurnStatus.COMPLETED
        assert row.answer is not None


async def test_the_end_is_recorded_behind_what_was_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "NAMED_AFTER", 0.0)
    async with scripted_node() as node:
        await node.open("s1")
        node.stores.slow_ledger.held.add("note")
        run = await running(node)
        await node.loaded("s1").answer()
        await settle()
        assert not run.ended
        node.stores.slow_ledger.let_go("note")
        assert await status(run) is TurnStatus.COMPLETED
        row = node.ledger_row(run)
        assert row is not None
        assert row.message_id is not None


async def test_the_message_of_a_short_turn_is_named_with_its_end() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.stores.slow_ledger.fails.add("note")
        run = await running(node)
        assert node.ledger_row(run).message_id is None  # type: ignore[union-attr]
        # Whoever reads the history meanwhile learns whose message it is all the same.
        await node.loaded("s1").flush()
        page = await node.service.history(ALICE, "s1")
        assert [(message.turn_id, message.author) for message in page.messages] == [(run.id, "alice")]
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED
        row = node.ledger_row(run)
        assert row is not None
        assert row.message_id == run.row.message_id is not None
        assert run.notes == []


async def test_notes_that_the_store_refuses_cost_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "NAMED_AFTER", 0.0)
    async with scripted_node() as node:
        await node.open("s1")
        node.stores.slow_ledger.fails.add("note")
        node.stores.slow_directory.fails.add("update")
        assert (await node.say("s1", "one")).status is TurnStatus.COMPLETED
        node.stores.slow_directory.fails.clear()
        await node.janitor.sweep()
        await settle()
        row = await node.stores.directory.get(SessionKey("acme", "s1"))
        assert row is not None
        assert row.state is SessionState.RESIDENT
        assert row.last_turn is not None


async def test_a_failed_write_ends_the_turn_and_what_was_refused_never_comes_back() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        node.stores.slow_files.fails.add("append")
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.FAILED
        assert run.row.error is not None
        assert run.row.error["code"] == "store_unavailable"
        node.stores.slow_files.fails.clear()
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["two"]


async def test_a_steering_prompt_ends_with_the_turn_that_a_failed_write_ended() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        steering = await node.send("s1", "left", on_busy=OnBusy.STEER)
        await settle()
        node.stores.slow_files.fails.add("append")
        await node.loaded("s1").answer()
        assert [await status(run), await status(steering)] == [TurnStatus.FAILED] * 2
        node.stores.slow_files.fails.clear()


async def test_a_store_that_cannot_say_what_is_stored_ends_the_turn_as_interrupted() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node)
        await node.loaded("s1").flush()
        node.stores.slow_files.fails.add("read")
        node.runtime.kill("gone")
        assert await status(run) is TurnStatus.INTERRUPTED
        node.stores.slow_files.fails.clear()
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED
        assert node.prompts("s1") == ["two"]


@pytest.mark.parametrize("call", ["acquire", "get"])
async def test_a_session_that_cannot_be_woken_gives_its_place_back(call: str) -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.pool.held = True
        run = await node.send("s1", "one")
        await settle()
        stores = [node.stores.slow_coordination, node.stores.slow_directory]
        for store in stores:
            store.fails.add(call)
        node.pool.let_go()
        assert await status(run) is TurnStatus.FAILED
        assert node.places == 0
        for store in stores:
            store.fails.clear()
        await settle()
        assert await node.stores.coordination.holder(run.row.key) is None
        assert (await node.say("s1", "two")).status is TurnStatus.COMPLETED


# --- idempotency ---


async def test_two_first_uses_of_a_key_at_once_are_one_turn() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.stores.slow_ledger.held.add("accept")
        both = [asyncio.create_task(node.send("s1", "pay", idempotency_key="k")) for _ in range(2)]
        await settle()
        node.stores.slow_ledger.let_go("accept")
        first, second = await asyncio.gather(*both)
        assert first is second
        await settle()
        await node.loaded("s1").answer()
        assert await status(first) is TurnStatus.COMPLETED
        assert node.runtime.asked("session.send") == 1
        again = await node.send("s1", "pay", idempotency_key="k", on_busy=OnBusy.REJECT)
        assert await again.wait() == await node.stores.ledger.get(first.row.key, first.id)
        with pytest.raises(Conflict):
            await node.send("s1", "something else", idempotency_key="k")


@pytest.mark.parametrize("on_busy", [OnBusy.REJECT, OnBusy.INTERRUPT, OnBusy.STEER])
async def test_a_repeated_key_joins_the_running_turn_whatever_it_would_do_to_it(on_busy: OnBusy) -> None:
    async with scripted_node() as node:
        await node.open("s1")
        run = await running(node, "pay", idempotency_key="k")
        assert await node.send("s1", "pay", idempotency_key="k", on_busy=on_busy) is run
        await settle()
        assert node.runtime.asked("session.abort") == 0
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED


@pytest.mark.parametrize("on_busy", OnBusy)
async def test_a_repeated_key_joins_a_turn_that_is_not_recorded_yet(on_busy: OnBusy) -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.stores.slow_ledger.held.add("accept")
        first = asyncio.create_task(node.send("s1", "pay", idempotency_key="k"))
        await settle()
        second = asyncio.create_task(node.send("s1", "pay", idempotency_key="k", on_busy=on_busy))
        await settle()
        node.stores.slow_ledger.let_go("accept")
        assert await first is await second
        await settle()
        await node.loaded("s1").answer()
        assert await status(await first) is TurnStatus.COMPLETED


@pytest.mark.parametrize("held", ["held", "held_after"])
async def test_the_caller_that_was_first_may_go_away_while_the_prompt_is_recorded(held: str) -> None:
    async with scripted_node() as node:
        await node.open("s1")
        getattr(node.stores.slow_ledger, held).add("accept")
        first = asyncio.create_task(node.send("s1", "pay", idempotency_key="k"))
        await settle()
        second = asyncio.create_task(node.send("s1", "pay", idempotency_key="k"))
        await settle()
        first.cancel()
        await asyncio.wait({first})
        node.stores.slow_ledger.let_go("accept")
        run = await second
        await settle()
        await node.loaded("s1").answer()
        assert await status(run) is TurnStatus.COMPLETED


async def test_a_key_whose_first_use_could_not_be_recorded_is_free() -> None:
    async with scripted_node() as node:
        await node.open("s1")
        node.stores.slow_ledger.held.add("accept")
        node.stores.slow_ledger.fails.add("accept")
        first = asyncio.create_task(node.send("s1", "pay", idempotency_key="k"))
        await settle()
        second = asyncio.create_task(node.send("s1", "pay", idempotency_key="k"))
        await settle()
        node.stores.slow_ledger.fails.clear()
        node.stores.slow_ledger.fails.add("accept")
        node.stores.slow_ledger.let_go("accept")
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert all(isinstance(result, AerodromeError) for result in results)
        node.stores.slow_ledger.fails.clear()
        assert (await node.say("s1", "pay", idempotency_key="k")).status is TurnStatus.COMPLETED


async def test_a_turn_that_two_wait_for_is_aborted_when_both_have_gone() -> None:
    async with scripted_node(cancel_on_disconnect=True) as node:
        await node.open("s1")
        run = await running(node, "pay", idempotency_key="k")
        again = await node.send("s1", "pay", idempotency_key="k")
        run.abandon()
        await settle()
        assert not run.ended
        again.abandon()
        assert await status(run) is TurnStatus.ABORTED


async def test_a_session_that_is_forgotten_while_it_moves_is_not_loaded_behind_everybodys_back() -> None:
    async with scripted_node(max_runtimes=5) as node:
        await node.open("a")
        await node.say("a", "hello")
        await settle()
        live = node.service.find_live(SessionKey("acme", "a"))
        assert live is not None
        flush = live.updates.flush

        async def flush_while_the_janitor_is_there() -> None:
            await flush()
            node.service._sessions.forget(live)

        live.updates.flush = flush_while_the_janitor_is_there  # type: ignore[method-assign]
        old = node.runtime
        assert node.pool.move_sessions is not None
        assert await node.pool.move_sessions(old, True)
        assert node.service.find_live(SessionKey("acme", "a")) is None
        assert [runtime.reserved for runtime in node.pool.runtimes] == [0]
        await node.say("a", "again")
        assert sum(runtime.reserved for runtime in node.pool.runtimes) == 1
