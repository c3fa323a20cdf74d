"""Something asynchronous on a thread and an event loop of its own, for programs whose own loop may stand still.

What keeps leases by heartbeats must not wait until its host has imported a module or computed something. On its own
thread it shares no more than the interpreter with it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import uvloop

T = TypeVar("T")
R = TypeVar("R")


class LoopThread(Generic[T]):
    """Enters an asynchronous context manager on its thread, keeps it, and leaves it there.

    Args:
        name: Of the thread.
        make: Called on the thread; makes the context manager.
    """

    def __init__(self, name: str, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._make = make
        self._loop = uvloop.new_event_loop()
        self._leave = asyncio.Event()
        self._entered: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._task = self._loop.create_task(self._main(), name=f"{name}:main")
        # A program that ends without leaving must not hang for it.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    async def start(self) -> T:
        """What the context manager yields. Raises what entering it does. Cancelled, it first leaves again."""
        self._thread.start()
        entered = asyncio.wrap_future(self._entered)
        either: set[asyncio.Future[Any]] = {entered, asyncio.wrap_future(self._ended)}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._give_up()
            raise
        if entered.done():
            return entered.result()
        raise self._failure() or RuntimeError("it ended before it began")

    async def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Do this on the thread's loop. Cancelled, the work is cancelled there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def stop(self) -> None:
        """Leave the context manager, and end the thread. Raises what leaving does. Cancelled, leaving is cancelled, and
        waited for all the same.
        """
        self._loop.call_soon_threadsafe(self._leave.set)
        try:
            await asyncio.shield(asyncio.wrap_future(self._ended))
        except asyncio.CancelledError:
            await self._give_up()
            raise
        if (failure := self._failure()) is not None:
            raise failure

    async def _give_up(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:
            return  # the loop is closed: it has ended meanwhile
        # Shielded: cancelled once more, we wait no longer, but the thread must still find its future as it was.
        await asyncio.shield(asyncio.wrap_future(self._ended))

    def _failure(self) -> BaseException | None:
        return None if self._task.cancelled() else self._task.exception()

    async def _main(self) -> None:
        async with self._make() as inner:
            self._entered.set_result(inner)
            await self._leave.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(asyncio.wait({self._task}))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()
            self._ended.set_result(None)
