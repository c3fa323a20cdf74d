"""Bad days of the SQLite adapters: killed in mid-write, locked out, out of disk. Nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from aerodrome._util.sqlite import Database
from aerodrome.coordination.backends.sqlite import SqliteCoordination
from aerodrome.coordination.backends.sqlite_directory import SqliteDirectory
from aerodrome.coordination.ports import Cap, ClusterEvent, Node
from aerodrome.errors import StoreUnavailable
from aerodrome.model import SessionKey, SessionRow, TurnRow, TurnStatus
from aerodrome.sessions.backends.sqlite import SqliteLedger
from aerodrome.statestore.backends.sqlite import SqliteFileStore
from support.databases import database, fetch, locked_by_another_process

T = TypeVar("T")

KEY = SessionKey("acme", "chat")
EVENTS = "/state/events.jsonl"

#: Appends to four sessions at once, so that commits are shared and compactions happen, and says which are done.
_APPENDER = """
import asyncio, sys
from aerodrome._util.sqlite import Database
from aerodrome.model import SessionKey
from aerodrome.statestore.backends.sqlite import SqliteFileStore

async def append(store, name):
    key = SessionKey("acme", name)
    await store.raise_epoch(key, 1)
    for number in range(1_000_000):
        await store.append(key, 1, "/state/events.jsonl", f"{number}" + "." * (number % 5000) + "\\n")
        print(name, number, flush=True)

async def main():
    async with Database(sys.argv[1]) as database:
        store = SqliteFileStore(database, compact_after=8)
        await store.open()
        await asyncio.gather(*(append(store, name) for name in "abcd"))

asyncio.run(main())
"""


def line(number: int) -> str:
    return f"{number}" + "." * (number % 5000) + "\n"


@pytest.mark.parametrize("acknowledged", [5, 150, 400])
async def test_kill_9_in_the_middle_of_appends_loses_nothing_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    path = tmp_path / "s.db"
    done: dict[str, int] = defaultdict(int)

    def note(text: str) -> None:
        name, number = text.split()
        done[name] = int(number) + 1

    with subprocess.Popen([sys.executable, "-c", _APPENDER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(acknowledged):
            note(await asyncio.to_thread(process.stdout.readline))
        process.kill()
        for rest in process.stdout:
            if rest.endswith("\n"):
                note(rest)
    assert sum(done.values()) >= acknowledged
    async with database(path) as db:
        store = SqliteFileStore(db)
        await store.open()
        for name, count in done.items():
            key = SessionKey("acme", name)
            text = await store.read(key, EVENTS)
            lines = text.splitlines(keepends=True)
            assert len(lines) >= count
            assert text == "".join(line(number) for number in range(len(lines)))
            assert await store.total_bytes(key) == len(text)
        assert await fetch(db, "PRAGMA integrity_check") == [("ok",)]


class Watched(Database):
    """Notes of each write whether it waits for the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.waited: list[bool] = []

    async def write(self, operation: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        self.waited.append(durable)
        return await super().write(operation, durable=durable)


async def test_only_what_nobody_was_told_of_may_be_taken_back_by_a_power_failure(tmp_path: Path) -> None:
    async with Watched(tmp_path / "s.db") as db:
        files, ledger = SqliteFileStore(db), SqliteLedger(db)
        await files.open()
        await ledger.open()
        await files.raise_epoch(KEY, 1)
        db.waited.clear()
        await ledger.accept(TurnRow(KEY, "t-1", "alice", TurnStatus.RUNNING, "one"), durable=False)
        await files.append(KEY, 1, EVENTS, "one\n")
        await ledger.finish(KEY, "t-1", TurnStatus.COMPLETED, 1.0)
        await ledger.accept(TurnRow(KEY, "t-2", "alice", TurnStatus.RUNNING, "two"))
        assert db.waited == [False, True, True, True]


async def test_locked_out_every_store_says_so_and_goes_on_afterwards(tmp_path: Path) -> None:
    async with (
        database(tmp_path / "s.db", busy_timeout=0.3) as db,
        database(tmp_path / "s.db", busy_timeout=60.0) as patient,
    ):
        files, ledger, coordination = SqliteFileStore(db), SqliteLedger(db), SqliteCoordination(db)
        directory = SqliteDirectory(db)
        for adapter in (files, ledger, coordination, directory):
            await adapter.open()
        await files.raise_epoch(KEY, 1)
        await files.append(KEY, 1, EVENTS, "one\n")
        await coordination.join(Node("a", "a-1"), 60.0)
        turn = TurnRow(KEY, "t-1", "alice", TurnStatus.QUEUED, "hello", idempotency_key="k")
        async with locked_by_another_process(db.path) as holder:
            results = await asyncio.gather(
                files.append(KEY, 1, EVENTS, "lost\n"),
                ledger.accept(turn),
                directory.insert(SessionRow(KEY, "alice")),
                coordination.acquire(KEY, "a-1"),
                coordination.heartbeat("a-1"),
                coordination.publish(ClusterEvent("test", "x")),
                coordination.admit("t-1", "a-1", caps=[Cap("turns", 1)]),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [StoreUnavailable] * 7
            assert await files.read(KEY, EVENTS) == "one\n"
            assert await directory.get(KEY) is None
            waiting = asyncio.create_task(SqliteFileStore(patient).append(KEY, 1, EVENTS, "two\n"))
            await asyncio.sleep(0)
            await asyncio.to_thread(holder.release)
            await waiting
        assert await files.read(KEY, EVENTS) == "one\ntwo\n"
        assert await ledger.accept(turn) is None  # what was refused was not recorded either
        lease = await coordination.acquire(KEY, "a-1")
        assert lease is not None
        assert lease.epoch == 1


def limit_pages(extra: int) -> Callable[[sqlite3.Connection], None]:
    """Let the file grow by so many pages only: past them SQLite finds the disk full, for good and for real."""

    def limit(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages + extra}")

    return limit


async def append_until_full(store: SqliteFileStore) -> str:
    """Everything that was acknowledged."""
    stored = ""
    for number in range(1000):
        text = f"{number}" * 1500
        try:
            await store.append(KEY, 1, EVENTS, text)
        except StoreUnavailable as error:
            assert "full" in error.detail  # noqa: PT017 (the text before it is what we return)
            return stored
        stored += text
    pytest.fail("the disk is never full")


async def test_a_full_disk_loses_nothing_and_is_survived(tmp_path: Path) -> None:
    async with database(tmp_path / "s.db") as db:
        store = SqliteFileStore(db, compact_after=4)
        await store.open()
        await store.raise_epoch(KEY, 1)
        await db.write(limit_pages(30))
        stored = await append_until_full(store)
        assert stored
        assert await store.read(KEY, EVENTS) == stored
        assert await store.total_bytes(KEY) == len(stored)
        with pytest.raises(StoreUnavailable):
            await store.write(KEY, 1, EVENTS, "x" * 1_000_000)
        assert await store.read(KEY, EVENTS) == stored
        await db.write(limit_pages(1000))
        await store.append(KEY, 1, EVENTS, "more")
        assert await store.read(KEY, EVENTS) == stored + "more"
        assert await fetch(db, "PRAGMA integrity_check") == [("ok",)]


async def test_a_full_disk_can_be_mended_by_deleting_sessions(tmp_path: Path) -> None:
    async with database(tmp_path / "s.db") as db:
        store = SqliteFileStore(db)
        await store.open()
        old = SessionKey("acme", "old")
        await store.raise_epoch(old, 1)
        await store.raise_epoch(KEY, 1)
        await store.append(old, 1, EVENTS, "x" * 100_000)
        await db.write(limit_pages(2))
        with pytest.raises(StoreUnavailable):
            await store.append(KEY, 1, EVENTS, "y" * 50_000)
        await store.delete_session(old, 1, 10.0)
        assert await store.forget_session(old, 1)
        await store.append(KEY, 1, EVENTS, "y" * 50_000)


async def test_adapters_share_a_file_that_is_opened_again(tmp_path: Path) -> None:
    for attempt in range(3):
        async with Database(tmp_path / "s.db") as db:
            files, ledger, coordination = SqliteFileStore(db), SqliteLedger(db), SqliteCoordination(db)
            await asyncio.gather(files.open(), ledger.open(), coordination.open(), SqliteDirectory(db).open())
            await files.raise_epoch(KEY, attempt + 1)
            await files.append(KEY, attempt + 1, EVENTS, "x")
            assert await files.read(KEY, EVENTS) == "x" * (attempt + 1)
