"""What a pool does by itself: the warm ones are refilled, the machine is looked at, and what is not used ends."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.errors import AerodromeError
from aerodrome.runtime.circuit import StartCircuit
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.standby import Standby
from aerodrome.runtime.supervisor import ManagedRuntime

if TYPE_CHECKING:
    from aerodrome.runtime.pool import RuntimePool

log = structlog.get_logger(__name__)

#: Seconds between two looks at what the machine has left.
_LOOK = 5.0
#: Seconds between the deaths of two warm runtimes after which they have nothing to do with each other.
_APART = 120.0


class Upkeep:
    """Args:
    idle_timeout: Seconds that a runtime may hold no session before it is stopped.
    replenish_delay: Seconds between a claim and the start of its replacement (see `PoolOptions`).
    """

    def __init__(self, pool: RuntimePool, standby: Standby, *, idle_timeout: float, replenish_delay: float) -> None:
        self._pool = pool
        self._standby = standby
        self._idle_timeout = idle_timeout
        self._replenish_delay = replenish_delay
        #: Warm runtimes that have died, one soon after the other: their replacements are put off.
        self.deaths = StartCircuit()
        self._latest_death = 0.0

    def start(self, tasks: TaskOwner) -> None:
        tasks.start(self._keep_warm(), "keep-warm")
        tasks.start(self._stop_idle(tasks), "stop-idle")
        tasks.start(self._watch_machine(), "watch-machine")

    def warm_target(self) -> int:
        """How many runtimes are to be warm now."""
        measured = [runtime.memory for runtime in self._pool.runtimes if runtime.memory]
        return self._standby.target(self._pool.spare, min(measured, default=None))

    def lost(self, runtime: ManagedRuntime) -> None:
        """A warm one has ended by itself. Nobody waits for another, and whatever has ended it may do so again."""
        now = time.monotonic()
        if now - self._latest_death >= _APART:
            self.deaths.succeeded()
        self._latest_death = now
        self.deaths.failed(now, runtime.lost_reason)

    async def _keep_warm(self) -> None:
        """Refill the warm pool whenever it has gone short, a moment after what emptied it."""
        pool = self._pool
        while True:
            changed = pool.changed
            if not self._warm_short():
                await changed.wait()
                continue
            if pool.claimed:
                await asyncio.sleep(self._standby.pause(self._replenish_delay))
            await asyncio.sleep(self.deaths.wait(time.monotonic()))
            if self._warm_short():
                try:
                    await pool.spawn()
                except AerodromeError:
                    await asyncio.sleep(max(0.1, pool.start_pause))

    def _warm_short(self) -> bool:
        return self._pool.spare < self.warm_target() and not self._pool.full

    async def _watch_machine(self) -> None:
        while True:
            try:
                await self._look_at_machine()
            except OSError as error:  # too many files are open, for one: the next look may go well
                log.warning("runtime.machine_not_seen", error=str(error))
            self._pool.notify()
            await asyncio.sleep(_LOOK)

    async def _look_at_machine(self) -> None:
        """See what it has left, and let a warm runtime go when that is too little."""
        headroom = self._standby.look()
        warm = self._pool.in_state(RuntimeState.WARM)
        if self._standby.short and warm and self.warm_target() < self._pool.spare:
            log.warning("runtime.let_go", runtime=warm[0].id, available=headroom.available)
            await self._pool.retire(warm[0], "surplus")

    async def _stop_idle(self, tasks: TaskOwner) -> None:
        interval = max(0.05, min(5.0, self._idle_timeout / 4))
        while True:
            await asyncio.sleep(interval)
            for runtime in self._pool.runtimes:
                # Looked at again for each: when the one before is being stopped, fewer are spare.
                if self._idle(runtime, time.monotonic()):
                    log.info("runtime.idle", runtime=runtime.id, key=str(runtime.key))
                    # Not waited for: one that does not end must not keep the others from it.
                    tasks.start(self._pool.retire(runtime, "idle"), f"stop {runtime.id}")
                    await asyncio.sleep(0)

    def _idle(self, runtime: ManagedRuntime, now: float) -> bool:
        unused = now - runtime.last_held
        if runtime.state is RuntimeState.WARM:
            # Started for a request that then gave up, or when more were in demand.
            return unused >= self._idle_timeout and self._pool.spare > self.warm_target()
        if runtime not in self._pool.unused():
            return False
        # A user's own runtime has nobody left to wait for; a tenant's may get its next user any moment.
        of_user = runtime.key is not None and runtime.key.user is not None
        return of_user or unused >= self._idle_timeout
