"""Tasks with a name and an owner: a bare `asyncio.create_task` can be collected while it runs, and its
exception is reported at some later time, or never.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Seconds after which a task that was cancelled and has not ended is cancelled again: more than it needs to clean up.
_CANCELLED_AGAIN = 10.0


class TaskOwner:
    """Keeps a reference to each task it starts, logs what they raise, and ends them all in `aclose`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def closed(self) -> bool:
        """It starts no more tasks."""
        return self._closed

    def start(
        self,
        coroutine: Coroutine[Any, Any, Any],
        name: str,
        *,
        expected: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> asyncio.Task[Any]:
        """Run it in a context of its own: a task outlives the request that happened to start it, and what that
        request has bound, such as its id and user for the log, must not stand in the lines of later ones.

        Args:
            expected: An error that whoever awaits the task deals with; it is not logged here.
        """
        if self._closed:
            coroutine.close()
            raise RuntimeError(f"{self._name} is closed and starts no task {name!r}")
        task = asyncio.create_task(coroutine, name=f"{self._name}:{name}", context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, expected))
        return task

    def start_if_open(
        self,
        coroutine: Coroutine[Any, Any, Any],
        name: str,
        *,
        expected: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> asyncio.Task[Any] | None:
        """As `start`, for what is of no use any more once this is closed: it is dropped then. ``None``: it was."""
        if self._closed:
            coroutine.close()
            return None
        return self.start(coroutine, name, expected=expected)

    def _done(self, task: asyncio.Task[Any], expected: type[Exception] | tuple[type[Exception], ...]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, expected):
            log.error("task.failed", task=task.get_name(), exc_info=error)

    async def aclose(self) -> None:
        """Cancel what still runs and wait for it. Safe to call twice, and from one of the tasks."""
        self._closed = True
        current = asyncio.current_task()
        pending = {task for task in self._tasks if task is not current}
        while pending:
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=_CANCELLED_AGAIN)
            if pending:
                # A cancellation may get lost in a library, and who waits for the end of such a task waits for ever.
                log.warning("task.not_ended", tasks=sorted(map(place_of, pending)))


def place_of(task: asyncio.Task[Any]) -> str:
    """Its name and where it waits, from its own function down to the innermost: `NAME: FUNCTION:LINE > ...`."""
    places = []
    waits: Any = task.get_coro()
    while (frame := getattr(waits, "cr_frame", None)) is not None:
        places.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        waits = waits.cr_await
    return f"{task.get_name()}: {' > '.join(places)}"


async def every(seconds: float, work: Callable[[], Awaitable[None]], failed: str) -> None:
    """Do it for ever, with so many seconds before each time.

    Args:
        failed: The event under which it is logged that it has raised something. It is done again all the same: that it
            is done no more would be found out at the worst time.
    """
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:
            log.exception(failed)


async def heeding(work: Awaitable[T]) -> T:
    """Await what may lose a cancellation, as `asyncio.wait_for` of Python 3.11 does when it comes together with the
    result, and with it whatever library uses that. It is raised behind it then.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        return await work
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


class Flag:
    """An `asyncio.Event` for who waits for several things: it is a future, where an event would take a task each time.

    Made and used in the loop's thread.
    """

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def raised(self) -> asyncio.Future[None]:
        """Done when it is set; for `first_of` and the like, which leave it as it is."""
        return self._future

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def clear(self) -> None:
        if self._future.done():
            self._future = asyncio.get_running_loop().create_future()


async def first_of(*futures: asyncio.Future[Any]) -> None:
    """Wait until at least one is done. Neither their errors nor our cancellation touch anything."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


class Forestalled(Exception):
    """Something else came first, and the work was given up."""


async def unless(work: Coroutine[Any, Any, T], *signals: asyncio.Future[Any]) -> T:
    """Do the work, unless one of the signals comes first.

    Raises:
        Forestalled: One did; the work was cancelled and has ended.
    """
    task = asyncio.ensure_future(work)
    try:
        await first_of(task, *signals)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        raise Forestalled
    return task.result()


async def shared(task: asyncio.Task[T]) -> T:
    """Wait for a task that others wait for, too: our cancellation leaves it as it is.

    Raises:
        Forestalled: It was cancelled, and we were not. Who is cancelled together with it ends, and does not take that
            for a failure of the task, to be tried again.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        ours = asyncio.current_task()
        if task.cancelled() and (ours is None or not ours.cancelling()):
            raise Forestalled from None
        raise
