"""The stores of the simulated fleet, and what must hold as they see it.

The coordination store is `MemoryCoordination`; it can be emptied. The durable one has the directory, and the files with
their epochs. Both can be down for a while. The watch beside the coordination store keeps books of its own, so that
it does not believe what the store believes.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.backends.memory_directory import MemoryDirectory
from aerodrome.coordination.ports import Beat, Lease, Node
from aerodrome.errors import Fenced
from aerodrome.model import SessionKey
from aerodrome.sessions.backends.memory import MemoryLedger
from aerodrome.statestore.ports import Deleted
from support.simulation.history import Histories
from support.simulation.world import Violation, World


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")


class StoreClock:
    """A store's own clock: it may drift, and jump."""

    def __init__(self, world: World, rate: float) -> None:
        self._world = world
        self._rate = rate
        self.jumped = 0.0

    def monotonic(self) -> float:
        return 1_000.0 + self._world.now * self._rate + self.jumped

    def time(self) -> float:
        return self.monotonic()


@dataclass(slots=True)
class _Life:
    """As the store has counted it, without the jumps of its clock."""

    beat_at: float
    ttl: float
    #: The store's clock has jumped since: nobody knows what it thinks.
    doubtful: bool = False


class LeaseWatch:
    """The books beside the coordination store."""

    def __init__(self, world: World, rate: float) -> None:
        self._world = world
        self._rate = rate
        self._lives: dict[str, _Life] = {}
        self._held: dict[SessionKey, Lease] = {}
        self._highest: dict[SessionKey, int] = {}

    def _now(self) -> float:
        return self._world.now * self._rate

    def lives(self, incarnation: str) -> bool:
        """Whether its time to live has not run out, counted from the last beat that the store has answered."""
        life = self._lives.get(incarnation)
        return life is not None and self._now() - life.beat_at < life.ttl

    def joined(self, node: Node, ttl: float) -> None:
        self._lives[node.incarnation] = _Life(self._now(), ttl)

    def beaten(self, incarnation: str, beat: Beat) -> None:
        if beat is Beat.DEAD:
            return
        life = self._lives[incarnation]
        if not self.lives(incarnation) and not life.doubtful:
            raise Violation(f"{incarnation} was dead, and lives again")
        life.beat_at, life.doubtful = self._now(), False

    def left(self, incarnation: str) -> None:
        self._lives.pop(incarnation, None)

    def acquired(self, lease: Lease) -> None:
        before = self._held.get(lease.key)
        if before is not None and before.incarnation != lease.incarnation and self._surely_lives(before.incarnation):
            raise Violation(f"{lease.key}: {lease.incarnation} has the lease, and so has {before.incarnation}")
        if lease.epoch <= self._highest.get(lease.key, 0):
            raise Violation(f"{lease.key}: the epoch goes back to {lease.epoch}")
        self._held[lease.key] = lease
        self._highest[lease.key] = lease.epoch

    def released(self, lease: Lease) -> None:
        if self._held.get(lease.key) == lease:
            del self._held[lease.key]

    def forgotten(self, lease: Lease) -> None:
        before = self._held.pop(lease.key, None)
        if before is not None and before != lease and self._surely_lives(before.incarnation):
            raise Violation(f"{lease.key}: {before.incarnation} holds the lease, and it was forgotten")

    def emptied(self) -> None:
        """Leases are lost, and which epochs nobody has announced, with the store's memory; time goes on."""
        self._held.clear()
        self._highest.clear()

    def jumped(self) -> None:
        """Whoever was alive may be dead now, and the other way round, until the next beat."""
        for life in self._lives.values():
            life.doubtful = True

    def _surely_lives(self, incarnation: str) -> bool:
        return self.lives(incarnation) and not self._lives[incarnation].doubtful


class CoordinationSite:
    name = "coordination"

    def __init__(self, world: World, rate: float, make: Callable[[StoreClock], MemoryCoordination]) -> None:
        self.down = False
        self.clock = StoreClock(world, rate)
        self.watch = LeaseWatch(world, rate)
        self._world = world
        self._make = make
        self.store = make(self.clock)

    def empty(self) -> None:
        self.store = self._make(self.clock)
        self.watch.emptied()

    def jump(self, seconds: float) -> None:
        self.clock.jumped += seconds
        self.watch.jumped()

    def perform(self, caller: str, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = at_once(getattr(self.store, operation)(*args, **kwargs))
        if operation == "heartbeat":
            self.watch.beaten(args[0], result)
            if result is Beat.DEAD:
                self._world.say(f"{caller} is told that it is dead")
        elif operation == "acquire":
            self._world.say(
                f"{caller} acquires {args[0].id}, floor {kwargs.get('floor', 0)}: {result and result.epoch}"
            )
            if result is not None:
                self.watch.acquired(result)
        elif operation == "release":
            self._world.say(f"{caller} releases {args[0].key.id}, epoch {args[0].epoch}: {result}")
            self.watch.released(args[0])
        elif operation == "forget":
            self._world.say(f"{caller} forgets {args[0].key.id}, epoch {args[0].epoch}: {result}")
            if result:
                self.watch.forgotten(args[0])
        elif operation == "join":
            self._world.say(f"{caller} joins")
            self.watch.joined(*args)
        elif operation == "leave":
            self._world.say(f"{caller} leaves")
            self.watch.left(args[0])
        return result


@dataclass(slots=True)
class _Session:
    epoch: int
    files: dict[str, str] = field(default_factory=dict)
    #: The mark of a deletion that has begun.
    deleted_of: float | None = None


class MemoryFiles:
    """The part of `statestore.ports.SessionFileStore` that a session's history needs. Nothing is awaited."""

    def __init__(self) -> None:
        self.sessions: dict[SessionKey, _Session] = {}

    async def epoch(self, key: SessionKey) -> int:
        session = self.sessions.get(key)
        return 0 if session is None else session.epoch

    async def raise_epoch(self, key: SessionKey, epoch: int) -> None:
        self.check_not_deleted(key)
        session = self.sessions.setdefault(key, _Session(0))
        if session.epoch >= epoch:
            raise Fenced(f"{key} is at epoch {session.epoch}")
        session.epoch = epoch

    def fenced(self, key: SessionKey, epoch: int) -> _Session:
        session = self.sessions.get(key)
        if session is None or session.epoch != epoch:
            raise Fenced(f"{key} is not at epoch {epoch}")
        return session

    async def append(self, key: SessionKey, epoch: int, path: str, content: str, *, durable: bool = True) -> None:
        files = self.fenced(key, epoch).files
        files[path] = files.get(path, "") + content

    async def write(self, key: SessionKey, epoch: int, path: str, content: str) -> None:
        self.fenced(key, epoch).files[path] = content

    async def delete_session(self, key: SessionKey, epoch: int, created_at: float) -> None:
        self.check_not_deleted(key, but=created_at)
        session = self.sessions.get(key)
        if session is None or session.epoch > epoch or (session.epoch < epoch and session.deleted_of is None):
            raise Fenced(f"{key} is not at epoch {epoch}")
        session.epoch, session.deleted_of = epoch, created_at
        session.files.clear()

    async def forget_session(self, key: SessionKey, epoch: int) -> bool:
        session = self.sessions.get(key)
        if session is None or session.epoch != epoch:
            return False
        del self.sessions[key]
        return True

    def check_not_deleted(self, key: SessionKey, but: float | None = None) -> None:
        session = self.sessions.get(key)
        if session is not None and session.deleted_of not in (None, but):
            raise Deleted(key, session.epoch, session.deleted_of)

    async def read(self, key: SessionKey, path: str) -> str:
        session = self.sessions.get(key)
        if session is None or path not in session.files:
            raise FileNotFoundError(path)
        return session.files[path]


class DurableSite:
    """Files, ledger and directory, which one database keeps."""

    name = "state"

    def __init__(self, world: World, files: MemoryFiles, directory: MemoryDirectory, ledger: MemoryLedger) -> None:
        self.down = False
        self.files = files
        self.directory = directory
        self.ledger = ledger
        #: Deletions of what has not been used since that time, by node and session.
        self.expiring: dict[tuple[str, SessionKey], float] = {}
        self.histories = Histories(world)
        self._world = world

    def perform(self, caller: str, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if operation in ("get", "insert", "update", "remove"):
            result = at_once(getattr(self.directory, operation)(*args, **kwargs))
            if operation == "remove" and result:
                self._world.say(f"{caller} removes the row of {args[0].id}")
                self._check_removed(args[0], caller)
            return result
        if operation in ("accept", "turn_ids", "forget"):
            return at_once(getattr(self.ledger, operation)(*args, **kwargs))
        try:
            result = at_once(getattr(self.files, operation)(*args, **kwargs))
        except Fenced as error:
            self._world.say(f"{caller} is refused {operation}: {error.detail}")
            raise
        if operation in ("append", "write") and at_once(self.directory.get(args[0])) is None:
            raise Violation(f"{args[0].id}: {caller} writes into a session that has been deleted")
        if operation == "append":
            key, epoch, _, text = args
            self.histories.appended(key.id, epoch, caller, text)
        elif operation == "write":
            key, epoch, _, text = args
            self.histories.rewritten(key.id, epoch, caller, text)
        elif operation == "delete_session":
            self._world.say(f"{caller} deletes the files of {args[0].id} in epoch {args[1]}")
            self._check_expired(args[0], caller)
            self.histories.deleted(args[0].id)
        elif operation == "raise_epoch":
            self._world.say(f"{caller} announces epoch {args[1]} of {args[0].id}")
        elif operation == "forget_session":
            self._world.say(f"{caller} forgets the files of {args[0].id}, epoch {args[1]}: {result}")
        return result

    def _check_removed(self, key: SessionKey, caller: str) -> None:
        session = self.files.sessions.get(key)
        if session is not None and session.deleted_of is None and session.files:
            raise Violation(f"{key.id}: {caller} removes the row, and the session goes on")

    def _check_expired(self, key: SessionKey, caller: str) -> None:
        before = self.expiring.get((caller, key))
        if before is not None and self.histories.used_at.get(key.id, before - 1) >= before:
            raise Violation(f"{key.id}: {caller} lets it expire, and it has been used")

    def check_ledger(self, key: SessionKey) -> None:
        """At the end: of each turn that was acknowledged there is a row."""
        booked = at_once(self.ledger.turn_ids(key))
        for record in self.histories.acknowledged.get(key.id, ()):
            if record[:-1] not in booked:
                raise Violation(f"{key.id}: {record} was acknowledged, and its row has gone")
