"""The runtimes of this node: kept warm, claimed by one user or tenant, replaced when lost.

`reserve` gives a session a place in a runtime of its key. What it decides on is read and changed without an await in
between, so that two requests at once can neither start two runtimes for one user nor take one place twice
(traps 1, 11); whoever finds a claim under way for its key waits for that claim.

Warm runtimes belong to nobody. One that has been claimed is never warm again (`runtime.machine`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.errors import AerodromeError, Capacity, Draining, RuntimeUnavailable
from aerodrome.model import RuntimeKey
from aerodrome.placement.choose import Candidate, least_loaded
from aerodrome.runtime.circuit import StartCircuit
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.ports import Launcher
from aerodrome.runtime.probe import ProbeModel
from aerodrome.runtime.supervisor import ManagedRuntime, RuntimeOptions

log = structlog.get_logger(__name__)

#: Seconds after a claim before its replacement is started: a start takes a core for a second, and the user who
#: has just claimed is about to take the first turn.
REPLENISH_DELAY = 1.0


@dataclass(frozen=True, slots=True)
class PoolOptions:
    runtime: RuntimeOptions
    warm: int = 1
    max_runtimes: int = 32
    #: Resident sessions a runtime.
    max_sessions: int = 50
    spawn_concurrency: int = 2
    #: Seconds to wait for room before `Capacity`.
    capacity_timeout: float = 30.0
    #: Seconds a claimed runtime may hold no session before it is stopped.
    idle_timeout: float = 600.0


#: Makes room by hibernating: the least recently used idle session of this key, or, when it is ``None``, all
#: sessions of the least recently used runtime that has only idle ones. ``False``: there is none.
MakeRoom = Callable[[RuntimeKey | None], Awaitable[bool]]


class RuntimePool:
    def __init__(self, options: PoolOptions, launcher: Launcher) -> None:
        self._options = options
        self._launcher = launcher
        self._probe = ProbeModel()
        self._runtimes: dict[str, ManagedRuntime] = {}
        self._claims: dict[RuntimeKey, asyncio.Task[ManagedRuntime]] = {}
        self._circuit = StartCircuit()
        self._spawn_slots = asyncio.Semaphore(options.spawn_concurrency)
        #: Set, and replaced by a new one, whenever something has changed that a waiter may wait for.
        self._changed = asyncio.Event()
        self._tasks = TaskOwner("pool")
        self._closing = False
        self.make_room: MakeRoom | None = None
        self.on_lost: Callable[[ManagedRuntime], None] | None = None

    # --- life ---

    async def start(self) -> None:
        """Begin to keep runtimes warm. Does not wait for the first one."""
        await self._probe.start()
        self._tasks.start(self._keep_warm(), "keep-warm")
        self._tasks.start(self._stop_idle(), "stop-idle")

    async def aclose(self) -> None:
        """Stop every runtime. Sessions should have been hibernated before."""
        self._closing = True
        self.notify()
        await self._tasks.aclose()
        await asyncio.gather(*(runtime.stop() for runtime in list(self._runtimes.values())), return_exceptions=True)
        await self._probe.aclose()

    @property
    def runtimes(self) -> list[ManagedRuntime]:
        return list(self._runtimes.values())

    @property
    def unavailable_reason(self) -> str | None:
        """Why no runtime can be started, while that is so."""
        return self._circuit.reason if self._circuit.is_open else None

    # --- places ---

    async def reserve(self, key: RuntimeKey) -> ManagedRuntime:
        """A runtime of this key with a place taken in it; give the place back with `release`.

        Raises:
            Capacity: No room within the time-out, with all runtimes and their sessions in use.
            RuntimeUnavailable: The CLI does not start; the detail says why.
            Draining: This node is shutting down.
        """
        deadline = time.monotonic() + self._options.capacity_timeout
        while True:
            if self._closing:
                raise Draining("this node is shutting down")
            # Taken before we look, so that a change between the look and the wait is not missed.
            changed = self._changed
            if (runtime := self._with_room(key)) is not None:
                runtime.reserved += 1
                return runtime
            if key in self._claims:
                # `shield`: that claim belongs to everybody who waits for it, not to the one who is cancelled.
                await asyncio.shield(self._claims[key])
            elif self._of(key) and await self._make_room(key):
                continue
            elif self._may_claim():
                await asyncio.shield(self._start_claim(key))
            elif not await self._free_a_runtime():
                await self._wait(changed, deadline)

    def release(self, runtime: ManagedRuntime) -> None:
        runtime.reserved -= 1
        runtime.last_held = time.monotonic()
        self.notify()

    async def retire(self, runtime: ManagedRuntime) -> None:
        """Stop a runtime that nobody needs any more."""
        self._runtimes.pop(runtime.id, None)
        await runtime.stop()
        self.notify()

    async def _make_room(self, key: RuntimeKey | None) -> bool:
        return self.make_room is not None and await self.make_room(key)

    async def _free_a_runtime(self) -> bool:
        """All runtimes are claimed: end one that holds no session, after emptying one if need be."""
        empty = self._empty_one()
        if empty is None and await self._make_room(None):
            empty = self._empty_one()
        if empty is None:
            return False
        await self.retire(empty)
        return True

    def _empty_one(self) -> ManagedRuntime | None:
        empty = [r for r in self._runtimes.values() if r.state is RuntimeState.CLAIMED and r.reserved == 0]
        return min(empty, key=lambda r: r.last_held, default=None)

    def _of(self, key: RuntimeKey) -> list[ManagedRuntime]:
        return [r for r in self._runtimes.values() if r.key == key and r.state is RuntimeState.CLAIMED]

    def _with_room(self, key: RuntimeKey) -> ManagedRuntime | None:
        candidates = [Candidate(r.id, r.reserved, self._options.max_sessions) for r in self._of(key)]
        chosen = least_loaded(candidates)
        return self._runtimes[chosen] if chosen else None

    def _may_claim(self) -> bool:
        return self._warm_one() is not None or self._has_room_for_runtime()

    def _has_room_for_runtime(self) -> bool:
        return len(self._runtimes) < self._options.max_runtimes or self._starting() > len(self._claims)

    def _warm_one(self) -> ManagedRuntime | None:
        return next((r for r in self._runtimes.values() if r.state is RuntimeState.WARM), None)

    def _starting(self) -> int:
        return sum(r.state is RuntimeState.STARTING for r in self._runtimes.values())

    # --- claims ---

    def _start_claim(self, key: RuntimeKey) -> asyncio.Task[ManagedRuntime]:
        task = self._tasks.start(self._claim(key), f"claim {key}", expected=AerodromeError)
        self._claims[key] = task
        task.add_done_callback(lambda _: self._claims.pop(key, None))
        return task

    async def _claim(self, key: RuntimeKey) -> ManagedRuntime:
        while (runtime := self._warm_one()) is None:
            if self._starting() < len(self._claims):
                await self._spawn()
            else:
                # One that is being started for the warm pool will do.
                await self._wait(self._changed, time.monotonic() + self._options.runtime.start_timeout)
        runtime.claim(key)
        log.info("runtime.claimed", runtime=runtime.id, pid=runtime.pid, key=str(key))
        self.notify()
        return runtime

    async def _spawn(self) -> None:
        """Start one runtime; it is warm afterwards. Raises `RuntimeUnavailable`."""
        if self._circuit.is_open and (wait := self._circuit.wait(time.monotonic())):
            raise RuntimeUnavailable(f"the Copilot CLI does not start: {self._circuit.reason}", retry_after=wait)
        runtime = ManagedRuntime(f"rt-{secrets.token_hex(5)}", self._options.runtime)
        self._runtimes[runtime.id] = runtime
        began = time.monotonic()
        try:
            async with self._spawn_slots:
                await asyncio.sleep(self._circuit.wait(time.monotonic()))
                await runtime.start(self._launcher, self._probe)
        except BaseException as error:
            self._runtimes.pop(runtime.id, None)
            if isinstance(error, AerodromeError):
                self._circuit.failed(time.monotonic(), error.detail)
                log.warning("runtime.start_failed", runtime=runtime.id, reason=error.detail)
            self.notify()
            raise
        self._circuit.succeeded()
        runtime.on_lost = self._lost
        log.info("runtime.warm", runtime=runtime.id, pid=runtime.pid, seconds=round(time.monotonic() - began, 3))
        self.notify()

    def _lost(self, runtime: ManagedRuntime) -> None:
        self._runtimes.pop(runtime.id, None)
        if self.on_lost is not None:
            self.on_lost(runtime)
        self.notify()

    # --- upkeep ---

    async def _keep_warm(self) -> None:
        """Refill the warm pool whenever it has gone short, a moment after what emptied it."""
        while True:
            while self._warm_short():
                try:
                    await self._spawn()
                except AerodromeError:
                    await asyncio.sleep(max(0.1, self._circuit.wait(time.monotonic())))
            changed = self._changed
            if not self._warm_short():
                await changed.wait()
            if self._warm_short():
                await asyncio.sleep(REPLENISH_DELAY)

    def _warm_short(self) -> bool:
        spare = sum(r.state in (RuntimeState.WARM, RuntimeState.STARTING) for r in self._runtimes.values())
        return spare < self._options.warm + len(self._claims) and len(self._runtimes) < self._options.max_runtimes

    async def _stop_idle(self) -> None:
        interval = max(0.05, min(5.0, self._options.idle_timeout / 4))
        while True:
            await asyncio.sleep(interval)
            now = time.monotonic()
            for runtime in self.runtimes:
                idle = runtime.state is RuntimeState.CLAIMED and runtime.reserved == 0
                # A user's own runtime has nobody left to wait for; a tenant's may get its next user any moment.
                patience = self._options.idle_timeout if runtime.key and runtime.key.user is None else 0.0
                if idle and now - runtime.last_held >= patience:
                    log.info("runtime.idle", runtime=runtime.id, key=str(runtime.key))
                    await self.retire(runtime)

    async def _wait(self, changed: asyncio.Event, deadline: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await changed.wait()
        except TimeoutError:
            raise Capacity(
                f"all {self._options.max_runtimes} runtimes are in use and none became free within "
                f"{self._options.capacity_timeout:g} s",
                retry_after=self._options.capacity_timeout,
            ) from None

    def notify(self) -> None:
        """Something has changed that a waiter may wait for; also called when a session falls idle."""
        self._changed.set()
        self._changed = asyncio.Event()
