"""A node of the simulated fleet: Aerodrome's heartbeat, `take_lease`, `repair_history` and `SessionFs`, and in place of
the Copilot CLI something that writes a history as it does.

A session is opened, has turns, and is put to sleep as in `sessions.wake` and `sessions.residency`; what is left out is
what keeps no promise across nodes: queues, clients.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from typing import Any

from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.heartbeat import Heartbeat
from aerodrome.coordination.ports import Lease
from aerodrome.errors import AerodromeError, SessionBusy, StoreUnavailable
from aerodrome.model import SessionKey, SessionRow, TurnRow, TurnStatus
from aerodrome.sessions.context import SessionContext, SessionOptions
from aerodrome.sessions.deletion import delete
from aerodrome.sessions.returns import OwnLeases
from aerodrome.sessions.wake import repair_history, take_lease
from aerodrome.statestore.provider import EVENTS_PATH, SessionFs
from support.simulation.history import Histories, chain, record
from support.simulation.network import Network, Remote
from support.simulation.sites import CoordinationSite, DurableSite
from support.simulation.world import NodeLoop, World

INTERVAL, TTL = 1.0, 5.0
TENANT = "acme"


class NodeClock:
    def __init__(self, loop: NodeLoop) -> None:
        self._loop = loop
        #: How far the wall clock is from true time.
        self.wall_offset = 0.0

    def monotonic(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        return 1_700_000_000.0 + self._loop.world.now + self.wall_offset


class _Tasks(TaskOwner):
    def kill(self) -> None:
        """Start nothing any more, not even clean-up: the process is gone."""
        self._closed = True


@dataclass(slots=True)
class Resident:
    """A session in the CLI: what the CLI remembers of it."""

    lease: Lease
    files: SessionFs
    #: The last record of its history.
    last: str | None
    #: Records that could not be written; they go out with the next one (docs/facts.md, "Session files").
    unwritten: list[str] = field(default_factory=list)

    async def write(self, record_id: str, kind: str) -> bool:
        self.unwritten.append(record(record_id, self.last, kind))
        self.last = record_id
        params = {"path": EVENTS_PATH, "content": "".join(self.unwritten)}
        if await self.files.handle("appendFile", params) is not None:
            return False
        self.unwritten.clear()
        return True


@dataclass(frozen=True, slots=True)
class Build:
    """What the nodes are made of; a mutation of the suite changes one of them."""

    heartbeat: type[Heartbeat] = Heartbeat
    session_fs: type[SessionFs] = SessionFs
    remote: type[Remote] = Remote


class SimulatedNode:
    """One process, from its start to its death. A restarted node is another one.

    Args:
        name: Of this process; no other has it.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        coordination: CoordinationSite,
        state: DurableSite,
        name: str,
        *,
        machine: str,
        rate: float,
        build: Build,
    ) -> None:
        self.name = name
        self.loop = NodeLoop(world, machine, rate=rate, offset=500.0)
        self.clock = NodeClock(self.loop)
        self.residents: dict[SessionKey, Resident] = {}
        self.stopping = False
        self._world = world
        self._state = state
        self._histories: Histories = state.histories
        self._build = build
        self._locks: dict[SessionKey, asyncio.Lock] = {}
        # What the model takes its time with is no choice of the scheduler.
        self._random = random.Random(name)
        leases: Any = build.remote(network, self.loop, coordination, self._caller)
        durable: Any = build.remote(network, self.loop, state, self._caller)
        self._leases = leases
        self.heartbeat = build.heartbeat(leases, name, interval=INTERVAL, ttl=TTL, clock=self.clock, load=dict)
        self.heartbeat.on_reborn = self._give_up_all
        self.heartbeat.on_lapse = self._lapse
        self.tasks = _Tasks("node")
        nothing: Any = None
        self.context = SessionContext(
            options=SessionOptions(),
            directory=durable,
            leases=OwnLeases(leases, lambda: self.heartbeat.incarnation, self.tasks),
            membership=leases,
            files=durable,
            clock=self.clock,
            incarnation=lambda: self.heartbeat.incarnation,
            may_serve=lambda: self.heartbeat.may_serve,
            tasks=self.tasks,
            ledger=durable,
            # What no session of the simulation asks for.
            pool=nothing,
            admission=nothing,
            credentials=nothing,
        )

    def _caller(self) -> str:
        return self.name

    # Life

    def start(self) -> None:
        self._starting = self.loop.spawn(self._start(), "start")

    async def _start(self) -> None:
        while True:
            try:
                return await self.heartbeat.start()
            except StoreUnavailable:
                await asyncio.sleep(1.0)

    async def stop(self) -> None:
        """Leave in good order."""
        self.stopping = True
        self._starting.cancel()
        for key in list(self.residents):
            await self.hibernate(key)
        await self.tasks.aclose()
        await self.heartbeat.aclose()

    def kill(self) -> None:
        self.tasks.kill()
        self.heartbeat._tasks._closed = True
        self.loop.kill()

    @property
    def alive(self) -> bool:
        return not self.loop.killed

    async def _give_up_all(self) -> None:
        self._lapse()

    def _lapse(self) -> None:
        self._world.say(f"{self.name} gives up {[key.id for key in self.residents]}")
        for key in list(self.residents):
            self._lose(key)

    # Sessions

    async def turn(self, row: SessionRow, turn: str) -> None:
        """One prompt and its answer.

        Raises:
            SessionBusy: Another node runs the session.
            StoreUnavailable: It was not done, or not all of it.
        """
        self._accepting()
        async with self._locks.setdefault(row.key, asyncio.Lock()):
            resident = self.residents.get(row.key)
            if resident is None:
                # Open: created unless it is there.
                mine = replace(row, created_at=self.clock.time(), last_used_at=self._world.now)
                present: SessionRow | None = await self.context.directory.insert(mine)
                resident = await self._open(present or mine)
            used_at = self._world.now
            await self.context.directory.update(row.key, last_used_at=used_at)
            await self.context.ledger.accept(TurnRow(row.key, turn, "alice", TurnStatus.QUEUED, ""))
            asked = await resident.write(f"{turn}?", "user.message")
            await asyncio.sleep(self._random.random() ** 3 * 3.0)
            # A CLI that could not write goes on all the same.
            answered = await resident.write(f"{turn}!", "assistant.message")
            if not (asked and answered):
                raise StoreUnavailable("the turn was not written")
            self._histories.acknowledge(row.key.id, f"{turn}?", f"{turn}!", used_at=used_at)

    async def hibernate(self, key: SessionKey) -> None:
        async with self._locks.setdefault(key, asyncio.Lock()):
            if (resident := self._lose(key)) is not None:
                self._world.say(f"{self.name} hibernates {key.id}")
                self.context.release_lease(resident.lease)

    async def erase(self, row: SessionRow, *, unused_for: float | None = None) -> None:
        """Delete the session, as `sessions.registry` does. Raises as `turn` does.

        Args:
            unused_for: Only if it has not been used for so many seconds.
        """
        self._accepting()
        before = None if unused_for is None else self._world.now - unused_for
        present: SessionRow | None = await self.context.directory.get(row.key)
        if present is None or (before is not None and present.last_used_at >= before):
            return

        async def end() -> None:
            self._lose(row.key)

        async with self._locks.setdefault(row.key, asyncio.Lock()):
            if before is not None:
                self._state.expiring[self.name, row.key] = before
            try:
                await delete(self.context, present, unused_since=before, end=end)
            finally:
                self._state.expiring.pop((self.name, row.key), None)

    async def holder(self, key: SessionKey) -> Lease | None:
        found: Lease | None = await self._leases.holder(key)
        return found

    @property
    def serves(self) -> bool:
        return not self.stopping and self.heartbeat.may_serve

    def _accepting(self) -> None:
        if not self.serves:
            raise StoreUnavailable("this node takes nothing")

    async def _open(self, row: SessionRow) -> Resident:
        lease, row = await take_lease(self.context, row)
        try:
            text = await repair_history(self.context, row.key, lease.epoch)
        except BaseException:
            self.context.release_lease(lease)
            raise
        if lease.incarnation != self.heartbeat.incarnation:
            raise SessionBusy("this node lost its leases while the session was loaded")

        def failed(error: AerodromeError) -> None:
            self._world.say(f"{self.name} loses {row.key.id}: {error.detail}")
            # As the activation does: its lease is given back, in case it is still there.
            if self.residents.get(row.key) is resident:
                self._lose(row.key)
                self.context.release_lease(lease)

        files = self._build.session_fs(self.context.files, row.key, lease.epoch, home="/home", on_failed_write=failed)
        records = chain(text)
        resident = self.residents[row.key] = Resident(lease, files, records[-1][0] if records else None)
        self._world.say(f"{self.name} has {row.key.id} in epoch {lease.epoch}")
        return resident

    def _lose(self, key: SessionKey) -> Resident | None:
        resident = self.residents.pop(key, None)
        if resident is not None:
            resident.files.close()
        return resident
