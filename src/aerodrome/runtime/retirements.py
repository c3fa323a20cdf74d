"""Runtimes that are to go while they are in use: recycled, or drained.

*Recycling* makes before it breaks. First there is another runtime of the same user or tenant, then the old one takes
no session any more, then its sessions move: the idle ones at once, those in a turn when it ends; it stops when
it holds none. A prompt that comes to a session which is moving waits until it has moved. At the ceiling of
`max_runtimes` there is no replacement to be had before: then the sessions hibernate, and wake where there is room.

A turn that does not end would keep a worn runtime for ever. So recycling has a patience; when that is over the runtime
is killed, and what was in it fails over as after any loss.

*Draining* is the same without replacement and without patience: what an operator drains is in no hurry.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.errors import AerodromeError, Conflict, Draining
from aerodrome.model import RuntimeKey
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.supervisor import ManagedRuntime

if TYPE_CHECKING:
    from aerodrome.runtime.pool import RuntimePool

log = structlog.get_logger(__name__)

#: Seconds between two looks at what a runtime still holds. Most that makes a session idle is told of, but not the end
#: of work that the runtime had begun by itself.
_LOOK = 1.0
#: Users and tenants at most of whom it is remembered why they have lost a runtime.
_REMEMBERED = 1000


class Retirements:
    """Args:
    patience: Seconds that a recycled runtime may go on with turns that were running.
    """

    def __init__(self, pool: RuntimePool, tasks: TaskOwner, patience: float) -> None:
        self._pool = pool
        self._tasks = tasks
        self._patience = patience
        self._under_way: dict[str, asyncio.Task[None]] = {}
        #: Why runtimes were recycled that have no replacement yet.
        self._heirs: dict[RuntimeKey, tuple[str, ...]] = {}
        #: Recycled runtimes by reason, since the start of the node.
        self.recycled: Counter[str] = Counter()

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    def has(self, runtime: ManagedRuntime) -> bool:
        """Whether it is being recycled or drained."""
        return runtime.id in self._under_way

    async def recycle(self, runtime: ManagedRuntime, reason: str) -> None:
        """See `RuntimePool.recycle`. Whoever comes second waits for the first."""
        await self._end_of(self.begin_recycling(runtime, reason))

    async def drain(self, runtime: ManagedRuntime) -> None:
        """See `RuntimePool.drain`."""
        await self._end_of(self._begin(runtime, lambda: self._drain(runtime)))

    def begin_recycling(self, runtime: ManagedRuntime, reason: str) -> asyncio.Task[None]:
        """As `recycle`, without waiting. What goes wrong is logged."""
        return self._begin(runtime, lambda: self._recycle(runtime, reason))

    def _begin(self, runtime: ManagedRuntime, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        task = self._under_way.get(runtime.id)
        if task is None:
            if runtime.state is RuntimeState.STARTING:
                raise Conflict("the runtime is being started; ask again when it is warm")
            task = self._tasks.start(work(), f"retire {runtime.id}", expected=AerodromeError)
            self._under_way[runtime.id] = task
            task.add_done_callback(lambda _: self._under_way.pop(runtime.id))
        return task

    async def _end_of(self, task: asyncio.Task[None]) -> None:
        # Half done would be a runtime that takes no sessions and does not stop: it goes on without the caller.
        await asyncio.wait({task})
        if task.cancelled():
            raise Draining("this node is shutting down, and its runtimes with it")
        task.result()

    async def _recycle(self, runtime: ManagedRuntime, reason: str) -> None:
        log.info("runtime.recycling", runtime=runtime.id, key=str(runtime.key), reason=reason, turns=runtime.turns)
        began = time.monotonic()
        if runtime.key is None:
            await self._pool.retire(runtime, reason)  # it is warm, and another takes its place in the pool
        else:
            with self._pool.wanting(runtime.key):
                try:
                    successor = await self._pool.replacement(runtime)
                except AerodromeError as error:
                    log.warning("runtime.not_recycled", runtime=runtime.id, reason=reason, error=error.detail)
                    raise
                if runtime.state.is_final:
                    return  # lost while its replacement was being started, which its sessions find all the same
                self._inherit(runtime, successor, reason)
                await self._empty(runtime, reason, reload=True, patience=self._patience)
        self.recycled[reason] += 1
        log.info("runtime.recycled", runtime=runtime.id, reason=reason, seconds=round(time.monotonic() - began, 3))

    def _inherit(self, runtime: ManagedRuntime, successor: ManagedRuntime | None, reason: str) -> None:
        assert runtime.key is not None
        chain = (*runtime.replaces, reason)
        if successor is not None:
            successor.replaces = chain
        elif not self._pool.others(runtime):
            # At the ceiling. Its sessions come to the next runtime of the key, whenever that is claimed.
            self._heirs.pop(runtime.key, None)
            self._heirs[runtime.key] = chain
            if len(self._heirs) > _REMEMBERED:
                del self._heirs[next(iter(self._heirs))]

    def claimed(self, runtime: ManagedRuntime) -> None:
        """It has just been claimed: perhaps it replaces one for which there was no replacement at the time."""
        if runtime.key is not None and (chain := self._heirs.pop(runtime.key, None)) is not None:
            runtime.replaces = chain

    async def _drain(self, runtime: ManagedRuntime) -> None:
        log.info("runtime.draining", runtime=runtime.id, key=str(runtime.key))
        if runtime.key is None:
            await self._pool.retire(runtime, "drain")
        else:
            await self._empty(runtime, "drain", reload=False, patience=None)
        log.info("runtime.drained", runtime=runtime.id)

    async def _empty(self, runtime: ManagedRuntime, reason: str, *, reload: bool, patience: float | None) -> None:
        deadline = None if patience is None else time.monotonic() + patience
        if runtime.state is RuntimeState.CLAIMED:
            runtime.retire(reason)
            self._pool.notify()
        # Loading them again must not wait for the place that this runtime takes.
        reload = reload and self._pool.places_besides(runtime) >= runtime.reserved
        while runtime.reserved and runtime.state is RuntimeState.RETIRING:
            # Before the patience is looked at: an idle session moves, also when those in a turn get no time.
            if await self._move(runtime, reload):
                continue
            if deadline is not None and time.monotonic() >= deadline:
                runtime.kill(f"it was to be recycled ({reason}), and its turns did not end within {patience:g} s")
            else:
                await self._pool.change(_LOOK if deadline is None else min(_LOOK, deadline - time.monotonic()))
        await self._pool.retire(runtime)

    async def _move(self, runtime: ManagedRuntime, reload: bool) -> bool:
        move = self._pool.move_sessions
        try:
            return move is not None and await move(runtime, reload)
        except Exception:
            # Given up here, it would be a runtime that takes no sessions and does not stop.
            log.exception("runtime.move_failed", runtime=runtime.id)
            return False
