"""Threads for calls that may take long, or for ever: those of a file system that is a network away."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from aerodrome.errors import StoreUnavailable

T = TypeVar("T")

_Work = tuple["Future[Any]", Callable[[], Any]]


class Threads:
    """A number of threads of its own, so that calls which hang take none from `asyncio.to_thread`.

    They do not keep the process from ending.

    Args:
        most: Threads; they are started when they are needed.
        most_of_one: Calls of one `whose` at a time; the others wait.
    """

    def __init__(self, name: str, most: int, most_of_one: int) -> None:
        self._name = name
        self._most = most
        self._most_of_one = most_of_one
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0
        self._closed = False
        self._gates: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, whose: str, call: Callable[[], T]) -> T:
        """The call's result. When the caller is cancelled the call goes on, and counts as long as it does.

        Raises:
            StoreUnavailable: The threads have been ended.
        """
        if self._closed:
            raise StoreUnavailable(f"the {self._name} has been closed")
        gate = self._gates.get(whose)
        if gate is None:
            gate = self._gates[whose] = asyncio.Semaphore(self._most_of_one)
        await gate.acquire()
        loop, release = asyncio.get_running_loop(), gate.release
        future: Future[T] = Future()

        def done(_: Future[T]) -> None:
            with suppress(RuntimeError):  # nobody waits any more: the loop has ended
                loop.call_soon_threadsafe(release)

        future.add_done_callback(done)
        self._work.put((future, call))
        if not self._idle.acquire(blocking=False) and self._started < self._most:
            self._started += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads, each with the call that it is at."""
        self._closed = True
        for _ in range(self._started):
            self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            future, call = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del work, future, call  # what it holds is not to live until the next comes
            self._idle.release()
