"""Prompts that are with the runtime: attempts that overlap, events that come first, time that runs out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast

from aerodrome.events import SessionEvent
from aerodrome.model import SessionKey, TurnRow, TurnStatus
from aerodrome.sessions.activation import Activation
from aerodrome.sessions.delivery import Delivery
from aerodrome.sessions.run import TurnRun
from support.loop_clock import loop_clock


class Sending:
    """An activation that answers `send` when it is told the message's id."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def send(self, message: Mapping[str, Any], **options: Any) -> str:
        return await self.answer


def event(kind: str, **data: Any) -> SessionEvent:
    return SessionEvent("e", kind, json.dumps({"type": kind, "data": data}).encode())


def make_run() -> TurnRun:
    return TurnRun(TurnRow(SessionKey("acme", "s1"), "t1", "alice", TurnStatus.RUNNING, "?"), reader_bytes=1000)


def sent(delivery: Delivery, run: TurnRun, sending: Sending) -> asyncio.Task[None]:
    return asyncio.create_task(delivery.send(run, cast("Activation", sending)))


async def test_a_late_answer_to_an_earlier_attempt_is_not_taken_for_the_present_one() -> None:
    delivery, run, first, second = Delivery(60, lambda _: None), make_run(), Sending(), Sending()
    attempt = delivery.add(run)
    sending = sent(delivery, run, first)
    await asyncio.sleep(0)
    assert delivery.take_all() == [run]
    assert not delivery.has(run, attempt)
    assert delivery.remove(run, attempt) is False
    delivery.add(run)
    again = sent(delivery, run, second)
    first.answer.set_result("m-first")
    await sending
    assert [run.tracker.message_id, run.row.message_id] == [None, None]
    second.answer.set_result("m-second")
    await again
    assert [run.tracker.message_id, run.row.message_id, run.attempts] == ["m-second", "m-second", 2]


async def test_a_prompt_that_was_answered_before_its_send_was_is_seen_to_have_ended() -> None:
    tools: list[TurnRun] = []
    delivery, run, sending = Delivery(60, tools.append), make_run(), Sending()
    delivery.add(run)
    task = sent(delivery, run, sending)
    await asyncio.sleep(0)
    for item in (event("user.message", messageId="m1"), event("tool.execution_start"), event("session.idle")):
        delivery.feed(item)
    waiting = asyncio.create_task(delivery.change(asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)
    assert tools == []
    sending.answer.set_result("m1")
    await task
    await waiting
    assert delivery.take_ended() == [run]
    assert delivery.runs == []
    assert tools == [run]
    assert run.row.tool_ran


async def waiting_for(delivery: Delivery, lost: asyncio.Future[Any]) -> asyncio.Task[None]:
    """Who waits for a change, and has found none."""
    waiting = asyncio.create_task(delivery.change(lost))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    return waiting


async def test_the_wait_ends_when_a_prompt_goes_or_is_overdue_and_with_the_activation() -> None:
    lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    with loop_clock() as clock:
        delivery, run = Delivery(60, lambda _: None), make_run()
        attempt = delivery.add(run)
        waiting = await waiting_for(delivery, lost)
        clock.advance(60)
        await waiting
        assert delivery.overdue() == [run]
        patient = Delivery(600, lambda _: None)
        patient.add(make_run())
        waiting = await waiting_for(patient, lost)
        lost.set_result(None)
        await waiting
        assert patient.overdue() == []
        assert delivery.remove(run, attempt) is True


async def test_the_time_of_a_prompt_that_waits_in_the_runtime_begins_with_its_turn() -> None:
    lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    with loop_clock() as clock:
        delivery, first, second = Delivery(60, lambda _: None), make_run(), make_run()
        attempt = delivery.add(first)
        delivery.add(second)
        waiting = await waiting_for(delivery, lost)
        clock.advance(60)
        await waiting
        assert delivery.overdue() == [first]
        delivery.remove(first, attempt)
        assert delivery.overdue() == []
        await delivery.change(lost)  # it has gone
        waiting = await waiting_for(delivery, lost)
        clock.advance(60)
        await waiting
        assert delivery.overdue() == [second]


async def test_the_time_of_a_prompt_ends_when_the_next_is_taken_up() -> None:
    """The runtime is idle once, behind all that were queued in it."""
    lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    with loop_clock() as clock:
        delivery, first, second = Delivery(60, lambda _: None), make_run(), make_run()
        for run, name in ((first, "m1"), (second, "m2")):
            delivery.add(run)
            sending = Sending()
            sending.answer.set_result(name)
            await sent(delivery, run, sending)
        delivery.feed(event("user.message", messageId="m1"))
        delivery.feed(event("assistant.message", messageId="a1", content="yes"))
        await delivery.change(lost)  # they were sent
        waiting = await waiting_for(delivery, lost)
        clock.advance(60)
        await waiting
        assert delivery.overdue() == [first]
        delivery.feed(event("user.message", messageId="m2"))
        assert delivery.overdue() == []
        waiting = await waiting_for(delivery, lost)
        clock.advance(60)
        await waiting
        assert delivery.overdue() == [second]
        # What is taken up then is no prompt of ours: they end in their time all the same.
        delivery.feed(event("assistant.message", messageId="a2", content="yes"))
        delivery.feed(event("user.message", messageId="m3"))
        assert delivery.overdue() == [first, second]
