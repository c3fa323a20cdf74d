from __future__ import annotations

import asyncio
import contextvars
import re
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from aerodrome._util.tasks import Flag, Forestalled, TaskOwner, every, first_of, heeding, shared, unless

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


async def test_an_owned_task_does_not_inherit_what_its_starter_has_bound() -> None:
    async def seen() -> str:
        return variable.get()

    variable.set("of one request")
    assert await TaskOwner("test").start(seen(), "look") == "nothing"
    assert variable.get() == "of one request"


async def test_a_closed_owner_starts_nothing_and_has_ended_what_it_had() -> None:
    owner = TaskOwner("test")
    running = owner.start(asyncio.sleep(60), "sleep")
    assert not owner.closed
    await owner.aclose()
    assert running.cancelled()
    assert owner.closed
    with pytest.raises(RuntimeError, match="test is closed"):
        owner.start(asyncio.sleep(60), "sleep")
    assert owner.start_if_open(asyncio.sleep(60), "sleep") is None


async def test_a_task_that_has_lost_its_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome._util.tasks._CANCELLED_AGAIN", 0.01)

    async def deaf() -> None:
        for _ in range(2):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(600)
        await asyncio.sleep(600)

    owner = TaskOwner("test")
    running = owner.start(deaf(), "deaf")
    await asyncio.sleep(0)
    with capture_logs() as logs:
        await asyncio.wait_for(owner.aclose(), 30)
    assert running.cancelled()
    assert [line["event"] for line in logs] == ["task.not_ended"] * 2
    for line in logs:
        (place,) = line["tasks"]
        assert re.fullmatch(r"test:deaf: \S+\.deaf:\d+ > sleep:\d+", place)


async def test_a_cancellation_that_is_lost_in_a_library_is_raised_behind_it() -> None:
    async def library(fails: bool) -> int:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(600)
        if fails:
            raise ValueError
        return 7

    for fails in (False, True):
        task = asyncio.ensure_future(heeding(library(fails)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


async def test_deadlines_inside_are_no_cancellation_of_ours() -> None:
    async def library() -> int:
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(600)
        async with asyncio.timeout(0.01):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(600)  # this one is lost
        return 7

    with suppress(TimeoutError):
        async with asyncio.timeout(600):
            assert await heeding(library()) == 7

    async def cleans_up() -> int:
        try:
            await asyncio.sleep(600)
        finally:
            assert await heeding(library()) == 7
        return 0

    task = asyncio.ensure_future(cleans_up())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_work_is_done_unless_a_signal_comes_first() -> None:
    signal: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert await unless(work(), signal) == 7
    with pytest.raises(ZeroDivisionError):
        await unless(_fail(), signal)


async def test_forestalled_work_has_ended_before_that_is_told() -> None:
    signal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    story: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            story.append("cleaned up")

    asyncio.get_running_loop().call_soon(signal.set_result, None)
    with pytest.raises(Forestalled):
        await unless(work(), signal)
    assert story == ["cleaned up"]


async def test_work_that_is_done_counts_although_a_signal_has_come() -> None:
    signal: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> int:
        signal.set_result(None)
        return 7

    assert await unless(work(), signal) == 7


async def test_whoever_cancels_the_wait_cancels_the_work() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(unless(work(), asyncio.get_running_loop().create_future()))
    await started.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def _fail() -> None:
    raise ZeroDivisionError


async def test_a_flag_is_waited_for_among_others_until_it_is_cleared() -> None:
    flag, never = Flag(), asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(first_of(flag.raised, never))
    await asyncio.sleep(0)
    assert not waiting.done()
    flag.set()
    flag.set()
    await waiting
    await first_of(flag.raised, never)  # still set
    flag.clear()
    assert not flag.raised.done()
    flag.clear()
    flag.set()
    assert flag.raised.done()


async def test_a_flag_outlives_who_waits_for_it() -> None:
    flag = Flag()
    waiting = asyncio.create_task(first_of(flag.raised))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    flag.set()
    await first_of(flag.raised)


async def test_what_is_done_for_ever_is_done_again_after_it_has_failed() -> None:
    calls, again = 0, asyncio.Event()

    async def work() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise LookupError("once")
        again.set()

    owner = TaskOwner("test")
    owner.start(every(0.0, work, "test.failed"), "work")
    with capture_logs() as logged:
        async with asyncio.timeout(30):
            await again.wait()
    await owner.aclose()
    assert [line["event"] for line in logged] == ["test.failed"]


async def test_who_waits_for_a_shared_task_is_told_of_its_end_and_ends_with_it_when_both_are_cancelled() -> None:
    owner = TaskOwner("test")

    async def retrying(task: asyncio.Task[None]) -> None:
        """As whoever tries again for as long as it takes."""
        while True:
            try:
                return await shared(task)
            except Forestalled:
                await asyncio.sleep(0)

    task = owner.start(asyncio.sleep(60), "shared")
    alone = asyncio.create_task(shared(task))
    await asyncio.sleep(0)
    alone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await alone
    assert not task.done()

    other = asyncio.create_task(shared(task))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(Forestalled):
        await other

    # In which order they are cancelled is a matter of chance.
    for _ in range(50):
        owner = TaskOwner("test")
        task = owner.start(asyncio.sleep(60), "shared")
        waiting = [owner.start(retrying(task), "wait") for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.wait_for(owner.aclose(), 30)
        assert all(each.cancelled() for each in waiting)
