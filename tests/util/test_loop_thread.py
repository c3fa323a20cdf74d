"""Something on a loop of its own: entered and left there, whatever happens here."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aerodrome._util.loop_thread import LoopThread


class Room:
    """A context manager that can be held up, and fail, at both doors."""

    def __init__(self) -> None:
        self.entering = threading.Event()
        self.may_enter = threading.Event()
        self.may_enter.set()
        self.may_leave = threading.Event()
        self.may_leave.set()
        self.said: list[str] = []
        self.failure_entering: Exception | None = None
        self.failure_leaving: Exception | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Room]:
        self.entering.set()
        try:
            await self._wait(self.may_enter)
            if self.failure_entering is not None:
                raise self.failure_entering
            self.said.append(f"entered on {threading.current_thread().name}")
            yield self
            await self._wait(self.may_leave)
            if self.failure_leaving is not None:
                raise self.failure_leaving
        finally:
            self.said.append("left")

    async def _wait(self, door: threading.Event) -> None:
        while not door.is_set():
            await asyncio.sleep(0.001)


def running() -> bool:
    return any(thread.name == "room" for thread in threading.enumerate())


async def gone() -> None:
    async with asyncio.timeout(30):
        while running():
            await asyncio.sleep(0.001)


async def test_it_is_entered_and_left_on_its_own_thread() -> None:
    room = Room()
    thread = LoopThread("room", room.open)
    assert await thread.start() is room
    assert await thread.run(asyncio.sleep(0, "done")) == "done"
    await thread.stop()
    assert room.said == ["entered on room", "left"]
    await gone()


async def test_it_goes_on_while_the_loop_of_the_program_stands_still() -> None:
    thread = LoopThread("room", Room().open)
    await thread.start()
    ticked = threading.Event()

    async def tick() -> None:
        await asyncio.sleep(0.001)
        ticked.set()

    running_there = asyncio.create_task(thread.run(tick()))
    await asyncio.sleep(0)
    assert ticked.wait(30), "it waited for us"  # a wait that blocks this loop
    await running_there
    await thread.stop()


async def test_what_entering_raises_is_raised_and_the_thread_ends() -> None:
    room = Room()
    room.failure_entering = ValueError("closed today")
    with pytest.raises(ValueError, match="closed today"):
        await LoopThread("room", room.open).start()
    assert room.said == ["left"]
    await gone()


async def test_what_leaving_raises_is_raised() -> None:
    room = Room()
    room.failure_leaving = ValueError("the door is stuck")
    thread = LoopThread("room", room.open)
    await thread.start()
    with pytest.raises(ValueError, match="the door is stuck"):
        await thread.stop()
    await gone()


async def test_what_work_raises_is_raised_where_it_was_asked_for() -> None:
    async def fail() -> None:
        raise KeyError("x")

    thread = LoopThread("room", Room().open)
    await thread.start()
    with pytest.raises(KeyError):
        await thread.run(fail())
    await thread.stop()


async def test_a_start_that_is_given_up_has_left_when_it_returns() -> None:
    room = Room()
    room.may_enter.clear()
    starting = asyncio.create_task(LoopThread("room", room.open).start())
    await asyncio.to_thread(room.entering.wait, 30)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert room.said == ["left"]
    await gone()


async def test_work_that_is_given_up_is_cancelled_there() -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    thread = LoopThread("room", Room().open)
    await thread.start()
    task = asyncio.create_task(thread.run(work()))
    await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(cancelled.wait, 30)
    await thread.stop()


async def test_a_stop_that_is_given_up_cuts_leaving_short_and_waits_for_it() -> None:
    room = Room()
    room.may_leave.clear()
    thread = LoopThread("room", room.open)
    await thread.start()
    stopping = asyncio.create_task(thread.stop())
    await asyncio.sleep(0.01)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert room.said[-1] == "left"
    await gone()


FORGETFUL = """
import asyncio
from contextlib import asynccontextmanager
from aerodrome._util.loop_thread import LoopThread

@asynccontextmanager
async def room():
    yield "here"

async def main():
    print(await LoopThread("room", room).start())

asyncio.run(main())
"""


def test_a_program_that_ends_without_leaving_does_not_hang() -> None:
    done = subprocess.run([sys.executable, "-c", FORGETFUL], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "here\n"
