"""The SQLite worker: groups, savepoints, locks, a full disk, cancellation and the end."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome._util.sqlite import Database
from aerodrome._util.surrogates import from_blob, to_blob
from aerodrome.errors import StoreUnavailable
from support.databases import database, locked_by_another_process


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with database(tmp_path / "data" / "state.db") as db:
        await db.write(execute("CREATE TABLE item (id INTEGER PRIMARY KEY, parent INTEGER)"))
        yield db


def execute(sql: str, *parameters: Any) -> Callable[[sqlite3.Connection], None]:
    def run(connection: sqlite3.Connection) -> None:
        connection.execute(sql, parameters)

    return run


def add(item: int) -> Callable[[sqlite3.Connection], None]:
    return execute("INSERT INTO item (id) VALUES (?)", item)


async def items(db: Database) -> list[int]:
    def select(connection: sqlite3.Connection) -> list[int]:
        return [item for (item,) in connection.execute("SELECT id FROM item ORDER BY id").fetchall()]

    return await db.read(select)


class Gate:
    """Holds the writer's thread inside one operation, so that those queued meanwhile form one group."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self._open = threading.Event()
        self._running = threading.Event()

    async def running(self) -> None:
        await asyncio.to_thread(self._running.wait, 30)

    def hold(self, connection: sqlite3.Connection) -> None:
        self._running.set()
        assert self._open.wait(30)
        connection.set_trace_callback(self.statements.append)

    def open(self) -> None:
        self._open.set()


async def run_as_one_group(
    db: Database, *operations: Callable[[sqlite3.Connection], Any]
) -> tuple[list[Any], list[str]]:
    """Results or exceptions of the operations, and the statements that the group executed."""
    gate = Gate()
    holding = asyncio.create_task(db.write(gate.hold))
    await gate.running()
    results = asyncio.gather(*(db.write(operation) for operation in operations), return_exceptions=True)
    await asyncio.sleep(0)
    gate.open()
    await holding
    found = await results
    await db.write(lambda connection: connection.set_trace_callback(None))
    return found, gate.statements


async def test_a_group_shares_one_commit(db: Database) -> None:
    results, statements = await run_as_one_group(db, add(1), add(2), add(3))
    assert results == [None, None, None]
    # The trace starts inside the group before (its own COMMIT), and ends in the one after (its BEGIN).
    assert [s for s in statements if s.startswith(("BEGIN", "COMMIT"))] == [
        "COMMIT",
        "BEGIN IMMEDIATE",
        "COMMIT",
        "BEGIN IMMEDIATE",
    ]
    assert await items(db) == [1, 2, 3]


async def test_what_need_not_be_durable_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    def synchronous(connection: sqlite3.Connection) -> int:
        return int(connection.execute("PRAGMA synchronous").fetchone()[0])

    async with Database(tmp_path / "full.db") as full:
        assert [await full.write(synchronous, durable=durable) for durable in (True, False, False, True)] == [
            2,
            1,
            1,
            2,
        ]
        gate = Gate()
        holding = asyncio.create_task(full.write(gate.hold, durable=False))
        await gate.running()
        group = asyncio.gather(full.write(synchronous, durable=False), full.write(synchronous))
        await asyncio.sleep(0)
        gate.open()
        await holding
        assert list(await group) == [2, 2]
    async with Database(tmp_path / "off.db", synchronous="OFF") as off:
        assert [await off.write(synchronous, durable=durable) for durable in (True, False)] == [0, 0]


async def test_an_operation_that_raises_takes_back_only_its_own(db: Database) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        add(2)(connection)
        raise LookupError("on purpose")

    results, _ = await run_as_one_group(db, add(1), fail, add(3))
    assert results[0] is results[2] is None
    assert isinstance(results[1], LookupError)
    assert await items(db) == [1, 3]


async def test_a_failing_commit_fails_the_whole_group(db: Database) -> None:
    await db.write(execute("CREATE TABLE child (parent INTEGER REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)"))
    results, _ = await run_as_one_group(db, add(1), execute("INSERT INTO child VALUES (99)"), add(3))
    assert [type(result) for result in results] == [sqlite3.IntegrityError] * 3
    assert await items(db) == []
    await db.write(add(4))
    assert await items(db) == [4]


async def test_when_the_transaction_is_lost_the_others_run_again(db: Database) -> None:
    def lose(connection: sqlite3.Connection) -> None:
        connection.execute("ROLLBACK")  # as SQLite does by itself after some I/O errors
        raise sqlite3.OperationalError("on purpose")

    results, _ = await run_as_one_group(db, add(1), lose, add(3))
    assert results[0] is results[2] is None
    assert isinstance(results[1], sqlite3.OperationalError)
    assert await items(db) == [1, 3]


async def test_a_cancelled_caller_loses_neither_its_write_nor_the_others(db: Database) -> None:
    gate = Gate()
    holding = asyncio.create_task(db.write(gate.hold))
    await gate.running()
    leaving, staying = asyncio.create_task(db.write(add(1))), asyncio.create_task(db.write(add(2)))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    gate.open()
    await asyncio.wait_for(asyncio.gather(holding, staying), 30)
    assert await items(db) == [1, 2]


async def test_whatever_an_operation_raises_reaches_its_caller(db: Database) -> None:
    def stop(_: sqlite3.Connection) -> None:
        raise StopIteration  # which an asyncio future refuses to carry

    with pytest.raises(RuntimeError):
        await asyncio.wait_for(db.write(stop), 30)
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(db.read(stop), 30)
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await db.read(execute("SELECT * FROM absent"))
    assert await items(db) == []


async def test_a_read_is_one_snapshot_and_cannot_write(db: Database) -> None:
    await db.write(add(1))
    seen = threading.Event()
    written = threading.Event()

    def count_twice(connection: sqlite3.Connection) -> tuple[int, int]:
        (first,) = connection.execute("SELECT count(*) FROM item").fetchone()
        seen.set()
        assert written.wait(30)
        (second,) = connection.execute("SELECT count(*) FROM item").fetchone()
        return first, second

    reading = asyncio.create_task(db.read(count_twice))
    await asyncio.to_thread(seen.wait, 30)
    await db.write(add(2))
    written.set()
    assert await reading == (1, 1)
    with pytest.raises(StoreUnavailable, match="read-only"):
        await db.read(add(3))
    assert await items(db) == [1, 2]


async def test_close_finishes_what_is_queued_and_may_be_repeated(tmp_path: Path) -> None:
    db = database(tmp_path / "state.db")
    with pytest.raises(StoreUnavailable):
        await db.read(execute("SELECT 1"))
    await db.open()
    await db.open()
    await db.write(execute("CREATE TABLE item (id INTEGER PRIMARY KEY)"))
    writes = [asyncio.create_task(db.write(add(item))) for item in range(20)]
    await asyncio.sleep(0)
    await asyncio.gather(db.aclose(), db.aclose())
    await asyncio.gather(*writes)
    with pytest.raises(StoreUnavailable, match="not open"):
        await db.write(add(99))
    await db.open()
    assert await items(db) == list(range(20))
    await db.aclose()


async def test_the_queue_is_bounded(tmp_path: Path) -> None:
    async with Database(tmp_path / "state.db", synchronous="OFF", max_queued=3) as db:
        gate = Gate()
        holding = asyncio.create_task(db.write(gate.hold))
        await gate.running()
        waiting = [asyncio.create_task(db.write(execute("SELECT 1"))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable) as caught:
            await db.write(execute("SELECT 1"))
        assert caught.value.retry_after is not None
        gate.open()
        await asyncio.gather(holding, *waiting)


async def test_files_are_private(db: Database) -> None:
    await db.write(add(1))
    assert stat.S_IMODE(db.path.parent.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in db.path.parent.iterdir()}
    assert modes == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}


async def test_locked_by_another_process_it_waits_and_then_says_so(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with database(path) as patient, database(path, busy_timeout=0.5) as db:
        await patient.write(execute("CREATE TABLE item (id INTEGER PRIMARY KEY)"))
        await patient.write(add(1))
        async with locked_by_another_process(db.path) as holder:
            started = time.monotonic()
            results = await asyncio.gather(db.write(add(2)), db.write(add(3)), return_exceptions=True)
            waited = time.monotonic() - started
            assert [type(result) for result in results] == [StoreUnavailable] * 2
            assert isinstance(results[0], StoreUnavailable)
            assert results[0].retry_after is not None
            assert "locked" in results[0].detail
            assert 0.4 < waited < 20
            assert await items(db) == [1]  # readers go on
            writing = asyncio.create_task(patient.write(add(4)))
            await asyncio.sleep(0)
            await asyncio.to_thread(holder.release)
            await writing
        assert await items(db) == [1, 4]


async def test_an_operation_queued_during_a_wait_has_its_own_time(tmp_path: Path) -> None:
    async with database(tmp_path / "state.db", busy_timeout=0.5) as db:
        await db.write(execute("CREATE TABLE item (id INTEGER PRIMARY KEY)"))
        async with locked_by_another_process(db.path):
            assert db._writer is not None
            first_at = time.monotonic()
            first = asyncio.create_task(db.write(add(1)))
            await asyncio.sleep(0)
            while db._writer.queued():  # it has begun to wait when it is not there any more
                await asyncio.sleep(0.001)
            second = asyncio.create_task(db.write(add(2)))
            await asyncio.sleep(0)
            second_at = time.monotonic()
            for writing in (first, second):
                with pytest.raises(StoreUnavailable):
                    await writing
            assert time.monotonic() - second_at > 0.4
            # What it waited behind the first counts, or its wait could take twice the time-out: only by as much as it
            # came later, in steps of a tenth of a second, is waited for it alone.
            assert db._writer._patience is not None
            assert db._writer._patience <= 100 * math.ceil(10 * (second_at - first_at))


async def test_a_full_disk_fails_only_what_does_not_fit(db: Database) -> None:
    await db.write(execute("CREATE TABLE big (content BLOB)"))

    def limit_pages(extra: int) -> Callable[[sqlite3.Connection], None]:
        def limit(connection: sqlite3.Connection) -> None:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count={pages + extra}")

        return limit

    await db.write(limit_pages(4))
    too_big = execute("INSERT INTO big VALUES (zeroblob(100000))")
    results, _ = await run_as_one_group(db, add(1), too_big, add(3))
    assert results[0] is results[2] is None
    assert isinstance(results[1], StoreUnavailable)
    assert "full" in results[1].detail
    assert await items(db) == [1, 3]
    await db.write(limit_pages(100))
    await db.write(too_big)


async def test_two_handles_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    handles = [database(tmp_path / "state.db") for _ in range(6)]
    await asyncio.gather(*(handle.open() for handle in handles))
    await handles[0].write(execute("CREATE TABLE item (id INTEGER PRIMARY KEY)"))
    await asyncio.gather(*(handle.write(add(item)) for item, handle in enumerate(handles)))
    assert await items(handles[-1]) == list(range(6))
    await asyncio.gather(*(handle.aclose() for handle in handles))


async def test_opening_a_new_file_waits_for_whoever_makes_it(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.touch()
    db = database(path, busy_timeout=0.3)
    # The switch to write-ahead logging fails at once on this lock, whatever busy_timeout says.
    async with locked_by_another_process(path, "IMMEDIATE") as holder:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="locked"):
            await db.open()
        assert time.monotonic() - started > 0.25
        patient = database(path)
        opening = asyncio.create_task(patient.open())
        await asyncio.sleep(0)
        await asyncio.to_thread(holder.release)
        await opening
        await patient.aclose()
    await db.open()
    await db.aclose()


async def test_what_cannot_be_opened_says_how_to_mend_it(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"no database " * 1000)
    with pytest.raises(StoreUnavailable, match=r"garbage\.db is not a SQLite database"):
        await database(garbage).open()
    with pytest.raises(StoreUnavailable, match="cannot be made"):
        await database(garbage / "state.db").open()
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        await database(tmp_path).open()


@given(st.text(st.characters(exclude_categories=())))
def test_every_string_survives_as_bytes(text: str) -> None:
    assert from_blob(to_blob(text)) == text
