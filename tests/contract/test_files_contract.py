"""What every session-file store does. `pair` is the store as two nodes see it, in the worst case two processes."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aerodrome._util.clock import ManualClock
from aerodrome._util.postgres import Postgres
from aerodrome._util.sqlite import Database
from aerodrome.coordination.backends.sqlite import SqliteCoordination
from aerodrome.coordination.ports import Node
from aerodrome.errors import Fenced, TooLarge
from aerodrome.model import SessionKey
from aerodrome.statestore.backends.postgresql import PostgresFileStore
from aerodrome.statestore.backends.sqlite import SqliteFileStore
from aerodrome.statestore.backends.volume import VolumeFileStore
from aerodrome.statestore.ports import Deleted, FileInfo, SessionFileStore
from support import databases
from support import postgres as postgresql

KEY = SessionKey("acme", "chat")
OTHER = SessionKey("beta", "chat")
EVENTS = "/state/events.jsonl"
LIMITS: dict[str, Any] = {"max_file_bytes": 1000, "max_session_bytes": 2500, "compact_after": 4}


class Pair(NamedTuple):
    a: SessionFileStore
    b: SessionFileStore
    clock: ManualClock


class Bench:
    """Makes stores on one database, and looks into it."""

    make: Callable[..., SessionFileStore]
    database: Database | Postgres

    async def fetch(self, query: str) -> list[tuple[Any, ...]]:
        if isinstance(self.database, Postgres):
            return await postgresql.fetch(self.database, query)
        return await databases.fetch(self.database, query)

    async def chunks(self) -> list[int]:
        """The size of every chunk."""
        return [size for (size,) in await self.fetch("SELECT length(content) FROM file_chunk")]


@asynccontextmanager
async def bench_on(kind: str, path: Path, schema: str) -> AsyncIterator[Bench]:
    bench = Bench()
    if kind == "sqlite":
        async with databases.database(path) as db:
            bench.database, bench.make = db, partial(SqliteFileStore, db)
            yield bench
    else:
        async with postgresql.postgres(schema) as server:
            bench.database, bench.make = server, partial(PostgresFileStore, server)
            yield bench


@pytest.fixture(params=["sqlite", "postgresql"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench_on(request.param, tmp_path / "s.db", postgresql.fresh_schema()) as bench:
        yield bench


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    """Stores that compare the epoch in the transaction of the write, and keep the times they are told."""
    async with pair_of(request.param, tmp_path) as pair:
        yield pair


@pytest.fixture(params=["sqlite", "postgresql", "volume"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    async with pair_of(request.param, tmp_path) as pair:
        yield pair


@asynccontextmanager
async def pair_of(kind: str, tmp_path: Path) -> AsyncIterator[Pair]:
    clock, path, schema = ManualClock(), tmp_path / "s.db", postgresql.fresh_schema()
    tables = "sqlite" if kind == "volume" else kind
    async with bench_on(tables, path, schema) as first, bench_on(tables, path, schema) as second:
        a: SessionFileStore = first.make(clock=clock, **LIMITS)
        b: SessionFileStore = second.make(clock=clock, **LIMITS)
        if kind == "volume":
            await a.open()
            limits = {name: LIMITS[name] for name in ("max_file_bytes", "max_session_bytes")}
            a, b = (VolumeFileStore(tmp_path / "volume", fence, **limits) for fence in (a, b))
        await a.open()
        await b.open()
        await a.raise_epoch(KEY, 1)
        yield Pair(a, b, clock)
        await a.aclose()
        await b.aclose()


async def names(store: SessionFileStore, path: str) -> list[str]:
    return [name for name, _ in await store.listdir(KEY, path)]


# The fence


async def test_the_epoch_only_rises(pair: Pair) -> None:
    assert await pair.a.epoch(OTHER) == 0
    await pair.a.raise_epoch(OTHER, 7)
    # Once: two nodes may have been given it, by a coordination store that has lost its memory in between.
    with pytest.raises(Fenced):
        await pair.b.raise_epoch(OTHER, 7)
    await pair.b.raise_epoch(OTHER, 9)
    assert await pair.a.epoch(OTHER) == 9
    with pytest.raises(Fenced):
        await pair.a.raise_epoch(OTHER, 8)
    assert (await pair.a.epoch(OTHER), await pair.a.epoch(KEY)) == (9, 1)


@pytest.mark.parametrize("epoch", [1, 3])
async def test_every_write_of_another_epoch_is_refused_and_changes_nothing(pair: Pair, epoch: int) -> None:
    await pair.a.append(KEY, 1, EVENTS, "one\n")
    await pair.b.raise_epoch(KEY, 2)
    store = pair.a
    for write in (
        store.append(KEY, epoch, EVENTS, "two\n"),
        store.append(KEY, epoch, "/new", "x"),
        store.write(KEY, epoch, EVENTS, "two\n"),
        store.mkdir(KEY, epoch, "/d", recursive=True),
        store.remove(KEY, epoch, EVENTS, recursive=True, force=True),
        store.remove(KEY, epoch, "/absent", recursive=True, force=True),
        store.rename(KEY, epoch, EVENTS, "/state/moved"),
    ):
        with pytest.raises(Fenced):
            await write
    assert await pair.b.read(KEY, EVENTS) == "one\n"
    assert await names(pair.b, "/") == ["state"]
    assert await names(pair.b, "/state") == ["events.jsonl"]
    assert await pair.b.epoch(KEY) == 2


async def test_trap_08_a_paused_holder_that_wakes_up_cannot_write_over_its_successor(
    pair: Pair, tmp_path: Path
) -> None:
    """The whole story with real leases: a is paused past its time to live, b takes over, a wakes up."""
    async with databases.database(tmp_path / "c.db") as db:
        leases = SqliteCoordination(db, clock=pair.clock)
        await leases.open()
        await leases.join(Node("a", "a-1"), 5.0)
        first = await leases.acquire(KEY, "a-1", floor=await pair.a.epoch(KEY))
        assert first is not None
        await pair.a.raise_epoch(KEY, first.epoch)
        await pair.a.append(KEY, first.epoch, EVENTS, "question\n")

        pair.clock.advance(6.0)
        await leases.join(Node("b", "b-1"), 5.0)
        second = await leases.acquire(KEY, "b-1", floor=await pair.b.epoch(KEY))
        assert second is not None
        await pair.b.raise_epoch(KEY, second.epoch)
        await pair.b.append(KEY, second.epoch, EVENTS, "answer of b\n")

        with pytest.raises(Fenced):
            await pair.a.append(KEY, first.epoch, EVENTS, "answer of a\n")
        assert not await leases.release(first)
        assert await leases.holder(KEY) == second
        assert await pair.a.read(KEY, EVENTS) == "question\nanswer of b\n"


async def test_a_deleted_session_cannot_be_written_back(pair: Pair) -> None:
    await pair.a.append(KEY, 1, EVENTS, "one\n")
    await pair.b.raise_epoch(KEY, 2)
    await pair.b.delete_session(KEY, 2, 10.0)
    for epoch, forgotten in ((2, True), (0, False)):
        with pytest.raises(Fenced):
            await pair.a.append(KEY, 1, EVENTS, "two\n")
        assert await pair.a.listdir(KEY, "/") == []
        assert await pair.a.total_bytes(KEY) == 0
        assert await pair.a.epoch(KEY) == epoch
        assert await pair.b.forget_session(KEY, 2) is forgotten


async def test_nobody_announces_an_epoch_while_a_deletion_is_not_at_its_end(pair: Pair) -> None:
    await pair.a.append(KEY, 1, EVENTS, "one\n")
    await pair.b.raise_epoch(KEY, 5)
    await pair.b.delete_session(KEY, 5, 10.0)
    for epoch in (2, 5, 6):
        with pytest.raises(Deleted) as deleted:
            await pair.a.raise_epoch(KEY, epoch)
        assert (deleted.value.epoch, deleted.value.created_at) == (5, 10.0)
    assert KEY in await pair.a.sessions()
    assert not await pair.a.forget_session(KEY, 4)
    assert await pair.a.forget_session(KEY, 5)
    assert KEY not in await pair.a.sessions()
    await pair.a.raise_epoch(KEY, 6)


async def test_whoever_is_newer_keeps_a_session_from_its_deletion(pair: Pair) -> None:
    await pair.a.append(KEY, 1, EVENTS, "one\n")
    await pair.a.raise_epoch(KEY, 5)
    for epoch in (1, 4, 6):
        with pytest.raises(Fenced) as refused:
            await pair.b.delete_session(KEY, epoch, 10.0)
        assert not isinstance(refused.value, Deleted)
        assert not await pair.b.forget_session(KEY, epoch)
    await pair.a.append(KEY, 5, EVENTS, "two\n")
    assert await pair.b.read(KEY, EVENTS) == "one\ntwo\n"


async def test_a_deletion_is_begun_again_by_whoever_comes(pair: Pair) -> None:
    await pair.a.append(KEY, 1, EVENTS, "one\n")
    await pair.a.raise_epoch(KEY, 2)
    await pair.a.delete_session(KEY, 2, 10.1)
    await pair.a.delete_session(KEY, 2, 10.1)  # as after an answer that was lost
    await pair.b.delete_session(KEY, 3, 10.1)
    with pytest.raises(Fenced):
        await pair.a.delete_session(KEY, 2, 10.1)
    # Whose deletion has been taken over by somebody newer leaves the mark to it.
    assert not await pair.a.forget_session(KEY, 2)
    with pytest.raises(Deleted):
        await pair.a.raise_epoch(KEY, 4)
    assert await pair.b.forget_session(KEY, 3)


async def test_a_deletion_of_one_session_is_not_that_of_another_under_its_id(pair: Pair) -> None:
    await pair.a.raise_epoch(KEY, 2)
    await pair.a.delete_session(KEY, 2, 10.25)
    for epoch in (1, 2, 3):
        with pytest.raises(Deleted) as deleted:
            await pair.b.delete_session(KEY, epoch, 11.0)
        assert (deleted.value.epoch, deleted.value.created_at) == (2, 10.25)


async def test_a_session_that_has_no_epoch_cannot_be_deleted(pair: Pair) -> None:
    with pytest.raises(Fenced):
        await pair.a.delete_session(OTHER, 7, -1.0)
    assert await pair.b.epoch(OTHER) == 0


async def test_a_write_that_raced_with_a_deletion_leaves_nothing(database_pair: Pair) -> None:
    async def write_all() -> int:
        """Until it is refused, which ends the test."""
        number = 0
        while True:
            try:
                await database_pair.a.append(KEY, 1, f"/f{number}", "x")
            except Fenced:
                return number
            number += 1

    writing = asyncio.create_task(write_all())
    while await database_pair.b.total_bytes(KEY) == 0:
        await asyncio.sleep(0)
    await database_pair.b.raise_epoch(KEY, 2)
    await database_pair.b.delete_session(KEY, 2, 10.0)
    assert await writing > 0
    assert await database_pair.b.listdir(KEY, "/") == []
    assert await database_pair.b.total_bytes(KEY) == 0


async def test_a_write_that_raced_with_a_take_over_is_before_it_or_refused(database_pair: Pair) -> None:
    async def write_all() -> int:
        for number in range(50):
            try:
                await database_pair.a.append(KEY, 1, EVENTS, f"{number}\n")
            except Fenced:
                return number
        return 50

    writing = asyncio.create_task(write_all())
    while await database_pair.b.total_bytes(KEY) == 0:
        await asyncio.sleep(0)
    await database_pair.b.raise_epoch(KEY, 2)
    seen = await database_pair.b.read(KEY, EVENTS)
    written = await writing
    assert seen == await database_pair.b.read(KEY, EVENTS) == "".join(f"{number}\n" for number in range(written))


# Content


@pytest.mark.parametrize(
    "content",
    [
        "",
        "plain\n",
        "\r\n \0 \x7f",
        "\u00e9\u65e5\u672c\U0001f600",
        "\ud800",
        "\udfff\ud83d",
        "'); DROP TABLE file; --",
    ],
)
async def test_content_comes_back_as_it_was(pair: Pair, content: str) -> None:
    size = len(content.encode("utf-8", "surrogatepass"))
    await pair.a.write(KEY, 1, "/w", content)
    await pair.a.append(KEY, 1, "/a", content)
    await pair.a.append(KEY, 1, "/a", content)
    assert await pair.b.read(KEY, "/w") == content
    assert await pair.b.read(KEY, "/a") == content * 2
    assert [(await pair.b.stat(KEY, path)).size for path in ("/w", "/a")] == [size, size * 2]
    assert await pair.b.total_bytes(KEY) == size * 3


async def test_a_character_split_between_appends_is_whole_again_on_the_wire(pair: Pair) -> None:
    await pair.a.append(KEY, 1, EVENTS, "\ud83d")
    await pair.a.append(KEY, 1, EVENTS, "\ude00")
    text = await pair.b.read(KEY, EVENTS)
    assert text == "\ud83d\ude00"
    assert text.encode("utf-16", "surrogatepass").decode("utf-16") == "\U0001f600"


async def test_write_replaces_and_keeps_the_time_of_creation(database_pair: Pair) -> None:
    created = database_pair.clock.time()
    await database_pair.a.append(KEY, 1, "/f", "long content")
    database_pair.clock.advance(10)
    await database_pair.b.write(KEY, 1, "/f", "new")
    assert await database_pair.a.read(KEY, "/f") == "new"
    assert await database_pair.a.stat(KEY, "/f") == FileInfo(False, 3, created + 10, created)
    await database_pair.b.append(KEY, 1, "/f", "er")
    assert await database_pair.a.read(KEY, "/f") == "newer"
    assert await database_pair.a.total_bytes(KEY) == 5


async def test_sessions_do_not_see_each_other(pair: Pair) -> None:
    await pair.a.raise_epoch(OTHER, 1)
    await pair.a.write(KEY, 1, "/f", "acme")
    await pair.a.write(OTHER, 1, "/f", "beta!")
    assert await pair.a.read(KEY, "/f") == "acme"
    assert (await pair.a.total_bytes(KEY), await pair.a.total_bytes(OTHER)) == (4, 5)
    await pair.b.delete_session(OTHER, 1, 10.0)
    assert await pair.b.forget_session(OTHER, 1)
    assert await pair.a.read(KEY, "/f") == "acme"


# Compaction


async def test_compaction_changes_no_content(bench: Bench) -> None:
    store = bench.make(clock=ManualClock(), compact_after=5)
    await store.open()
    await store.raise_epoch(KEY, 1)
    parts = [f"{number} \u00e9\ud800;" * (number % 7) for number in range(203)]
    for count, part in enumerate(parts, start=1):
        await store.append(KEY, 1, EVENTS, part)
        if count % 29 == 0:
            assert await store.read(KEY, EVENTS) == "".join(parts[:count])
    assert await store.read(KEY, EVENTS) == "".join(parts)
    assert len(await bench.chunks()) <= 6


async def test_compaction_comes_once_in_so_many_appends(bench: Bench) -> None:
    store = bench.make(clock=ManualClock(), compact_after=5)
    await store.open()
    await store.raise_epoch(KEY, 1)
    counts = []
    for _ in range(50):
        await store.append(KEY, 1, EVENTS, "x")
        counts.append(len(await bench.chunks()))
    assert counts == [1, 2, 3, 4, 1] + [2, 3, 4, 5, 1] * 9


async def test_compaction_rewrites_a_bounded_part(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tree", "postgresql"):
        monkeypatch.setattr(f"aerodrome.statestore.backends.{module}.COMPACTED_BYTES", 100)
    store = bench.make(clock=ManualClock(), compact_after=4)
    await store.open()
    await store.raise_epoch(KEY, 1)
    parts = [("ab" * 5, "c" * 130, "d")[number % 3] for number in range(300)]
    for part in parts:
        await store.append(KEY, 1, EVENTS, part)
    assert await store.read(KEY, EVENTS) == "".join(parts)
    assert max(await bench.chunks()) == 130  # as it was appended: nothing was merged past the limit


async def test_reads_during_appends_see_whole_appends(pair: Pair) -> None:
    async def write() -> None:
        for number in range(100):
            await pair.a.append(KEY, 1, EVENTS, f"{number:04}\n")

    writing = asyncio.create_task(write())
    await pair.a.append(KEY, 1, EVENTS, "")
    while not writing.done():
        text = await pair.b.read(KEY, EVENTS)
        assert text == "".join(f"{number:04}\n" for number in range(len(text) // 5))
    await writing


# Limits


async def test_a_file_has_a_largest_size(pair: Pair) -> None:
    await pair.a.append(KEY, 1, "/f", "x" * 999)
    with pytest.raises(TooLarge) as caught:
        await pair.a.append(KEY, 1, "/f", "\u00e9")  # one character, two bytes
    assert caught.value.extra == {"limit": 1000}
    with pytest.raises(TooLarge):
        await pair.a.write(KEY, 1, "/f", "x" * 1001)
    with pytest.raises(TooLarge):
        await pair.a.append(KEY, 1, "/new/file", "x" * 1001)
    assert await names(pair.a, "/") == ["f"]
    await pair.a.append(KEY, 1, "/f", "x")
    assert await pair.b.read(KEY, "/f") == "x" * 1000


async def test_a_session_has_a_largest_total(pair: Pair) -> None:
    for path in ("/a", "/b"):
        await pair.a.write(KEY, 1, path, "x" * 1000)
    with pytest.raises(TooLarge):
        await pair.b.append(KEY, 1, "/c", "x" * 501)
    assert await names(pair.a, "/") == ["a", "b"]
    await pair.b.append(KEY, 1, "/c", "x" * 500)
    with pytest.raises(TooLarge):
        await pair.b.append(KEY, 1, "/c", "x")
    await pair.b.write(KEY, 1, "/a", "x" * 10)
    await pair.b.append(KEY, 1, "/c", "x")
    await pair.b.remove(KEY, 1, "/b", recursive=False, force=False)
    await pair.b.rename(KEY, 1, "/a", "/c")
    assert await pair.a.total_bytes(KEY) == 10


async def test_over_a_limit_that_was_lowered_one_may_still_shrink(bench: Bench) -> None:
    generous = bench.make()
    await generous.open()
    await generous.raise_epoch(KEY, 1)
    await generous.write(KEY, 1, "/f", "x" * 500)
    strict = bench.make(max_session_bytes=100)
    with pytest.raises(TooLarge):
        await strict.append(KEY, 1, "/g", "x")
    await strict.write(KEY, 1, "/f", "x" * 400)
    assert await strict.total_bytes(KEY) == 400


# Directories


async def test_parents_are_made(database_pair: Pair) -> None:
    await database_pair.a.append(KEY, 1, "/a/b/c.txt", "x")
    await database_pair.a.write(KEY, 1, "/a/d/e.txt", "yy")
    assert await names(database_pair.b, "/") == ["a"]
    now = database_pair.clock.time()
    assert await database_pair.b.listdir(KEY, "/a") == [
        ("b", FileInfo(True, 0, now, now)),
        ("d", FileInfo(True, 0, now, now)),
    ]
    assert await database_pair.b.listdir(KEY, "/a/b") == [("c.txt", FileInfo(False, 1, now, now))]


async def test_the_root_is_always_there(pair: Pair) -> None:
    nobody = SessionKey("acme", "nobody")
    assert (await pair.a.stat(nobody, "/")).is_directory
    assert await pair.a.listdir(nobody, "/") == []
    with pytest.raises(FileNotFoundError):
        await pair.a.read(nobody, "/f")
    await pair.a.write(KEY, 1, "/d/f", "x")
    await pair.a.remove(KEY, 1, "/", recursive=True, force=False)
    assert await pair.a.listdir(KEY, "/") == []
    assert await pair.a.total_bytes(KEY) == 0


async def test_listings_are_by_name_and_exact(database_pair: Pair) -> None:
    for path in ("/d/b", "/d/a", "/d/\u00e9", "/d/a.b/x", "/d0", "/d-/x/y", "/d/\ud800", "/d/%", "/d/_"):
        await database_pair.a.write(KEY, 1, path, "")
    assert await names(database_pair.b, "/d") == ["%", "_", "a", "a.b", "b", "\u00e9", "\ud800"]
    await database_pair.a.rename(KEY, 1, "/d", "/e")
    await database_pair.a.remove(KEY, 1, "/e", recursive=True, force=False)
    assert await names(database_pair.b, "/") == ["d-", "d0"]
    assert await names(database_pair.b, "/d-/x") == ["y"]


async def test_rename_replaces(pair: Pair) -> None:
    await pair.a.write(KEY, 1, "/f.tmp", "new")
    await pair.a.write(KEY, 1, "/f", "older content")
    await pair.a.rename(KEY, 1, "/f.tmp", "/f")
    assert await pair.b.read(KEY, "/f") == "new"
    assert await names(pair.b, "/") == ["f"]
    assert await pair.b.total_bytes(KEY) == 3
    await pair.a.rename(KEY, 1, "/f", "/f")
    assert await pair.b.read(KEY, "/f") == "new"


async def test_rename_moves_a_directory_with_all_it_holds(pair: Pair) -> None:
    await pair.a.write(KEY, 1, "/a/b/c/f", "deep")
    await pair.a.write(KEY, 1, "/a/f", "flat")
    await pair.a.write(KEY, 1, "/ab/f", "neighbour")
    await pair.a.mkdir(KEY, 1, "/x/empty", recursive=True)
    await pair.a.rename(KEY, 1, "/a", "/x/empty")
    assert await pair.b.read(KEY, "/x/empty/b/c/f") == "deep"
    assert await pair.b.read(KEY, "/x/empty/f") == "flat"
    assert await pair.b.read(KEY, "/ab/f") == "neighbour"
    assert await names(pair.b, "/") == ["ab", "x"]


async def errno_of(awaitable: Any) -> str:
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        await awaitable
    error = caught.value
    assert error.errno is not None
    assert type(error) is type(OSError(error.errno, ""))  # FileNotFoundError for ENOENT, and so on
    assert error.strerror == os.strerror(error.errno)
    return errno.errorcode[error.errno]


async def test_errors_are_the_operating_systems(pair: Pair) -> None:
    store = pair.a
    await store.write(KEY, 1, "/file", "x")
    await store.write(KEY, 1, "/full/f", "x")
    await store.mkdir(KEY, 1, "/empty", recursive=False)

    async def errors(**calls: Any) -> dict[str, str]:
        return {name: await errno_of(call) for name, call in calls.items()}

    assert await errors(
        absent=store.read(KEY, "/absent"),
        directory=store.read(KEY, "/empty"),
        root=store.read(KEY, "/"),
        through_a_file=store.read(KEY, "/file/x/y"),
        stat=store.stat(KEY, "/absent/x"),
        list_absent=store.listdir(KEY, "/absent"),
        list_file=store.listdir(KEY, "/file"),
    ) == {
        "absent": "ENOENT",
        "directory": "EISDIR",
        "root": "EISDIR",
        "through_a_file": "ENOTDIR",
        "stat": "ENOENT",
        "list_absent": "ENOENT",
        "list_file": "ENOTDIR",
    }
    assert await errors(
        append_to_directory=store.append(KEY, 1, "/empty", "x"),
        append_to_root=store.append(KEY, 1, "/", "x"),
        write_to_directory=store.write(KEY, 1, "/empty", "x"),
        write_through_a_file=store.write(KEY, 1, "/file/x", "x"),
        mkdir_again=store.mkdir(KEY, 1, "/empty", recursive=False),
        mkdir_on_a_file=store.mkdir(KEY, 1, "/file", recursive=True),
        mkdir_without_parent=store.mkdir(KEY, 1, "/p/q", recursive=False),
        mkdir_through_a_file=store.mkdir(KEY, 1, "/file/q", recursive=True),
        mkdir_root=store.mkdir(KEY, 1, "/", recursive=False),
    ) == {
        "append_to_directory": "EISDIR",
        "append_to_root": "EISDIR",
        "write_to_directory": "EISDIR",
        "write_through_a_file": "ENOTDIR",
        "mkdir_again": "EEXIST",
        "mkdir_on_a_file": "EEXIST",
        "mkdir_without_parent": "ENOENT",
        "mkdir_through_a_file": "ENOTDIR",
        "mkdir_root": "EEXIST",
    }
    assert await errors(
        remove_absent=store.remove(KEY, 1, "/absent", recursive=True, force=False),
        remove_directory=store.remove(KEY, 1, "/full", recursive=False, force=True),
        remove_through_a_file=store.remove(KEY, 1, "/file/x", recursive=True, force=True),
        rename_absent=store.rename(KEY, 1, "/absent", "/x"),
        rename_to_nowhere=store.rename(KEY, 1, "/file", "/absent/x"),
        rename_through_a_file=store.rename(KEY, 1, "/full", "/file/x"),
        rename_file_to_directory=store.rename(KEY, 1, "/file", "/empty"),
        rename_directory_to_file=store.rename(KEY, 1, "/empty", "/file"),
        rename_to_full=store.rename(KEY, 1, "/empty", "/full"),
        rename_into_itself=store.rename(KEY, 1, "/full", "/full/sub"),
        rename_root=store.rename(KEY, 1, "/", "/x"),
    ) == {
        "remove_absent": "ENOENT",
        "remove_directory": "EISDIR",
        "remove_through_a_file": "ENOTDIR",
        "rename_absent": "ENOENT",
        "rename_to_nowhere": "ENOENT",
        "rename_through_a_file": "ENOTDIR",
        "rename_file_to_directory": "EISDIR",
        "rename_directory_to_file": "ENOTDIR",
        "rename_to_full": "ENOTEMPTY",
        "rename_into_itself": "EINVAL",
        "rename_root": "EBUSY",
    }
    await store.mkdir(KEY, 1, "/empty", recursive=True)
    await store.remove(KEY, 1, "/absent", recursive=False, force=True)
    assert await names(store, "/") == ["empty", "file", "full"]
    assert await store.read(KEY, "/file") == "x"


@pytest.mark.parametrize("path", ["", "relative", "/a/", "//a", "/a//b", "/./a", "/a/../b", "/..", "/a\0b"])
async def test_a_path_has_one_spelling(pair: Pair, path: str) -> None:
    for call in (pair.a.append(KEY, 1, path, "x"), pair.a.read(KEY, path), pair.a.rename(KEY, 1, path, "/x")):
        assert await errno_of(call) == "EINVAL"


async def test_delete_session_is_complete(bench: Bench) -> None:
    store = bench.make(clock=ManualClock())
    await store.open()
    await store.raise_epoch(KEY, 5)
    for number in range(10):
        await store.append(KEY, 5, f"/d/{number % 3}/f", "x" * 100)
    await store.delete_session(KEY, 5, 10.0)
    for table in ("file", "file_chunk"):
        assert await bench.fetch(f"SELECT * FROM {table}") == []
    assert await store.forget_session(KEY, 5)
    assert not await store.forget_session(KEY, 5)
    for table in ("file_session", "file", "file_chunk"):
        assert await bench.fetch(f"SELECT * FROM {table}") == []


async def test_the_sessions_with_files_are_walked_in_pages(pair: Pair) -> None:
    keys = [SessionKey("walk", "b"), SessionKey("walk", "a"), SessionKey("zeta", "a")]
    for key in keys:
        await pair.a.raise_epoch(key, 1)  # an epoch alone is something that is stored
    found: list[SessionKey] = []
    while page := await pair.b.sessions(found[-1] if found else None, 2):
        assert len(page) <= 2
        found += page
    assert set(keys) <= set(found)
    assert len(found) == len(set(found))
    for key in keys:
        assert await pair.a.forget_session(key, 1)
    assert not set(keys) & set(await pair.b.sessions())
