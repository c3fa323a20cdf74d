"""The handle of a turn: one result for all who wait, streams that end with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from aerodrome.errors import Capacity, Draining
from aerodrome.events import SessionEvent
from aerodrome.model import SessionKey, TurnRow, TurnStatus
from aerodrome.sessions.run import TurnRun, error_of

ROW = TurnRow(SessionKey("acme", "s1"), "t1", "alice", TurnStatus.RUNNING, "hello")
DONE = replace(ROW, status=TurnStatus.COMPLETED)


def make(abandoned: list[TurnRun] | None = None) -> TurnRun:
    return TurnRun(ROW, reader_bytes=10_000, on_abandon=None if abandoned is None else abandoned.append)


async def test_all_who_wait_get_the_result_and_one_who_leaves_takes_nothing_with_it() -> None:
    run = make()
    waiting = [asyncio.create_task(run.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    run.resolve(DONE)
    assert await asyncio.gather(*waiting[1:]) == [DONE, DONE]
    assert await run.wait() == DONE
    assert run.row == DONE


async def test_the_first_end_counts() -> None:
    run = make()
    run.resolve(DONE)
    run.fail(Draining("too late"))
    assert await run.wait() == DONE
    failed = make()
    failed.fail(Draining("stopped"))
    with pytest.raises(Draining):
        await failed.wait()
    assert failed.ended


async def test_an_error_that_nobody_waits_for_is_no_news() -> None:
    run = make()
    run.fail(Draining("stopped"))
    del run  # an unretrieved exception would be reported here, and warnings are errors


async def test_a_stream_ends_with_the_turn() -> None:
    run = make()
    stream = run.events()
    run.publish(SessionEvent("e1", "t", b"{}"))
    run.resolve(DONE)
    run.publish(SessionEvent("e2", "t", b"{}"))
    assert [event.id async for event in stream] == ["e1"]
    assert [event.id async for event in run.events()] == []


async def test_over_waits_for_any_end_and_not_longer_than_told() -> None:
    run = make()
    assert await run.over(timeout=0.001) is False
    run.fail(Draining("stopped"))
    assert await run.over() is True


async def test_only_the_last_caller_abandons_and_only_while_it_runs() -> None:
    abandoned: list[TurnRun] = []
    run = make(abandoned)
    assert run.join() is run
    run.abandon()
    assert abandoned == []
    run.abandon()
    assert abandoned == [run]
    ended = make(abandoned)
    ended.resolve(DONE)
    ended.abandon()
    assert abandoned == [run]


async def test_the_first_wish_to_stop_is_heard() -> None:
    run = make()
    run.stop()
    run.stop(Draining("too late"))
    assert run.stop_asked.result() is None


def test_what_the_ledger_keeps_of_an_error() -> None:
    assert error_of(Capacity("full")) == {"code": "capacity", "detail": "full"}
    assert error_of(Capacity("full", retry_after=2.0)) == {"code": "capacity", "detail": "full", "retry_after": 2.0}
