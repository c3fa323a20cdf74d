"""Any sequence of calls: both coordination adapters answer as a simple model of leases and directory does."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aerodrome._util.clock import ManualClock
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.backends.sqlite import SqliteCoordination
from aerodrome.coordination.ports import Coordination, Lease, Node
from aerodrome.model import SessionKey, SessionRow, SessionState
from support.databases import database

T = TypeVar("T")
TTL = 5.0
KEYS = [SessionKey("acme", "a"), SessionKey("acme", "b"), SessionKey("beta", "a")]
keys = st.sampled_from(KEYS)
incarnations = st.sampled_from(["n-1", "n-2", "n-3"])
times = st.sampled_from([0.0, 1.0, 2.5, 2.5000000000000004, 100.0])


class CoordinationMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        path = Path(self.directory.name) / "c.db"
        # Two handles on one file, used in turn: whatever one process remembers of it would show.
        self.databases = [database(path), database(path)]
        for db in self.databases:
            self.runner.run(db.open())
        self.memory: Coordination = MemoryCoordination(self.clock)
        self.sqlite = [SqliteCoordination(db, clock=self.clock) for db in self.databases]
        for store in self.sqlite:
            self.runner.run(store.open())
        self.beats: dict[str, float] = {}
        self.holders: dict[SessionKey, Lease] = {}
        self.epochs: dict[SessionKey, int] = {}
        self.leases: list[Lease] = []
        self.rows: dict[SessionKey, SessionRow] = {}

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            for db in self.databases:
                self.runner.run(db.aclose())
            self.runner.close()
            self.directory.cleanup()

    def ask(self, call: Callable[[Coordination], Awaitable[T]]) -> T:
        """The answer of both adapters, which must be the same."""

        async def both() -> tuple[T, T]:
            return await call(self.memory), await call(self.sqlite[0])

        self.sqlite.reverse()
        memory, sqlite = self.runner.run(both())
        assert memory == sqlite
        return memory

    def alive(self, incarnation: str) -> bool:
        return incarnation in self.beats and self.clock.now - self.beats[incarnation] < TTL

    @rule(incarnation=incarnations)
    def join(self, incarnation: str) -> None:
        self.ask(lambda store: store.join(Node(incarnation, incarnation), TTL))
        self.beats[incarnation] = self.clock.now

    @rule(incarnation=incarnations)
    def heartbeat(self, incarnation: str) -> None:
        assert self.ask(lambda store: store.heartbeat(incarnation)) is self.alive(incarnation)
        if self.alive(incarnation):
            self.beats[incarnation] = self.clock.now

    @rule(incarnation=incarnations)
    def leave(self, incarnation: str) -> None:
        self.ask(lambda store: store.leave(incarnation))
        self.beats.pop(incarnation, None)

    @rule(seconds=st.sampled_from([0.5, 3.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(key=keys, incarnation=incarnations, floor=st.integers(0, 12))
    def acquire(self, key: SessionKey, incarnation: str, floor: int) -> None:
        lease = self.ask(lambda store: store.acquire(key, incarnation, floor=floor))
        holder = self.holders.get(key)
        free = holder is None or holder.incarnation == incarnation or not self.alive(holder.incarnation)
        assert (lease is not None) is (self.alive(incarnation) and free)
        if lease is not None:
            # Higher than all that was ever given for this key, whatever was released or forgotten between.
            assert lease.epoch > max(self.epochs.get(key, 0), floor)
            assert (lease.key, lease.incarnation) == (key, incarnation)
            self.epochs[key] = lease.epoch
            self.holders[key] = lease
            self.leases.append(lease)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases or [Lease(KEYS[0], "n-1", 1)]))
        assert self.ask(lambda store: store.release(lease)) is (self.holders.get(lease.key) == lease)
        if self.holders.get(lease.key) == lease:
            del self.holders[lease.key]

    @rule(key=keys)
    def forget(self, key: SessionKey) -> None:
        self.ask(lambda store: store.forget(key))
        self.holders.pop(key, None)

    @rule(key=keys, owner=st.sampled_from(["alice", "bob"]), at=times)
    def insert(self, key: SessionKey, owner: str, at: float) -> None:
        row = SessionRow(key, owner, created_at=at, last_used_at=at)
        assert self.ask(lambda store: store.insert(row)) == self.rows.get(key)
        self.rows.setdefault(key, row)

    @rule(
        key=keys,
        state=st.none() | st.sampled_from(SessionState),
        title=st.none() | st.text(st.characters(exclude_categories=()), max_size=4),
        at=st.none() | times,
    )
    def update(self, key: SessionKey, state: SessionState | None, title: str | None, at: float | None) -> None:
        found = self.ask(lambda store: store.update(key, state=state, title=title, last_used_at=at))
        assert found is (key in self.rows)
        if found:
            row = self.rows[key]
            self.rows[key] = replace(
                row,
                state=row.state if state is None else state,
                title=row.title if title is None else title,
                last_used_at=max(row.last_used_at, at or 0.0),
            )

    @rule(key=keys)
    def remove(self, key: SessionKey) -> None:
        assert self.ask(lambda store: store.remove(key)) is (self.rows.pop(key, None) is not None)

    @rule(tenant=st.sampled_from([None, "acme"]), owner=st.sampled_from([None, "bob"]), limit=st.integers(1, 3))
    def walk(self, tenant: str | None, owner: str | None, limit: int) -> None:
        expected = [
            row for row in self.rows.values() if tenant in (None, row.key.tenant) and owner in (None, row.owner)
        ]
        expected.sort(key=lambda row: (-row.last_used_at, row.key.id, row.key.tenant))
        found: list[SessionRow] = []
        cursor: str | None = None
        while True:
            page = self.ask(lambda store, at=cursor: store.list(tenant, owner=owner, cursor=at, limit=limit))  # type: ignore[misc]
            found += page.rows
            if (cursor := page.next) is None:
                break
        assert found == expected

    def in_turn(self, row: SessionRow) -> bool:
        holder = self.holders.get(row.key)
        return row.state is SessionState.RUNNING and holder is not None and self.alive(holder.incarnation)

    @rule(before=times)
    def expire(self, before: float) -> None:
        found = self.ask(lambda store: store.unused_since(before))
        expected = [row for row in self.rows.values() if row.last_used_at < before and not self.in_turn(row)]
        assert [row.last_used_at for row in found] == sorted(row.last_used_at for row in expected)
        assert {row.key for row in found} == {row.key for row in expected}

    @invariant()
    def the_stores_agree_with_the_model(self) -> None:
        living = sorted(incarnation for incarnation in self.beats if self.alive(incarnation))
        assert [node.name for node in self.ask(lambda store: store.nodes())] == living
        for key in KEYS:
            holder = self.holders.get(key)
            valid = holder if holder is not None and self.alive(holder.incarnation) else None
            assert self.runner.run(self.sqlite[0].holder(key)) == valid
            assert self.runner.run(self.sqlite[0].get(key)) == self.rows.get(key)


TestCoordinationMachine = CoordinationMachine.TestCase
TestCoordinationMachine.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
