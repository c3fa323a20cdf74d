"""Virtual time, and an event loop for each node, so that one may stand still while the others go on.

A callback takes no time. What is random (which loop goes next, what came first while a loop stood still) comes from
the one generator of the run, and nothing depends on addresses or hashes, so that a seed always gives the same run.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any


class Violation(AssertionError):
    """Something happened that must never happen."""


class World:
    """Args:
    recording: Keep what happens, for people; it costs a third of the speed.
    """

    def __init__(self, seed: int, *, recording: bool = False) -> None:
        #: Seconds since the beginning, in true time.
        self.now = 0.0
        self.random = random.Random(seed)
        self.steps = 0
        self.lines: list[str] = []
        self.recording = recording
        self.loops: list[NodeLoop] = []
        #: Called with a loop whenever it has run a callback.
        self.after_step: Callable[[NodeLoop], None] = lambda _: None
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        #: Loops that are not paused and have something to run.
        self._runnable: list[NodeLoop] = []

    def say(self, *what: object) -> None:
        if self.recording:
            self.lines.append(f"{self.now:9.4f}  " + " ".join(str(word) for word in what))

    def at(self, when: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), callback))

    def after(self, delay: float, callback: Callable[[], None]) -> None:
        self.at(self.now + delay, callback)

    def make_runnable(self, loop: NodeLoop) -> None:
        self._runnable.append(loop)

    def stop_running(self, loop: NodeLoop) -> None:
        if loop in self._runnable:
            self._runnable.remove(loop)

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass to `until`, or until `done`. Raises `Violation`."""
        runnable, events = self._runnable, self._events
        while not done():
            while runnable:
                self.steps += 1
                loop = runnable[0 if len(runnable) == 1 else self.random.randrange(len(runnable))]
                loop.run_one()
                if loop.broken is not None:
                    raise loop.broken
                self.after_step(loop)
            if not events or events[0][0] > until:
                self.now = max(self.now, until)
                return
            self.steps += 1
            self.now, _, callback = heapq.heappop(events)
            callback()

    def close(self) -> None:
        """End what is left of every loop, without a word."""
        for loop in self.loops:
            loop.kill()
            loop.close_tasks()


class _Task(asyncio.Task[Any]):
    """One whose place in a set is always the same: sets of tasks are walked when they are cancelled together."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int, **options: Any) -> None:
        self._number = number  # first: the constructor asks for the hash
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


#: Most of a loop's methods nobody asks for here; the types need not know.
_Loop: Any = asyncio.AbstractEventLoop


class NodeLoop(_Loop):  # type: ignore[misc]
    """The loop of one node.

    Args:
        rate: Seconds of its monotonic clock in a true second.
        offset: What that clock said when the world began.
    """

    def __init__(self, world: World, name: str, *, rate: float = 1.0, offset: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.rate = rate
        self.offset = offset
        self.paused = False
        self.killed = False
        #: The first error that nobody dealt with. A bug of the simulation, or of the code under test.
        self.broken: BaseException | None = None
        self._ready: deque[asyncio.Handle] = deque()
        #: What came from outside while it was paused.
        self._came: list[asyncio.Handle] = []
        self._tasks: list[_Task] = []
        self._task_numbers = itertools.count(1)
        world.loops.append(self)

    # What the world does with it

    def run_one(self) -> None:
        handle = self._ready.popleft()
        if not self._ready:
            self.world.stop_running(self)
        asyncio._set_running_loop(self)
        try:
            if not handle.cancelled():
                handle._run()
        finally:
            asyncio._set_running_loop(None)

    def pause(self) -> None:
        self.paused = True
        self.world.stop_running(self)

    def resume(self) -> None:
        """It finds everything at once that came in the meantime, in any order."""
        self.paused = False
        came, self._came = self._came, []
        self.world.random.shuffle(came)
        self._ready.extend(came)
        if self._ready:
            self.world.make_runnable(self)

    def kill(self) -> None:
        self.killed = True
        self._ready.clear()
        self._came.clear()
        self.world.stop_running(self)

    def close_tasks(self) -> None:
        asyncio._set_running_loop(self)
        try:
            for task in self._tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    coroutine = task.get_coro()
                    assert coroutine is not None
                    coroutine.close()
        finally:
            asyncio._set_running_loop(None)

    def arrive(self, callback: Callable[..., object], *args: Any) -> None:
        """Something from outside: a message, or a timer."""
        self._came_in(asyncio.Handle(callback, args, self))

    def _came_in(self, handle: asyncio.Handle) -> None:
        if self.killed:
            return
        if self.paused:
            self._came.append(handle)
        else:
            self._add(handle)

    def _add(self, handle: asyncio.Handle) -> None:
        if not self._ready and not self.paused:
            self.world.make_runnable(self)
        self._ready.append(handle)

    # What asyncio asks of a loop

    def time(self) -> float:
        return self.offset + self.world.now * self.rate

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.killed:
            self._add(handle)
        return handle

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)

        def fire() -> None:
            if not timer.cancelled():
                self._came_in(timer)

        self.world.at((when - self.offset) / self.rate, fire)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # it is passed over when its time comes

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None, **_: Any
    ) -> asyncio.Task[Any]:
        task = _Task(coro, next(self._task_numbers), loop=self, name=name, context=context)
        self._tasks.append(task)
        if len(self._tasks) > 64:
            self._tasks = [task for task in self._tasks if not task.done()]
        return task

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start a task from outside of the loop. An error that it ends in ends the run."""
        task = self.create_task(coroutine, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None and self.broken is None:
            self.broken = task.exception()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.killed and self.broken is None:
            self.broken = context.get("exception") or Violation(str(context["message"]))

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.killed
