"""Any sequence of calls: both directories answer as a dictionary of rows does."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aerodrome.coordination.backends.memory_directory import MemoryDirectory
from aerodrome.coordination.backends.postgresql_directory import PostgresDirectory
from aerodrome.coordination.backends.sqlite_directory import SqliteDirectory
from aerodrome.coordination.ports import Directory
from aerodrome.model import Role, SessionKey, SessionRow, SessionState
from support.databases import database
from support.postgres import fresh_schema, postgres

T = TypeVar("T")
KEYS = [SessionKey("acme", "a"), SessionKey("acme", "b"), SessionKey("beta", "a")]
keys = st.sampled_from(KEYS)
users = st.sampled_from(["alice", "bob"])
members = st.dictionaries(st.just("carol"), st.sampled_from([Role.READER, Role.WRITER]))
times = st.sampled_from([0.0, 1.0, 2.5, 2.5000000000000004, 100.0])


class DirectoryMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.memory: Directory = MemoryDirectory()
        # Two handles on one database, used in turn: whatever one process remembers of it would show.
        self.stores = self.runner.run(self.make_stores())
        for store in self.stores:
            self.runner.run(store.open())
        self.rows: dict[SessionKey, SessionRow] = {}

    async def make_stores(self) -> list[Directory]:
        path = Path(self.stack.enter_context(tempfile.TemporaryDirectory())) / "c.db"
        return [SqliteDirectory(await self.stack.enter_async_context(database(path))) for _ in range(2)]

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.stack.aclose())
            self.runner.close()

    def ask(self, call: Callable[[Directory], Awaitable[T]]) -> T:
        """The answer of both adapters, which must be the same."""

        async def both() -> tuple[T, T]:
            return await call(self.memory), await call(self.stores[0])

        self.stores.reverse()
        memory, sqlite = self.runner.run(both())
        assert memory == sqlite
        return memory

    @rule(key=keys, owner=users, at=times, members=members)
    def insert(self, key: SessionKey, owner: str, at: float, members: dict[str, Role]) -> None:
        row = SessionRow(key, owner, created_at=at, last_used_at=at, members=members)
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

    @rule(key=keys, at=times, its_own=st.booleans())
    def remove(self, key: SessionKey, at: float, its_own: bool) -> None:
        row = self.rows.get(key)
        at = row.created_at if row is not None and its_own else at
        removed = row is not None and row.created_at == at
        assert self.ask(lambda store: store.remove(key, at)) is removed
        if removed:
            del self.rows[key]

    @rule(key=keys, user=st.sampled_from(["carol", "dave"]), role=st.sampled_from([None, *Role]))
    def set_member(self, key: SessionKey, user: str, role: Role | None) -> None:
        if (row := self.rows.get(key)) is not None:
            others = {name: known for name, known in row.members.items() if name != user}
            self.rows[key] = replace(row, members=others if role is None else {**others, user: role})
        assert self.ask(lambda store: store.set_member(key, user, role)) == self.rows.get(key)

    @rule(
        tenant=st.sampled_from([None, "acme"]),
        user=st.sampled_from([None, "bob", "carol"]),
        limit=st.integers(1, 3),
    )
    def walk(self, tenant: str | None, user: str | None, limit: int) -> None:
        expected = [
            row
            for row in self.rows.values()
            if tenant in (None, row.key.tenant) and (user in (None, row.owner) or user in row.members)
        ]
        expected.sort(key=lambda row: (-row.last_used_at, row.key.id, row.key.tenant))
        found: list[SessionRow] = []
        cursor: str | None = None
        while True:
            page = self.ask(lambda store, at=cursor: store.list(tenant, user=user, cursor=at, limit=limit))  # type: ignore[misc]
            found += page.rows
            if (cursor := page.next) is None:
                break
        assert found == expected

    @rule(before=times, skip=st.integers(0, 2))
    def expire(self, before: float, skip: int) -> None:
        found = self.ask(lambda store: store.unused_since(before, skip=skip))
        expected = [row for row in self.rows.values() if row.last_used_at < before]
        assert [row.last_used_at for row in found] == sorted(row.last_used_at for row in expected)[skip:]
        assert {row.key for row in found} <= {row.key for row in expected}

    @invariant()
    def the_stores_agree_with_the_model(self) -> None:
        for key in KEYS:
            assert self.runner.run(self.stores[0].get(key)) == self.rows.get(key)


class PostgresDirectoryMachine(DirectoryMachine):
    async def make_stores(self) -> list[Directory]:
        schema = fresh_schema()
        return [PostgresDirectory(await self.stack.enter_async_context(postgres(schema))) for _ in range(2)]


_SETTINGS = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestDirectoryMachine = DirectoryMachine.TestCase
TestDirectoryMachine.settings = _SETTINGS
TestPostgresDirectoryMachine = PostgresDirectoryMachine.TestCase
TestPostgresDirectoryMachine.settings = _SETTINGS
