"""The runtimes of this node: kept warm, claimed by one user or tenant, replaced when lost.

`reserve` gives a session a place in a runtime of its key. What it decides on is read and changed without an await in
between, so that two requests at once can neither start two runtimes for one user nor take one place twice
(traps 1, 11). A key that needs a runtime has one claim (`claims`), however many requests wait for it.

Nobody waits for anything in particular: whatever changes wakes all who wait, and each looks again. When many wait, they
are woken no more often than that their looking takes a part of the event loop's time (`_wake`).

Warm runtimes belong to nobody. One that has been claimed is never warm again (`runtime.machine`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.errors import Capacity, Draining, NotFound, RuntimeUnavailable
from aerodrome.fairness.line import Ticket
from aerodrome.model import PlacementStrategy, RuntimeKey
from aerodrome.placement.choose import Candidate, placement
from aerodrome.runtime.claims import Claim, Claims
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.ports import EmptyRuntime, Launcher, MakeRoom, MoveSessions, Runtime
from aerodrome.runtime.queueing import RuntimeQueue
from aerodrome.runtime.recycler import RecycleOptions, Recycler
from aerodrome.runtime.retirements import Retirements
from aerodrome.runtime.standby import Standby, StandbyOptions
from aerodrome.runtime.starts import Starts
from aerodrome.runtime.supervisor import ManagedRuntime, RuntimeOptions
from aerodrome.runtime.upkeep import Upkeep
from aerodrome.telemetry.meter import Meter

log = structlog.get_logger(__name__)


#: Requests that wait up to which each change wakes them at once.
_FEW = 200
#: Seconds between two times that so many are woken, for each of them: several times what a look takes.
_APART = 1e-4
#: Runtimes that a session may have got stuck in before it has to wait for one of them.
_STUCK_IN = 2


@dataclass(frozen=True, slots=True)
class PoolOptions:
    runtime: RuntimeOptions
    #: Warm runtimes at least, and at most when they are much in demand (`runtime.standby`).
    warm: int = 1
    max_warm: int = 0
    #: Bytes that warm runtimes leave free on the machine; 0: they do not look.
    memory_reserve: int = 0
    max_runtimes: int = 32
    #: Resident sessions a runtime.
    max_sessions: int = 50
    spawn_concurrency: int = 2
    #: Requests for a place that wait, of one tenant and of one user.
    max_waiting_per_tenant: int = 10_000
    max_waiting_per_user: int = 1_000
    #: Runtimes that a tenant has at most; ``None``: no limit of its own.
    max_runtimes_per_tenant: int | None = None
    #: Of a tenant: how often it is next when several wait.
    weight: Callable[[str], float] = lambda _: 1.0
    #: Seconds to wait for room before `Capacity`; the start of a runtime, once it is under way, has its own limit.
    capacity_timeout: float = 30.0
    #: Seconds a claimed runtime may hold no session before it is stopped.
    idle_timeout: float = 600.0
    #: Seconds after a claim before its replacement is started: a start takes a core for a second, and the user who
    #: has just claimed is about to take the first turn.
    replenish_delay: float = 1.0
    #: Which of a key's runtimes gets a session.
    placement: PlacementStrategy = PlacementStrategy.LEAST_LOADED
    recycle: RecycleOptions = field(default_factory=RecycleOptions)


class RuntimePool:
    def __init__(
        self,
        options: PoolOptions,
        launcher: Launcher,
        standby: Standby | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._options = options
        self._meter = meter or Meter()
        self._starts = Starts(launcher, options.spawn_concurrency)
        self._placement = placement(options.placement)
        #: All that have a process, also those that are being started, stopped or buried.
        self._runtimes: dict[str, ManagedRuntime] = {}
        #: Calls of `reserve` under way.
        self._requests: Counter[RuntimeKey] = Counter()
        self._queue = RuntimeQueue(
            options.weight,
            options.max_waiting_per_tenant,
            options.max_waiting_per_user,
            options.max_runtimes_per_tenant,
        )
        #: Set, and replaced by a new one, whenever something has changed that a waiter may wait for.
        self._changed = asyncio.Event()
        #: Monotonic time before which those who wait are not woken again, and who wakes them then.
        self._woken_until = 0.0
        self._waking: asyncio.TimerHandle | None = None
        self._tasks = TaskOwner("pool")
        self._claims = Claims(self, self._queue, self._tasks, self._requests)
        self._closing = False
        self.retirements = Retirements(self, self._tasks, options.recycle.patience)
        self.standby = standby or Standby(StandbyOptions(options.warm, options.max_warm, options.memory_reserve))
        self.upkeep = Upkeep(
            self, self.standby, idle_timeout=options.idle_timeout, replenish_delay=options.replenish_delay
        )
        self.make_room: MakeRoom | None = None
        self.empty_runtime: EmptyRuntime | None = None
        self.move_sessions: MoveSessions | None = None
        self.on_lost: Callable[[Runtime], None] | None = None

    # --- life ---

    async def start(self) -> None:
        """Begin to keep runtimes warm. Does not wait for the first one."""
        await self._starts.open()
        self.upkeep.start(self._tasks)
        self._tasks.start(Recycler(self, self._options.recycle).run(), "recycle")

    async def aclose(self) -> None:
        """Stop every runtime. Sessions should have been hibernated before."""
        self._closing = True
        self._wake()
        await self._tasks.aclose()
        await asyncio.gather(*(self._stop(runtime) for runtime in self.runtimes))
        await self._starts.aclose()

    def abort(self) -> None:
        """Kill them all, now, for a process that ends without closing anything."""
        for runtime in self.runtimes:
            runtime.abort()

    @property
    def runtimes(self) -> list[ManagedRuntime]:
        return list(self._runtimes.values())

    def in_state(self, state: RuntimeState) -> list[ManagedRuntime]:
        return [r for r in self._runtimes.values() if r.state is state]

    @property
    def full(self) -> bool:
        """It has as many runtimes as it may have."""
        return len(self._runtimes) >= self._options.max_runtimes

    @property
    def keeps_warm(self) -> bool:
        """Whether runtimes are started before anybody needs them."""
        return self._options.warm > 0

    @property
    def spare(self) -> int:
        """Runtimes that are warm, or about to be, and that no claim waits for."""
        return len(self.in_state(RuntimeState.WARM)) + len(self.in_state(RuntimeState.STARTING)) - self._queue.claims

    @property
    def claimed(self) -> bool:
        """Whether there is somebody who has a runtime, or waits for one."""
        return bool(self._claims or self.in_state(RuntimeState.CLAIMED))

    @property
    def start_pause(self) -> float:
        """Seconds until the next start may be tried, after some that have failed."""
        return self._starts.pause

    @property
    def unavailable_reason(self) -> str | None:
        """Why no runtime can be started, while that is so."""
        return self._starts.circuit.reason if self._starts.circuit.is_open else None

    # --- places ---

    async def reserve(
        self, key: RuntimeKey, session_id: str | None = None, user: str | None = None, *, alone: bool = False
    ) -> ManagedRuntime:
        """A runtime of this key with a place taken in it; give the place back with `release`.

        Args:
            session_id: The session that the place is for. It does not come to a runtime that has not let go of it yet.
            user: For whom, where users share runtimes: they take turns when places are few, and come to the same
                runtime again under the placement `sticky`.
            alone: In a runtime that holds nothing else, and gets nothing else meanwhile.

        Raises:
            Capacity: No room within the time-out, with all runtimes and their sessions in use; or too many wait.
            RuntimeUnavailable: The CLI does not start; the detail says why.
            Draining: This node is shutting down.
        """
        with self.wanting(key):
            ticket = self._queue.join(key, user or "")
            served = False
            try:
                deadline = time.monotonic() + self._options.capacity_timeout
                runtime = await self._find_room(key, session_id, user, ticket, deadline, alone=alone)
                runtime.reserved += 1
                runtime.alone = alone
                served = True
            finally:
                if self._queue.leave(key, ticket, served=served):
                    self.notify()  # another one is the first now
            try:
                await runtime.furnished()
            except BaseException:
                self.release(runtime)
                raise
            return runtime

    @contextmanager
    def wanting(self, key: RuntimeKey) -> Iterator[None]:
        """As long as this is open, runtimes of the key that hold no session are not unused."""
        self._requests[key] += 1
        try:
            yield
        finally:
            self._requests[key] -= 1
            if not self._requests[key]:
                del self._requests[key]
                self.notify()  # a runtime of this key that holds no session may be ended now

    async def _find_room(
        self,
        key: RuntimeKey,
        session_id: str | None,
        user: str | None,
        ticket: Ticket,
        deadline: float,
        *,
        alone: bool,
    ) -> ManagedRuntime:
        claim: Claim | None = None
        #: The state of things in which we have asked for room in this key's own runtimes.
        asked: asyncio.Event | None = None
        while True:
            if self._closing:
                raise Draining("this node is shutting down")
            # Taken before we look, so that a change between the look and the wait is not missed.
            changed = self._changed
            stuck_in = [
                r for r in self._runtimes.values() if r.key == key and r.state.serves and session_id in r.letting_go
            ]
            if len(stuck_in) >= _STUCK_IN:
                # Whoever makes sessions get stuck gets no third runtime for it.
                raise RuntimeUnavailable("earlier runtimes have not let go of the session yet", retry_after=5.0)
            if (stuck_in or alone) and self._queue.leave(key, ticket):
                self.notify()  # what it cannot take shall not be kept from others
            if alone:
                # One that has not let go of others yet holds them still.
                if (empty := [r for r in self._of(key) if not r.reserved and not r.letting_go]) != []:
                    return empty[0]
            elif (runtime := self._with_room(key, stuck_in, user)) is not None and self._queue.is_first(key, ticket):
                return runtime
            if not alone and asked is not changed and any(r not in stuck_in for r in self._of(key)):
                asked = changed
                if self.make_room is not None:
                    await self.make_room(key)
                continue
            if claim is None or claim.ended:
                if claim is not None and claim.error is not None:
                    raise claim.error
                claim = self._claims.join(key)
            await self._wait(key, claim, ticket, changed, deadline)

    def release(self, runtime: Runtime) -> None:
        runtime.reserved -= 1
        runtime.alone = runtime.alone and runtime.reserved > 0
        runtime.last_held = time.monotonic()
        self.notify()

    @property
    def changed(self) -> asyncio.Event:
        """Is set with the next `notify`; then there is another."""
        return self._changed

    async def change(self, timeout: float) -> None:
        """Wait for the next `notify`, and no longer than `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()

    def notify(self) -> None:
        """Something has changed that somebody may wait for: a place, or a session that can be hibernated."""
        if self._waking is not None:
            return
        wait = self._woken_until - time.monotonic()
        if self._closing or wait <= 0.0:
            self._wake()
        else:
            self._waking = asyncio.get_running_loop().call_later(wait, self._wake)

    def _wake(self) -> None:
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        waiting = self._queue.requests
        if waiting > _FEW:
            # Thousands that look again at each end of a turn would leave no time for the turns.
            self._woken_until = time.monotonic() + waiting * _APART
        self._changed.set()
        self._changed = asyncio.Event()

    # --- runtimes that are to go ---

    async def recycle(self, runtime_id: str, reason: str) -> None:
        """Replace a runtime: its sessions move to another one of its key, then it stops (see `retirements`).

        Args:
            reason: A word or two, for logs, listings and counters.

        Raises:
            NotFound: This node has no such runtime.
            Conflict: It is being started.
            RuntimeUnavailable: No replacement can be started; nothing has changed.
        """
        await self.retirements.recycle(self._find(runtime_id), reason)

    async def drain(self, runtime_id: str) -> None:
        """Have a runtime end without a replacement, once the turns in it have ended. Raises as `recycle`."""
        await self.retirements.drain(self._find(runtime_id))

    def _find(self, runtime_id: str) -> ManagedRuntime:
        if self._closing:
            raise Draining("this node is shutting down, and its runtimes with it")
        if (runtime := self._runtimes.get(runtime_id)) is None:
            raise NotFound(f"this node has no runtime {runtime_id}; `aerodrome runtimes ls` lists those of all nodes")
        return runtime

    def places_besides(self, runtime: ManagedRuntime) -> int:
        """Free places in the other runtimes of its key."""
        return sum(self._options.max_sessions - r.reserved for r in self.others(runtime))

    def others(self, runtime: ManagedRuntime) -> list[ManagedRuntime]:
        """The other runtimes of its key that take sessions."""
        return [r for r in self._of(runtime.key) if r is not runtime]

    async def replacement(self, runtime: ManagedRuntime) -> ManagedRuntime | None:
        """A runtime of the same key for the sessions of this one, claimed for that unless the others of the key have
        room for them. Call it with the key `wanting`. ``None``: none is needed, or the ceiling leaves no room for one.

        Raises:
            RuntimeUnavailable: None can be started.
        """
        others = self.others(runtime)
        assert runtime.key is not None  # it has sessions
        if self.places_besides(runtime) >= runtime.reserved or not self._to_be_had(runtime.key):
            return None
        claim = self._claims.join(runtime.key)
        while not claim.ended:
            if not self._to_be_had(runtime.key):
                return None  # others were first; the claim may wait for as long as the node is full
            await self._changed.wait()
        if claim.error is not None:
            raise claim.error
        return next((r for r in self.others(runtime) if r not in others), None)

    def _to_be_had(self, key: RuntimeKey) -> bool:
        """Whether one more can be claimed without taking anything from others: below the ceilings, or of those that
        are warm or being started, one that no other key waits for."""
        if self._queue.held_back(key):
            return False
        free = len(self.in_state(RuntimeState.WARM)) + len(self.in_state(RuntimeState.STARTING))
        waiting = self._claims.besides(key)
        return free > waiting or not self.full

    async def retire(self, runtime: ManagedRuntime, reason: str = "retired") -> None:
        """Stop a runtime that nobody needs any more. It counts as one until its process has gone.

        Args:
            reason: See `Meter.runtime_ended`; one that is recycled has its own.
        """
        await self._stop(runtime)
        # One that is recycled and then lost comes here twice.
        if self._runtimes.pop(runtime.id, None) is not None:
            self._claims.gone(runtime.id)
            self._meter.runtime_ended(runtime.retiring or reason)
        self.notify()

    async def free_one(self, tenant: str | None) -> bool:
        """End a runtime that holds no session, or empty one whose sessions are idle: of this tenant; ``None``: of any.
        ``False``: there is none."""
        unused = [r for r in self.unused() if tenant is None or (r.key is not None and r.key.tenant == tenant)]
        if unused:
            await self.retire(min(unused, key=lambda r: r.last_held), "room")
            return True
        return self.empty_runtime is not None and await self.empty_runtime(tenant)

    async def _stop(self, runtime: ManagedRuntime) -> None:
        try:
            await runtime.stop()
        except Exception:
            log.exception("runtime.stop_failed", runtime=runtime.id, pid=runtime.pid)

    def _of(self, key: RuntimeKey | None) -> list[ManagedRuntime]:
        """Those that take sessions."""
        return [r for r in self.in_state(RuntimeState.CLAIMED) if r.key == key and not r.alone]

    def _with_room(self, key: RuntimeKey, besides: list[ManagedRuntime], user: str | None) -> ManagedRuntime | None:
        candidates = [
            Candidate(r.id, r.reserved, self._options.max_sessions) for r in self._of(key) if r not in besides
        ]
        chosen = self._placement.choose(candidates, user)
        return self._runtimes[chosen] if chosen else None

    def unused(self) -> list[ManagedRuntime]:
        """Claimed ones that hold no session and, as far as we know, are about to get none."""
        return [r for r in self.in_state(RuntimeState.CLAIMED) if not r.reserved and not self._wanted(r)]

    def _wanted(self, runtime: ManagedRuntime) -> bool:
        # Without this, keys that wait for room could end each other's new runtimes for ever.
        return runtime.key in self._requests

    # --- starts ---

    async def spawn(self) -> None:
        """Start one runtime; it is warm afterwards. Raises `RuntimeUnavailable`."""
        wait = self._starts.admit()
        runtime = ManagedRuntime(f"rt-{secrets.token_hex(5)}", self._options.runtime)
        runtime.on_lost = self._lost
        runtime.on_let_go = self.notify
        self._runtimes[runtime.id] = runtime
        try:
            took = await self._starts.start(runtime, wait)
            self.standby.started(took)
            self._meter.runtime_started(took)
        except Exception:
            self._meter.runtime_failed_to_start()
            raise
        finally:
            if runtime.state is not RuntimeState.WARM:
                del self._runtimes[runtime.id]
            self.notify()
        self._claims.hand_out()

    def _lost(self, runtime: ManagedRuntime) -> None:
        if not self._closing:
            self._tasks.start(self.retire(runtime, "lost"), f"bury {runtime.id}")
        if runtime.key is None:
            self.upkeep.lost(runtime)
        if self.on_lost is not None:
            self.on_lost(runtime)
        self.notify()

    async def _wait(
        self, key: RuntimeKey, claim: Claim, ticket: Ticket, changed: asyncio.Event, deadline: float
    ) -> None:
        limit = None if self._on_its_way(key) else max(0.0, deadline - time.monotonic())
        try:
            async with asyncio.timeout(limit):
                await changed.wait()
        except TimeoutError:
            if not self._on_its_way(key) and not claim.ended:  # else there is one, since this moment
                in_use = f"{len(self._runtimes)} of {self._options.max_runtimes} runtimes are in use or being started"
                if self._queue.held_back(key):
                    in_use = f"all {self._options.max_runtimes_per_tenant} runtimes of your organisation are in use"
                raise Capacity(
                    f"{in_use}, and none became free within {self._options.capacity_timeout:g} s",
                    retry_after=self._queue.retry_after(key, ticket.user),
                ) from None

    def _on_its_way(self, key: RuntimeKey) -> bool:
        """Whether a start that will do for this key's claim is under way: those before it in the queue take theirs."""
        return self._claims.on_its_way(key, self._starts.under_way)
