"""Gates hold answers until a test opens them, so that "in mid-turn" is a fact and not a guess about time.

Every method may be called from any thread, and both sides may wait on an event loop of their own: the server's
loop holds the answer, the loop of the test waits for it to be held.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Gate:
    is_open: bool = False
    #: Requests that came to the gate since it was last closed.
    reached: int = 0
    #: Requests held at it now.
    held: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    condition: Callable[[], bool]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]


class Gates:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gates: dict[str, _Gate] = {}
        self._waiters: set[_Waiter] = set()

    def open(self, name: str) -> None:
        """Let the held requests and all later ones pass, until `close`."""
        with self._lock:
            self._gate(name).is_open = True
            self._notify()

    def close(self, name: str) -> None:
        """Hold the next requests again, and count them anew."""
        with self._lock:
            gate = self._gate(name)
            gate.is_open = False
            gate.reached = gate.held

    async def passed(self, name: str) -> None:
        """Wait at the gate. A cancelled wait leaves it as if the request had never been held."""
        with self._lock:
            gate = self._gate(name)
            gate.reached += 1
            gate.held += 1
            self._notify()
        try:
            await self._until(lambda: gate.is_open)
        finally:
            with self._lock:
                gate.held -= 1
                self._notify()

    async def reached(self, name: str, times: int = 1) -> None:
        """Wait until so many requests have come to the gate since it was last closed."""
        gate = self._named(name)
        await self._until(lambda: gate.reached >= times)

    async def left(self, name: str) -> None:
        """Wait until no request is held at the gate: it was opened, or the clients have gone."""
        gate = self._named(name)
        await self._until(lambda: gate.held == 0)

    def _named(self, name: str) -> _Gate:
        with self._lock:
            return self._gate(name)

    def _gate(self, name: str) -> _Gate:
        return self._gates.setdefault(name, _Gate())

    async def _until(self, condition: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        with self._lock:
            if condition():
                return
            waiter = _Waiter(condition, loop, loop.create_future())
            self._waiters.add(waiter)
        try:
            await waiter.future
        finally:
            with self._lock:
                self._waiters.discard(waiter)

    def _notify(self) -> None:
        """Wake those whose condition holds now. The lock is held, so a condition sees one consistent state."""
        for waiter in [waiter for waiter in self._waiters if waiter.condition()]:
            self._waiters.discard(waiter)
            waiter.loop.call_soon_threadsafe(_wake, waiter.future)


def _wake(future: asyncio.Future[None]) -> None:
    # The waiter may have been cancelled between the notification and this callback.
    if not future.done():
        future.set_result(None)
