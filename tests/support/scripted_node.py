"""A `SessionService` over memory adapters and scripted runtimes: nothing waits for a clock, a thread or a process."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from aerodrome._util.clock import ManualClock
from aerodrome._util.patience import Patience
from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.backends.memory_directory import MemoryDirectory
from aerodrome.coordination.ports import Node
from aerodrome.errors import Fenced, StoreUnavailable
from aerodrome.fairness.gate import FairGate
from aerodrome.fairness.line import Ceilings
from aerodrome.model import Principal, SessionKey, SessionKind, TurnRow
from aerodrome.policy.session_params import Credentials
from aerodrome.sessions.admission import TurnAdmission, TurnLimits
from aerodrome.sessions.api import OpenSession, SendMessage
from aerodrome.sessions.backends.memory import MemoryLedger
from aerodrome.sessions.backlog import BacklogLimits
from aerodrome.sessions.context import SessionContext, SessionOptions
from aerodrome.sessions.janitor import Janitor
from aerodrome.sessions.patience import patient_directory, patient_files, patient_leases, patient_ledger
from aerodrome.sessions.residents import Residents
from aerodrome.sessions.returns import OwnLeases
from aerodrome.sessions.run import TurnRun
from aerodrome.sessions.service import SessionService
from aerodrome.statestore.history import messages
from aerodrome.statestore.ports import Deleted, FileInfo
from aerodrome.statestore.provider import EVENTS_PATH
from aerodrome.telemetry import Telemetry
from support.scripted_runtime import LoadedSession, ScriptedPool, ScriptedRuntime
from support.told import Told

ALICE = Principal("acme", "alice")
BOB = Principal("acme", "bob")

Pause = Callable[[], Awaitable[None]]

#: Seconds for which a turn waits for its place: more than any test takes, on whatever machine.
PATIENCE = 100.0


class MemoryFiles:
    """What the sessions room uses of `statestore.ports.SessionFileStore`."""

    def __init__(self) -> None:
        self.files: dict[SessionKey, dict[str, str]] = {}
        self.epochs: dict[SessionKey, int] = {}
        #: Marks of deletions that have begun.
        self.deleted: dict[SessionKey, float] = {}
        #: Whether the latest append was to last through a power failure.
        self.lasting: bool | None = None

    async def epoch(self, key: SessionKey) -> int:
        return self.epochs.get(key, 0)

    async def raise_epoch(self, key: SessionKey, epoch: int) -> None:
        self._check_not_deleted(key)
        if epoch <= self.epochs.get(key, 0):
            raise Fenced("an older epoch")
        self.epochs[key] = epoch

    async def append(self, key: SessionKey, epoch: int, path: str, content: str, *, durable: bool = True) -> None:
        self._check(key, epoch)
        self.lasting = durable
        files = self.files.setdefault(key, {})
        files[path] = files.get(path, "") + content

    async def write(self, key: SessionKey, epoch: int, path: str, content: str) -> None:
        self._check(key, epoch)
        self.files.setdefault(key, {})[path] = content

    async def read(self, key: SessionKey, path: str) -> str:
        try:
            return self.files[key][path]
        except KeyError:
            raise FileNotFoundError(path) from None

    async def listdir(self, key: SessionKey, path: str) -> list[tuple[str, FileInfo]]:
        """Of a directory that has no other in it."""
        files = self.files.get(key, {})
        names = sorted(name.removeprefix(f"{path}/") for name in files if name.startswith(f"{path}/"))
        return [(name, FileInfo(False, len(files[f"{path}/{name}"].encode()), 0.0, 0.0)) for name in names]

    async def sessions(self, after: SessionKey | None = None, limit: int = 100) -> list[SessionKey]:
        return sorted(key for key in self.files.keys() | self.epochs.keys() if after is None or key > after)[:limit]

    async def delete_session(self, key: SessionKey, epoch: int, created_at: float) -> None:
        self._check_not_deleted(key, but=created_at)
        stored = self.epochs.get(key, 0)
        if stored > epoch or (stored < epoch and key not in self.deleted):
            raise Fenced(f"at epoch {stored}")
        self.files.pop(key, None)
        self.epochs[key], self.deleted[key] = epoch, created_at

    async def forget_session(self, key: SessionKey, epoch: int) -> bool:
        if self.epochs.get(key) != epoch:
            return False
        del self.epochs[key]
        self.files.pop(key, None)
        self.deleted.pop(key, None)
        return True

    def _check_not_deleted(self, key: SessionKey, but: float | None = None) -> None:
        if (mark := self.deleted.get(key)) is not None and mark != but:
            raise Deleted(key, self.epochs[key], mark)

    def _check(self, key: SessionKey, epoch: int) -> None:
        if self.epochs.get(key) != epoch:
            raise Fenced("not the announced epoch")


class Counting:
    """A port that counts the calls, each of which is a round trip."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return await method(*args, **kwargs)

        return call


class Unsteady:
    """A store that pauses before each call, and fails those that it is told to.

    A failing call has no effect; one in `fails_after` has, and fails all the same.
    """

    def __init__(self, store: Any, pause: Pause) -> None:
        self._store = store
        self._pause = pause
        self.fails: set[str] = set()
        self.fails_after: set[str] = set()
        #: Those that wait before or after they are done, until `let_go`.
        self.held: set[str] = set()
        self.held_after: set[str] = set()
        self._released = asyncio.Event()

    def let_go(self, name: str) -> None:
        self.held.discard(name)
        self.held_after.discard(name)
        self._released.set()
        self._released = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._pause()
            while name in self.held:
                await self._released.wait()
            if name in self.fails:
                raise StoreUnavailable(f"{name}: the script says no")
            result = await method(*args, **kwargs)
            while name in self.held_after:
                await self._released.wait()
            if name in self.fails_after:
                raise StoreUnavailable(f"{name}: done, and nobody knows")
            return result

        return call


class Stores:
    """What several nodes share."""

    def __init__(self, clock: ManualClock, pause: Pause) -> None:
        self.coordination = MemoryCoordination(clock=clock)
        self.directory = MemoryDirectory()
        self.ledger = MemoryLedger()
        self.files = MemoryFiles()
        self.slow_coordination = Unsteady(self.coordination, pause)
        self.slow_directory = Unsteady(self.directory, pause)
        self.slow_ledger = Unsteady(self.ledger, pause)
        self.slow_files = Unsteady(self.files, pause)


class ScriptedNode:
    """Make with `scripted_node`."""

    def __init__(
        self,
        stores: Stores,
        clock: ManualClock,
        pause: Pause,
        *,
        name: str,
        max_sessions: int,
        max_runtimes: int,
        max_turns: int,
        patience: Patience,
        limits: TurnLimits,
        ceilings: Ceilings,
        backlog: BacklogLimits,
        turns_per_runtime: int | None,
        weights: dict[str, float],
        **options: Any,
    ) -> None:
        self.stores = stores
        self.clock = clock
        self.pool = ScriptedPool(max_sessions=max_sessions, max_runtimes=max_runtimes, pause=pause)
        self.may_serve = True
        self.settled = True
        self.incarnation = f"{name}-1"
        self.tasks = TaskOwner(name)
        #: What the meters of a node would be told.
        self.told = Told()
        self.context = SessionContext(
            options=SessionOptions(**options),
            directory=patient_directory(cast("Any", stores.slow_directory), patience),
            leases=OwnLeases(
                patient_leases(cast("Any", stores.slow_coordination), patience),
                lambda: self.incarnation,
                self.tasks,
                late=0.0,
            ),
            membership=cast("Any", stores.slow_coordination),
            ledger=patient_ledger(cast("Any", stores.slow_ledger), patience),
            files=patient_files(cast("Any", stores.slow_files), patience),
            pool=cast("Any", self.pool),
            clock=clock,
            credentials=lambda _tenant: Credentials(model="m1"),
            incarnation=lambda: self.incarnation,
            may_serve=lambda: self.may_serve,
            settled=lambda: self.settled,
            tasks=self.tasks,
            admission=TurnAdmission(
                FairGate(
                    Ceilings(max_turns, max_turns, limits.at_once),
                    timeout=PATIENCE,
                    what="no turn could be started",
                    weight=lambda tenant: weights.get(tenant, 1.0),
                ),
                limits,
                cast("Any", stores.slow_coordination),
                incarnation=lambda: self.incarnation,
                later=lambda work, name: self.context.later(work, name),
                timeout=PATIENCE,
                backlog=backlog,
                per_runtime=turns_per_runtime,
                late=0.0,
            ),
            residents=Residents(ceilings, timeout=PATIENCE, changed=lambda: self.pool._changed),
            patience=patience,
            state_patience=patience,
            telemetry=Telemetry(meter=self.told),
        )
        self.service = SessionService(self.context)
        self.janitor = Janitor(self.service, self.context)

    async def join(self) -> None:
        await self.stores.coordination.join(Node(self.incarnation, self.incarnation), 1e9)

    # --- what users do ---

    async def open(self, session_id: str, kind: SessionKind = SessionKind.PERSISTENT) -> None:
        await self.service.open_session(ALICE, OpenSession(id=session_id, kind=kind))

    async def send(self, session_id: str, prompt: str, **message: Any) -> TurnRun:
        return await self.service.send(ALICE, session_id, SendMessage(prompt, **message))

    async def say(self, session_id: str, prompt: str, **message: Any) -> TurnRow:
        """Send and have it answered."""
        run = await self.send(session_id, prompt, **message)
        await settle()
        await self.loaded(session_id).answer()
        return await run.wait()

    # --- what is there ---

    @property
    def runtime(self) -> ScriptedRuntime:
        """The one there is."""
        (runtime,) = self.pool.runtimes
        return runtime

    def loaded(self, session_id: str) -> LoadedSession:
        (session,) = [r.sessions[session_id] for r in self.pool.runtimes if session_id in r.sessions]
        return session

    def ledger_row(self, run: TurnRun) -> TurnRow | None:
        return self.stores.ledger._rows.get((run.row.key, run.id))

    def prompts(self, session_id: str) -> list[str]:
        """The user prompts in the stored history."""
        text = self.stores.files.files.get(SessionKey("acme", session_id), {}).get(EVENTS_PATH, "")
        return [message.content for message in messages(text) if message.role == "user"]

    def event_types(self, session_id: str) -> list[str]:
        text = self.stores.files.files.get(SessionKey("acme", session_id), {}).get(EVENTS_PATH, "")
        return [json.loads(line)["type"] for line in text.splitlines()]

    @property
    def places(self) -> int:
        return sum(runtime.reserved for runtime in self.pool.started)

    @property
    def resident(self) -> int:
        return sum(live.activation is not None for live in self.service.live)

    def nothing_left(self, session_id: str) -> bool:
        """Whether no store remembers the session."""
        key = SessionKey("acme", session_id)
        stores = self.stores
        return not (
            key in stores.files.files
            or key in stores.files.epochs
            or key in stores.directory._rows
            or key in stores.coordination._leases
            or any(row.key == key for row in stores.ledger._rows.values())
        )

    async def remove_row(self, session_id: str) -> None:
        """Out of the directory, and nowhere else."""
        row = await self.stores.directory.get(SessionKey("acme", session_id))
        assert row is not None
        assert await self.stores.directory.remove(row.key, row.created_at)

    async def stop(self) -> None:
        """End without a drain, as a crash does to whoever waits; the stores stay."""
        await self.tasks.aclose()


async def settle(turns: int = 200) -> None:
    """Let everything happen that waits for nothing but its turn in the loop."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def no_pause() -> None:
    pass


@asynccontextmanager
async def scripted_node(
    stores: Stores | None = None,
    *,
    name: str = "a",
    pause: Pause = no_pause,
    max_sessions: int = 10,
    max_runtimes: int = 10,
    max_turns: int = 100,
    patience: Patience | float = 0.0,
    limits: TurnLimits = TurnLimits(),  # noqa: B008
    ceilings: Ceilings = Ceilings(),  # noqa: B008
    backlog: BacklogLimits = BacklogLimits(),  # noqa: B008
    turns_per_runtime: int | None = None,
    weights: dict[str, float] | None = None,
    **options: Any,
) -> AsyncIterator[ScriptedNode]:
    """A node; afterwards it is drained, and must have given everything back.

    Args:
        patience: With its stores; seconds.
        ceilings: On loaded sessions.
        backlog: On prompts that wait.
        weights: Of tenants.
    """
    clock = ManualClock()
    node = ScriptedNode(
        stores or Stores(clock, pause),
        clock,
        pause,
        name=name,
        max_sessions=max_sessions,
        max_runtimes=max_runtimes,
        max_turns=max_turns,
        patience=patience if isinstance(patience, Patience) else Patience(patience),
        limits=limits,
        ceilings=ceilings,
        backlog=backlog,
        turns_per_runtime=turns_per_runtime,
        weights=weights or {},
        **options,
    )
    await node.join()
    yield node
    for runtime in node.pool.started:
        runtime.held.clear()
    node.pool.let_go()
    if not node.tasks.closed:
        await node.service.drain(0.0)
        await settle()
        assert node.places == 0, "places were not given back"
        assert node.service.live == []
        assert not node.tasks._tasks, f"tasks are left: {node.tasks._tasks}"
        await node.tasks.aclose()
    assert not any(runtime.attached_twice for runtime in node.pool.started), "a void session was attached to again"
