"""The database object: what it repeats and for how long, and what it says when that does not help."""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest

from aerodrome._util.postgres import Postgres, Transaction
from aerodrome.errors import ConfigError, StoreUnavailable
from support.ports import free_port
from support.postgres import fetch, fresh_schema, postgres, server, shared_server, until
from support.relay import relaying
from support.stores import paused


async def refused(call: object, words: str) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable, match=words) as caught:
        await call  # type: ignore[misc]
    assert "secret" not in str(caught.value)
    return caught.value


async def table(db: Postgres) -> None:
    await db.execute(f"CREATE SCHEMA {db.schema}")
    await db.execute("CREATE TABLE item (id integer PRIMARY KEY)")


async def items(db: Postgres) -> list[int]:
    return [id_ for (id_,) in await fetch(db, "SELECT id FROM item ORDER BY id")]


async def test_a_transaction_is_all_or_nothing() -> None:
    async with postgres() as db:
        await table(db)

        async def insert(transaction: Transaction) -> int:
            await transaction.execute("INSERT INTO item VALUES (%s)", (1,))
            return (await transaction.execute("INSERT INTO item VALUES (%s)", (2,))).count

        async def fail(transaction: Transaction) -> None:
            await transaction.execute("INSERT INTO item VALUES (3)")
            raise LookupError("of the operation itself")

        async def go_on_after_a_mistake(transaction: Transaction) -> None:
            await transaction.execute("INSERT INTO item VALUES (4)")
            with pytest.raises(psycopg.Error):
                await transaction.execute("INSERT INTO item VALUES (1)")

        assert await db.write(insert) == 1
        with pytest.raises(LookupError):
            await db.write(fail)
        with pytest.raises(RuntimeError, match="rolled back"):
            await db.write(go_on_after_a_mistake)
        await refused(db.read(insert), "read-only")
        await refused(db.write(insert), r"refuses a statement \(23505\)")
        assert await items(db) == [1, 2]


async def test_whoever_could_not_be_serialised_runs_again() -> None:
    async with postgres() as db:
        await table(db)
        await db.execute("INSERT INTO item VALUES (1), (2)")
        runs: list[int] = []
        both = asyncio.Barrier(2)

        async def lock_both(first: int) -> None:
            async def lock(transaction: Transaction) -> None:
                runs.append(first)
                await transaction.execute("SELECT FROM item WHERE id = %s FOR UPDATE", (first,))
                if len(runs) <= 2:
                    await both.wait()
                await transaction.execute("SELECT FROM item WHERE id = %s FOR UPDATE", (3 - first,))

            await db.write(lock)

        await asyncio.gather(lock_both(1), lock_both(2))
        # Each time, the one that was rolled back may be back at its first row before the other has got it.
        assert len(runs) >= 3


async def test_a_backend_that_is_terminated_in_a_transaction_costs_a_repetition() -> None:
    async with postgres() as db, postgres() as other:
        await table(db)
        seen: list[bool] = []

        async def insert(transaction: Transaction) -> None:
            seen.append(transaction.repeated)
            await transaction.execute("INSERT INTO item VALUES (1)")
            if len(seen) == 1:
                row = (await transaction.execute("SELECT pg_backend_pid()")).row
                await other.execute("SELECT pg_terminate_backend(%s)", row)
                await transaction.execute("SELECT 1")

        await db.write(insert)
        # It had not begun to commit: there is no doubt.
        assert seen == [False, False]
        assert await items(db) == [1]


async def test_a_lost_answer_to_a_commit_is_told_to_the_repetition() -> None:
    lose = False

    def tap(link: int, up: bool, data: bytes) -> None:
        nonlocal lose
        if lose and not up:
            lose = False
            raise ConnectionResetError

    host = shared_server().url.partition("@")[2].partition("/")[0].split(":")
    async with (
        relaying(host[0], int(host[1]), lambda: tap) as address,
        postgres(url=f"postgresql://postgres@{address}/postgres") as db,
    ):
        await table(db)
        seen: list[bool] = []

        async def insert(transaction: Transaction) -> None:
            nonlocal lose
            seen.append(transaction.repeated)
            await transaction.execute("INSERT INTO item VALUES (1) ON CONFLICT DO NOTHING")
            lose = len(seen) == 1

        await db.write(insert)
        assert seen == [False, True]
        lose = True
        again = await db.execute("INSERT INTO item VALUES (2) ON CONFLICT DO NOTHING")
        assert (again.count, again.repeated) == (0, True)
        assert await items(db) == [1, 2]


async def test_away_for_longer_than_the_deadline_is_unavailable_and_then_over() -> None:
    with server() as own:
        url = own.url.replace("postgres@", "postgres:secret@")
        async with postgres(url=url, deadline=0.5) as db:
            await table(db)
            await asyncio.to_thread(own.stop)
            began = time.monotonic()
            await refused(db.execute("SELECT 1"), "the PostgreSQL server cannot be reached")
            assert 0.4 < time.monotonic() - began < 30
            await asyncio.to_thread(own.start)
            assert await items(db) == []
            assert (await db.execute("SELECT 1", deadline=0.0)).row == (1,)


async def test_a_server_that_stands_still_is_given_up_in_time() -> None:
    with server() as own:
        url = f"{own.url}?connect_timeout=2"
        async with postgres(url=url, deadline=0.5, hang=2.2, max_connections=2) as db:
            await table(db)
            with paused(own):
                began = time.monotonic()
                calls = [refused(db.execute("SELECT 1"), "cannot be reached|in use") for _ in range(4)]
                await asyncio.gather(*calls)
                assert time.monotonic() - began < 40
            assert (await db.execute("SELECT 1", deadline=60.0)).row == (1,)


async def test_limits_of_a_statement() -> None:
    schema = fresh_schema()
    async with postgres(schema, statement_timeout=1.0, lock_timeout=0.1) as db, postgres(schema) as other:
        await table(other)
        await other.execute("INSERT INTO item VALUES (1)")
        await refused(db.execute("SELECT pg_sleep(60)"), "takes too long")

        async def hold(transaction: Transaction) -> None:
            await transaction.execute("SELECT FROM item FOR UPDATE")
            error = await refused(db.execute("UPDATE item SET id = 2"), "held up by a lock")
            assert error.retry_after == 1.0

        await other.write(hold)
        assert (await db.execute("UPDATE item SET id = 2")).count == 1


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("53100", "its disk is full"),
        ("53200", "out of memory"),
        ("58030", "cannot read or write its disk"),
        ("XX001", "damaged data"),
        ("22012", r"refuses a statement \(22012\)"),
    ],
)
async def test_what_the_server_reports_is_said_in_plain_words(state: str, words: str) -> None:
    async with postgres() as db:
        report = f"DO $$ BEGIN RAISE EXCEPTION 'secret' USING ERRCODE = '{state}'; END $$"
        await refused(db.execute(report), words)
        assert (await db.execute("SELECT 1")).row == (1,)


async def test_a_read_only_server_is_told_and_left() -> None:
    url = shared_server().url + "?options=-cdefault_transaction_read_only%3Don"
    async with postgres(url=url) as db:
        before = (await db.execute("SELECT pg_backend_pid()")).row
        error = await refused(db.execute("CREATE TABLE x ()"), "is read-only")
        assert error.retry_after == 5.0
        assert (await db.execute("SELECT pg_backend_pid()")).row != before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("/postgres", "/nothing"), "has no database of this name"),
        (("postgres@", "nobody:secret@"), "refuses this role"),
        (("127.0.0.1", "nowhere.invalid"), "host name that cannot be resolved|cannot be reached"),
    ],
)
async def test_a_log_in_that_cannot_work_fails_at_once(change: tuple[str, str], words: str) -> None:
    scheme, _, rest = shared_server().url.partition("//")
    database = Postgres(scheme + "//" + rest.replace(*change), deadline=60.0)
    began = time.monotonic()
    await refused(database.open(), words)
    assert time.monotonic() - began < 50


async def test_nobody_there_fails_at_once() -> None:
    database = Postgres(f"postgresql://user:secret@127.0.0.1:{free_port()}/x", deadline=60.0)
    await refused(database.open(), "cannot be reached")
    await refused(database.execute("SELECT 1"), "not open")


async def test_not_open_or_closed_is_said() -> None:
    database = Postgres(shared_server().url)
    await refused(database.execute("SELECT 1"), "not open")
    async with database:
        pass
    await refused(database.execute("SELECT 1"), "not open")
    async with database:
        assert (await database.execute("SELECT 1")).row == (1,)


async def test_more_callers_than_connections_wait_for_their_turn() -> None:
    async with postgres(max_connections=2) as db:
        found = await asyncio.gather(*(db.execute("SELECT pg_backend_pid()") for _ in range(20)))
        assert len({result.row for result in found}) <= 2
        both, enough = asyncio.Barrier(3), asyncio.Event()

        async def hold(transaction: Transaction) -> None:
            await both.wait()
            await enough.wait()

        holders = [asyncio.create_task(db.write(hold)) for _ in range(2)]
        await both.wait()
        await refused(db.execute("SELECT 1", deadline=0.3), "all 2 connections")
        enough.set()
        await asyncio.gather(*holders)


async def _sleeping() -> bool:
    async with postgres() as other:
        query = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(9)' AND state = 'active'"
        return (await other.execute(query)).row == (1,)


async def test_whoever_is_cancelled_leaves_the_connection_usable() -> None:
    async with postgres(max_connections=1) as db:
        await table(db)

        async def sleep(transaction: Transaction) -> None:
            await transaction.execute("INSERT INTO item VALUES (1)")
            await transaction.execute("SELECT pg_sleep(9)")

        for call in (db.write(sleep), db.execute("SELECT pg_sleep(9)")):
            task = asyncio.create_task(call)
            await until(_sleeping)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await items(db) == []


def test_a_url_that_cannot_be_understood_is_not_quoted() -> None:
    with pytest.raises(ConfigError) as caught:
        Postgres("postgresql://user:secret@host/db?sslmod=require&password=secret")
    assert "secret" not in str(caught.value)
