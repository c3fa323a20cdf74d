"""Bad days of the PostgreSQL adapters: the server killed or away, answers lost, programs killed, two at once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg
import pytest

from aerodrome import postgresql_stores
from aerodrome._util.postgres import Postgres
from aerodrome._util.postgres_lost import LostConnections
from aerodrome.config import Settings, load_settings
from aerodrome.coordination.backends.postgresql_directory import PostgresDirectory
from aerodrome.errors import Fenced, StoreUnavailable
from aerodrome.identity.backends.postgresql import PostgresKeyStore
from aerodrome.identity.ports import KeyInfo, StoredKey
from aerodrome.model import Role, SessionKey, SessionRow, TurnRow, TurnStatus
from aerodrome.sessions.backends.postgresql import PostgresLedger
from aerodrome.statestore.backends.postgresql import PostgresFileStore
from support.postgres import fetch, fresh_schema, given_up_at_once, postgres, server, shared_server, standby_of
from support.relay import relaying

KEY = SessionKey("acme", "chat")
EVENTS = "/state/events.jsonl"


class Stores(NamedTuple):
    files: PostgresFileStore
    ledger: PostgresLedger
    keys: PostgresKeyStore
    directory: PostgresDirectory


async def stores_on(db: Postgres) -> Stores:
    stores = Stores(
        PostgresFileStore(db, compact_after=8), PostgresLedger(db), PostgresKeyStore(db), PostgresDirectory(db)
    )
    for store in stores:
        await store.open()
    return stores


def line(number: int) -> str:
    return f"{number}" + "." * (number % 5000) + "\n"


def turn(id_: str, **columns: Any) -> TurnRow:
    return TurnRow(KEY, id_, "alice", TurnStatus.RUNNING, "hello", created_at=1.0, started_at=1.0, **columns)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_a_restart_of_the_server_under_load_costs_latency_and_loses_nothing(how: signal.Signals) -> None:
    """Every write is acknowledged in the end, and is there once: of those in doubt, too."""
    with server() as own:
        async with postgres(url=own.url, deadline=60.0) as db:
            stores = await stores_on(db)
            done, stop = 0, False

            async def append(name: str) -> int:
                nonlocal done
                key = SessionKey("acme", name)
                await stores.files.raise_epoch(key, 1)
                number = 0
                while not stop:
                    await stores.files.append(key, 1, EVENTS, line(number))
                    number += 1
                    done += 1
                return number

            async def accept(name: str) -> int:
                nonlocal done
                number = 0
                while not stop:
                    turn_id = f"{name}-{number}"
                    assert await stores.ledger.accept(turn(turn_id, idempotency_key=turn_id)) is None
                    assert await stores.ledger.finish(KEY, turn_id, TurnStatus.COMPLETED, 2.0)
                    row = SessionRow(SessionKey("acme", turn_id), "alice", last_used_at=float(number))
                    assert await stores.directory.insert(row) is None
                    number += 1
                    done += 1
                return number

            writing = [asyncio.create_task(append(name)) for name in "abcd"]
            accepting = [asyncio.create_task(accept(name)) for name in "xy"]
            for _ in range(3):
                goal = done + 150
                while done < goal:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(own.stop, how)
                await asyncio.to_thread(own.start)
            stop = True
            for name, writer in zip("abcd", writing, strict=True):
                key = SessionKey("acme", name)
                expected = "".join(line(number) for number in range(await writer))
                assert await stores.files.read(key, EVENTS) == expected
                assert await stores.files.total_bytes(key) == len(expected)
            accepted = [await task for task in accepting]
            assert len(await stores.ledger.turns(KEY)) == await stores.directory.count() == sum(accepted)


@asynccontextmanager
async def losing_answers(**options: Any) -> AsyncIterator[tuple[Stores, Callable[[], None]]]:
    """Stores behind a relay, and what makes it lose the next answer of the server together with the connection."""
    lose = False

    def tap(link: int, up: bool, data: bytes) -> None:
        nonlocal lose
        if lose and not up:
            lose = False
            raise ConnectionResetError

    def arm() -> None:
        nonlocal lose
        lose = True

    host, _, port = shared_server().url.partition("@")[2].partition("/")[0].partition(":")
    async with (
        relaying(host, int(port), lambda: tap) as address,
        postgres(url=f"postgresql://postgres@{address}/postgres", max_connections=1, **options) as db,
    ):
        yield await stores_on(db), arm


async def test_a_file_operation_whose_answer_is_lost_is_done_once() -> None:
    async with losing_answers() as (stores, arm):
        files = stores.files
        arm()
        await files.raise_epoch(KEY, 1)
        with pytest.raises(Fenced):
            await files.raise_epoch(KEY, 1)

        async def lose(call: Awaitable[None]) -> None:
            arm()
            await call

        for number in range(20):
            await lose(files.append(KEY, 1, EVENTS, line(number)))
        await lose(files.write(KEY, 1, "/a", "x"))
        await lose(files.mkdir(KEY, 1, "/d", recursive=False))
        await lose(files.rename(KEY, 1, "/a", "/d/b"))
        await lose(files.append(KEY, 1, "/d/b", "y"))
        await lose(files.mkdir(KEY, 1, "/e", recursive=False))
        await lose(files.remove(KEY, 1, "/e", recursive=True, force=False))
        events = "".join(line(number) for number in range(20))
        assert await files.read(KEY, EVENTS) == events
        assert await files.read(KEY, "/d/b") == "xy"
        assert [name for name, _ in await files.listdir(KEY, "/")] == ["d", "state"]
        assert await files.total_bytes(KEY) == len(events) + 2
        arm()
        await files.delete_session(KEY, 1, 10.0)
        arm()
        assert await files.forget_session(KEY, 1)
        assert await files.epoch(KEY) == 0


@asynccontextmanager
async def standing_still(db: Postgres) -> AsyncIterator[None]:
    """The process of the server behind the only idle connection stands still during the block; afterwards it does what
    has been sent to it meanwhile, finds that nobody is there any more, and ends."""
    (pid,) = (await fetch(db, "SELECT pg_backend_pid()"))[0]
    process = psutil.Process(pid)
    process.suspend()
    try:
        yield
    finally:
        process.resume()
        await asyncio.to_thread(process.wait, 30)


@pytest.fixture
def not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that do not answer cannot be ended, as behind a pooler."""

    async def nothing(lost: LostConnections, connection: Any) -> None:
        return None

    monkeypatch.setattr(LostConnections, "end", nothing)


@pytest.mark.usefixtures("not_ended")
async def test_a_write_that_was_given_up_and_comes_late_is_not_done_again_behind_others() -> None:
    async with postgres(hang=0.5) as db:
        files = (await stores_on(db)).files
        await files.raise_epoch(KEY, 1)
        await files.append(KEY, 1, EVENTS, "0\n")
        async with standing_still(db):
            await files.append(KEY, 1, EVENTS, "1\n")  # given up, and repeated on another connection
            await files.append(KEY, 1, EVENTS, "2\n")
        assert await files.read(KEY, EVENTS) == "0\n1\n2\n"

        async with standing_still(db):
            await files.remove(KEY, 1, "/a", recursive=False, force=True)  # nothing to do, yet
            await files.write(KEY, 1, "/a", "x")
        async with standing_still(db):
            await files.mkdir(KEY, 1, "/state", recursive=True)  # is there
            await files.rename(KEY, 1, "/state", "/old")
        async with standing_still(db):
            with pytest.raises(FileNotFoundError):
                await files.rename(KEY, 1, "/b", "/c")
            await files.append(KEY, 1, "/b", "y")
        async with standing_still(db):
            await files.write(KEY, 1, "/a", "z")
            await files.append(KEY, 1, "/a", "z")
        assert [name for name, _ in await files.listdir(KEY, "/")] == ["a", "b", "old"]
        assert await files.read(KEY, "/a") == "zz"
        assert await files.total_bytes(KEY) == 6 + 3


@pytest.mark.usefixtures("not_ended")
async def test_a_write_without_an_answer_is_done_by_the_time_of_the_next_look_or_never() -> None:
    async with postgres(hang=0.5) as db:
        files = (await stores_on(db)).files
        await files.raise_epoch(KEY, 1)
        await files.append(KEY, 1, EVENTS, "0\n")
        async with standing_still(db):
            with given_up_at_once(db), pytest.raises(StoreUnavailable):
                await files.append(KEY, 1, EVENTS, "1\n")
            assert await files.read(KEY, EVENTS) == "0\n"
        assert await files.read(KEY, EVENTS) == "0\n"
        async with standing_still(db):
            with given_up_at_once(db), pytest.raises(StoreUnavailable):
                await files.append(KEY, 1, EVENTS, "2\n")
            await files.append(KEY, 1, EVENTS, "3\n")
        assert await files.read(KEY, EVENTS) == "0\n3\n"


async def test_a_write_whose_caller_went_away_is_settled_before_the_next() -> None:
    async with losing_answers(deadline=0.0) as (stores, arm):
        files = stores.files
        await files.raise_epoch(KEY, 1)
        arm()
        with pytest.raises(StoreUnavailable):
            await files.append(KEY, 1, EVENTS, "1\n")  # done, without an answer
        await files.append(KEY, 1, EVENTS, "2\n")
        assert await files.read(KEY, EVENTS) == "1\n2\n"
        arm()
        with pytest.raises(StoreUnavailable):
            await files.append(KEY, 1, EVENTS, "3\n")
        arm()
        with pytest.raises(StoreUnavailable):
            await files.read(KEY, EVENTS)  # the settling, this time
        assert await files.read(KEY, EVENTS) == "1\n2\n3\n"
        await files.append(KEY, 1, EVENTS, "4\n")
        assert await files.read(KEY, EVENTS) == "1\n2\n3\n4\n"


async def test_what_was_given_up_is_not_done_behind_what_has_followed_it() -> None:
    """Anywhere: the process that has not read it yet is ended."""
    async with postgres(hang=0.5) as db:
        stores = await stores_on(db)
        key = StoredKey(KeyInfo("k-1", "acme", "alice", frozenset(), None, 1.0), b"digest")
        async with standing_still(db):
            assert await stores.keys.insert(key)
            assert await stores.keys.remove("k-1")
        assert await stores.keys.get("k-1") is None
        session = SessionRow(KEY, "alice")
        async with standing_still(db):
            assert await stores.directory.insert(session) is None
            assert await stores.directory.remove(KEY, session.created_at)
        assert await stores.directory.get(KEY) is None
        assert await stores.directory.insert(session) is None
        async with standing_still(db):
            await stores.directory.update(KEY, title="one")
            await stores.directory.update(KEY, title="two")
        row = await stores.directory.get(KEY)
        assert row is not None
        assert row.title == "two"


async def test_what_nobody_waits_for_any_more_is_not_done_later_either() -> None:
    async with postgres(hang=0.5) as db:
        stores = await stores_on(db)
        await stores.directory.insert(SessionRow(KEY, "alice"))
        async with standing_still(db):
            with given_up_at_once(db), pytest.raises(StoreUnavailable):
                await stores.directory.update(KEY, title="one")
            await stores.directory.update(KEY, title="two")
        row = await stores.directory.get(KEY)
        assert row is not None
        assert row.title == "two"
        async with standing_still(db):
            updating = asyncio.create_task(stores.directory.update(KEY, title="three"))
            await asyncio.wait([updating], timeout=0.1)
            updating.cancel()
            await asyncio.wait([updating])
            await stores.directory.update(KEY, title="four")
        row = await stores.directory.get(KEY)
        assert row is not None
        assert row.title == "four"


async def test_one_epoch_that_was_given_out_twice_is_written_in_by_one() -> None:
    async with postgres() as db:
        first, second = PostgresFileStore(db), PostgresFileStore(db)
        await first.open()
        await first.raise_epoch(KEY, 7)
        await first.append(KEY, 7, EVENTS, "1\n")
        await first.raise_epoch(KEY, 8)
        # A fail-over to a server that has not heard of the last.
        await db.execute("UPDATE file_session SET epoch = 7, last_write = 1")
        await second.raise_epoch(KEY, 8)
        await second.append(KEY, 8, EVENTS, "2\n")
        with pytest.raises(Fenced):
            await first.append(KEY, 8, EVENTS, "late\n")
        assert await first.read(KEY, EVENTS) == "1\n2\n"


async def test_a_program_that_has_not_announced_the_epoch_itself_goes_on_from_the_last_write() -> None:
    async with postgres() as db:
        first, second = PostgresFileStore(db), PostgresFileStore(db)
        await first.open()
        await first.raise_epoch(KEY, 1)
        await first.append(KEY, 1, EVENTS, "1\n")
        await second.append(KEY, 1, EVENTS, "2\n")
        # What it has not written itself has been written by somebody who should not have.
        with pytest.raises(Fenced):
            await first.append(KEY, 1, EVENTS, "3\n")
        assert await first.read(KEY, EVENTS) == "1\n2\n"


async def test_a_row_whose_answer_is_lost_is_written_once_and_counts_as_ours() -> None:
    async with losing_answers() as (stores, arm):
        row = turn("t-1", idempotency_key="k")
        arm()
        assert await stores.ledger.accept(row) is None
        assert await stores.ledger.accept(turn("t-2", idempotency_key="k")) == row
        arm()
        assert await stores.ledger.finish(KEY, "t-1", TurnStatus.COMPLETED, 2.0)
        assert not await stores.ledger.finish(KEY, "t-1", TurnStatus.FAILED, 3.0)
        arm()
        assert await stores.ledger.forget(KEY, ["t-1"])

        key = StoredKey(KeyInfo("k-1", "acme", "alice", frozenset(), None, 1.0), b"digest")
        arm()
        assert await stores.keys.insert(key)
        assert not await stores.keys.insert(key)
        arm()
        assert await stores.keys.remove("k-1")

        session = SessionRow(KEY, "alice")
        arm()
        assert await stores.directory.insert(session) is None
        assert await stores.directory.insert(session) == session
        arm()
        shared = await stores.directory.set_member(KEY, "bob", Role.READER)
        assert shared is not None
        assert shared.members == {"bob": Role.READER}
        arm()
        assert await stores.directory.remove(KEY, session.created_at)
        assert await stores.directory.get(KEY) is None


async def test_appends_that_nobody_waited_for_keep_their_order() -> None:
    async with postgres() as db:
        files = (await stores_on(db)).files
        await files.raise_epoch(KEY, 1)
        await asyncio.gather(*(files.append(KEY, 1, EVENTS, f"{number}\n") for number in range(200)))
        assert await files.read(KEY, EVENTS) == "".join(f"{number}\n" for number in range(200))


#: Appends to four sessions at once, and says which are done.
#: Sessions that each program appends to.
_SESSIONS = 4
_APPENDER = """
import asyncio, sys
from aerodrome._util.postgres import Postgres
from aerodrome._util.postgres_lost import LostConnections
from aerodrome.model import SessionKey
from aerodrome.statestore.backends.postgresql import PostgresFileStore

async def append(store, name):
    key = SessionKey(sys.argv[3], name)
    await store.raise_epoch(key, 1)
    for number in range(1_000_000):
        await store.append(key, 1, "/state/events.jsonl", f"{number}" + "." * (number % 5000) + "\\n")
        print(name, number, flush=True)

async def main():
    async with Postgres(sys.argv[1], schema=sys.argv[2]) as database:
        store = PostgresFileStore(database, compact_after=8)
        await store.open()
        await asyncio.gather(*(append(store, name) for name in "abcd"))

asyncio.run(main())
"""


async def test_two_programs_on_one_empty_database_both_killed_lose_nothing_acknowledged() -> None:
    schema = fresh_schema()
    command = [sys.executable, "-c", _APPENDER, shared_server().url, schema]
    done: dict[SessionKey, int] = defaultdict(int)

    def run(tenant: str, acknowledged: int) -> None:
        with subprocess.Popen([*command, tenant], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for count, text in enumerate(process.stdout):
                if text.endswith("\n"):
                    name, number = text.split()
                    done[SessionKey(tenant, name)] = int(number) + 1
                # Each of its sessions has said something by then.
                if count >= acknowledged and sum(key.tenant == tenant for key in list(done)) == _SESSIONS:
                    process.kill()

    await asyncio.gather(asyncio.to_thread(run, "acme", 300), asyncio.to_thread(run, "beta", 150))
    assert len(done) == 2 * _SESSIONS
    async with postgres(schema) as db:
        files = (await stores_on(db)).files
        for key, count in done.items():
            # Whatever the killed program had on its way is over or never was, once the session is fenced off.
            await files.raise_epoch(key, 2)
            text = await files.read(key, EVENTS)
            lines = text.splitlines(keepends=True)
            assert len(lines) >= count
            assert text == "".join(line(number) for number in range(len(lines)))
            assert await files.total_bytes(key) == len(text)


async def test_every_store_says_that_the_server_is_away_and_goes_on_afterwards() -> None:
    with server() as own:
        async with postgres(url=own.url) as db:
            stores = await stores_on(db)
            await stores.files.raise_epoch(KEY, 1)
            await asyncio.to_thread(own.stop)
            calls: list[Awaitable[Any]] = [
                stores.files.append(KEY, 1, EVENTS, "lost"),
                stores.files.read(KEY, EVENTS),
                stores.ledger.accept(turn("t-1")),
                stores.ledger.unfinished(),
                stores.keys.get("k"),
                stores.directory.insert(SessionRow(KEY, "alice")),
                stores.directory.set_member(KEY, "bob", Role.READER),
                stores.directory.list("acme"),
            ]
            for call in calls:
                with given_up_at_once(db), pytest.raises(StoreUnavailable):
                    await call
            await asyncio.to_thread(own.start)
            await stores.files.append(KEY, 1, EVENTS, "kept")
            assert await stores.files.read(KEY, EVENTS) == "kept"
            assert await stores.ledger.turns(KEY) == []
            assert await stores.directory.count() == 0


async def test_a_standby_that_no_commit_waits_for_is_seen_by_every_role(tmp_path: Path) -> None:
    def settings(url: str) -> Settings:
        path = tmp_path / "aerodrome.toml"
        path.write_text(f'[server]\ndata_dir = "{tmp_path}"\n[state]\nurl = "{url}"\n')
        return load_settings(path, env={})

    # The servers of the tests do not wait for their disk.
    with server({"fsync": "on"}) as own:
        with psycopg.connect(own.url, autocommit=True) as connection:
            connection.execute("CREATE ROLE poor LOGIN")
        poor = settings(own.url.replace("postgres@", "poor@"))
        assert await postgresql_stores.durability(poor) == []
        with standby_of(own):
            (told,) = await postgresql_stores.durability(poor)
            assert told.startswith("commits that wait for none of its standby servers (1)")
            known, _ = await postgresql_stores.facts(poor.state, [])
            assert known["asynchronous_standbys"] == "1"
    with server({"fsync": "on", "synchronous_standby_names": "*"}) as own, standby_of(own):
        assert await postgresql_stores.durability(settings(own.url)) == []
