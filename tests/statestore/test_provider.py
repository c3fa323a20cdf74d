"""The `sessionFs` provider over the real store."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from copilot.generated import rpc
from hypothesis import example, given
from hypothesis import strategies as st

from aerodrome._util.clock import ManualClock
from aerodrome._util.sqlite import Database
from aerodrome.errors import AerodromeError, Fenced, StoreUnavailable, TooLarge
from aerodrome.model import SessionKey
from aerodrome.statestore.backends.sqlite import SqliteFileStore
from aerodrome.statestore.provider import EVENTS_PATH, HOME_PATH, STATE_PATH, SessionFs
from support.databases import database, locked_by_another_process

pytestmark = pytest.mark.timeout(30)

KEY = SessionKey("acme", "chat")
HOME = "/data/runtimes/node-1/rt-1/copilot"
LIMIT = 10_000


@dataclass
class Session:
    """One activation, and what it reported."""

    store: SqliteFileStore
    epoch: int
    home: str = HOME
    failures: list[AerodromeError] = field(default_factory=list)
    files: SessionFs = field(init=False)

    def __post_init__(self) -> None:
        self.files = SessionFs(self.store, KEY, self.epoch, home=self.home, on_failed_write=self.failures.append)

    async def call(self, operation: str, **params: Any) -> Any:
        return await self.files.handle(operation, {"sessionId": KEY.id, **params})


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with database(tmp_path / "s.db", busy_timeout=0.05) as opened:
        yield opened


@pytest.fixture
async def store(db: Database) -> SqliteFileStore:
    files = SqliteFileStore(db, clock=ManualClock(start=1_700_000_000.0), max_file_bytes=LIMIT)
    await files.open()
    await files.raise_epoch(KEY, 1)
    return files


@pytest.fixture
def session(store: SqliteFileStore) -> Session:
    return Session(store, epoch=1)


# --- shapes ---


async def test_results_have_the_shapes_of_the_sdk(session: Session) -> None:
    path = f"{STATE_PATH}/workspace.yaml"
    assert await session.call("mkdir", path="/state/files", recursive=True, mode=448) is None
    assert await session.call("writeFile", path=path, content="id: é\n", mode=384) is None
    assert await session.call("appendFile", path=path, content="name: x\n") is None
    read = rpc.SessionFSReadFileResult.from_dict(await session.call("readFile", path=path))
    assert (read.content, read.error) == ("id: é\nname: x\n", None)
    stat = rpc.SessionFSStatResult.from_dict(await session.call("stat", path=path))
    assert (stat.is_file, stat.is_directory, stat.size) == (True, False, 15)
    assert stat.mtime.timestamp() == stat.birthtime.timestamp() == 1_700_000_000.0
    directory = rpc.SessionFSStatResult.from_dict(await session.call("stat", path="/state"))
    assert (directory.is_file, directory.is_directory) == (False, True)
    assert rpc.SessionFSExistsResult.from_dict(await session.call("exists", path=path)).exists
    assert not rpc.SessionFSExistsResult.from_dict(await session.call("exists", path="/state/no")).exists
    names = rpc.SessionFSReaddirResult.from_dict(await session.call("readdir", path="/state"))
    assert names.entries == ["files", "workspace.yaml"]
    typed = rpc.SessionFSReaddirWithTypesResult.from_dict(await session.call("readdirWithTypes", path="/state"))
    assert [(entry.name, entry.type.value) for entry in typed.entries] == [
        ("files", "directory"),
        ("workspace.yaml", "file"),
    ]
    assert await session.call("rename", src=path, dest="/state/files/w.yaml") is None
    assert await session.call("rm", path="/state/files", recursive=True) is None
    assert (await session.call("readdir", path="/state"))["entries"] == []
    assert not rpc.SessionFSSqliteExistsResult.from_dict(await session.call("sqliteExists", path=path)).exists
    assert session.failures == []


async def test_what_is_not_there_is_enoent(session: Session) -> None:
    read = await session.call("readFile", path="/state/no")
    assert read["content"] == ""
    stat = await session.call("stat", path="/state/no")
    assert (stat["isFile"], stat["isDirectory"]) == (False, False)
    rpc.SessionFSStatResult.from_dict(stat)
    names = await session.call("readdir", path="/state/no")
    typed = await session.call("readdirWithTypes", path="/state/no")
    assert names["entries"] == typed["entries"] == []
    for error in (read["error"], stat["error"], names["error"], typed["error"]):
        assert rpc.SessionFSError.from_dict(error).code is rpc.SessionFSErrorCode.ENOENT
    removed = rpc.SessionFSError.from_dict(await session.call("rm", path="/state/no"))
    assert removed.code is rpc.SessionFSErrorCode.ENOENT
    assert await session.call("rm", path="/state/no", force=True) is None


async def test_an_operation_that_is_not_offered_says_so(session: Session) -> None:
    result = await session.call("sqliteQuery", query="SELECT 1")
    assert result == {"error": {"code": "UNKNOWN", "message": "sessionFs.sqliteQuery is not offered"}}


async def test_a_missing_parameter_is_a_key_error(session: Session) -> None:
    for operation in ("readFile", "writeFile", "rename"):
        with pytest.raises(KeyError):
            await session.call(operation)
    assert session.failures == []


# --- paths ---


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/state/events.jsonl", EVENTS_PATH),
        ("state/events.jsonl", EVENTS_PATH),
        ("//state///events.jsonl/", EVENTS_PATH),
        ("/state/./x/../events.jsonl", EVENTS_PATH),
        ("/../../state/events.jsonl", EVENTS_PATH),
        ("\\state\\events.jsonl", EVENTS_PATH),
        (f"{HOME}/session-state/chat/w.yaml", f"{HOME_PATH}/session-state/chat/w.yaml"),
        (f"/{HOME}/x", f"{HOME_PATH}/x"),
        (f"{HOME}/../copilot/x", f"{HOME_PATH}/x"),
        (HOME, HOME_PATH),
        (f"{HOME}-other/x", f"{HOME}-other/x"),
        ("/etc/passwd", "/etc/passwd"),
        ("", "/"),
    ],
)
async def test_one_file_has_one_name(session: Session, store: SqliteFileStore, path: str, name: str) -> None:
    if name in ("/", HOME_PATH):
        assert await session.call("mkdir", path=path, recursive=True) is None
        assert (await store.stat(KEY, name)).is_directory
    else:
        assert await session.call("writeFile", path=path, content="here") is None
        assert await store.read(KEY, name) == "here"


@pytest.mark.parametrize("home", [HOME, HOME + "/", "/data//runtimes/./node-1/rt-1/copilot"])
async def test_what_one_runtime_keeps_at_home_another_finds_at_its_own(store: SqliteFileStore, home: str) -> None:
    first = Session(store, 1, home=home)
    assert await first.call("writeFile", path=f"{HOME}/session-state/chat/w.yaml", content="name: x") is None
    await store.raise_epoch(KEY, 2)
    second = Session(store, 2, home="/elsewhere/copilot")
    assert (await second.call("readFile", path="/elsewhere/copilot/session-state/chat/w.yaml"))["content"] == "name: x"


@given(path=st.text() | st.lists(st.sampled_from(["..", ".", "", "a", "state", HOME[1:], "\\"])).map("/".join))
@example(path="//")
@example(path="/" + "../" * 50 + "etc/passwd")
def test_every_path_becomes_a_normal_one(path: str) -> None:
    files = SessionFs(None, KEY, 1, home=HOME, on_failed_write=lambda _: None)  # type: ignore[arg-type]
    name = files._path(path)
    assert re.fullmatch(r"/|(/[^/]+)+", name, re.DOTALL)
    assert not {".", ".."} & set(name.split("/"))
    assert files._path(name) == name
    assert not name.startswith(f"{HOME}/")


@pytest.mark.parametrize("path", ["/state/\0", "/state/" + "x" * 5000, "/state/\ud83d", "/state/\n'; DROP TABLE file"])
async def test_a_hostile_path_is_a_file_or_refused_and_closes_nothing(session: Session, path: str) -> None:
    written = await session.call("writeFile", path=path, content="x")
    read = await session.call("readFile", path=path)
    assert (written is None and read["content"] == "x") or (written["code"], read["error"]["code"]) == (
        "UNKNOWN",
        "UNKNOWN",
    )
    assert (await session.call("exists", path=path))["exists"] == (written is None)
    assert await session.call("appendFile", path=EVENTS_PATH, content="still open\n") is None
    assert session.failures == []


# --- writes that fail ---


async def refuses_everything(session: Session) -> None:
    for operation, params in (
        ("appendFile", {"path": EVENTS_PATH, "content": "late"}),
        ("writeFile", {"path": "/state/w", "content": "late"}),
        ("mkdir", {"path": "/state/d", "recursive": True}),
        ("rm", {"path": EVENTS_PATH, "force": True}),
        ("rename", {"src": EVENTS_PATH, "dest": "/state/x"}),
    ):
        refused = await session.call(operation, **params)
        assert refused["code"] == "UNKNOWN"
        assert "closed for writing" in refused["message"]


async def test_trap_08_a_fenced_activation_never_writes_again(session: Session, store: SqliteFileStore) -> None:
    await session.call("appendFile", path=EVENTS_PATH, content="one\n")
    await store.raise_epoch(KEY, 2)
    refused = await session.call("appendFile", path=EVENTS_PATH, content="two\n")
    assert refused["code"] == "UNKNOWN"
    assert refused["message"].startswith("fenced: ")
    await refuses_everything(session)
    assert [type(error) for error in session.failures] == [Fenced]
    # The successor goes on from what was acknowledged.
    successor = Session(store, 2)
    await successor.call("appendFile", path=EVENTS_PATH, content="three\n")
    assert await store.read(KEY, EVENTS_PATH) == "one\nthree\n"
    # And the fenced one may still read: it changes nothing.
    assert (await session.call("readFile", path=EVENTS_PATH))["content"] == "one\nthree\n"


async def test_after_a_write_over_the_limit_nothing_is_written(session: Session, store: SqliteFileStore) -> None:
    refused = await session.call("appendFile", path=EVENTS_PATH, content="x" * (LIMIT + 1))
    assert refused["message"].startswith("too_large: ")
    await refuses_everything(session)
    assert [type(error) for error in session.failures] == [TooLarge]
    with pytest.raises(FileNotFoundError):
        await store.read(KEY, EVENTS_PATH)


async def test_after_a_write_that_found_the_store_locked_nothing_is_written(
    session: Session, store: SqliteFileStore, tmp_path: Path
) -> None:
    await session.call("appendFile", path=EVENTS_PATH, content="one\n")
    async with locked_by_another_process(tmp_path / "s.db") as holder:
        refused = await session.call("appendFile", path=EVENTS_PATH, content="two\n")
        assert refused["message"].startswith("store_unavailable: ")
        await asyncio.to_thread(holder.release)
    await refuses_everything(session)
    assert [type(error) for error in session.failures] == [StoreUnavailable]
    assert await store.read(KEY, EVENTS_PATH) == "one\n"


async def test_no_write_overtakes_one_that_is_about_to_fail(session: Session, store: SqliteFileStore) -> None:
    """The CLI would write the failed events later, behind those that came after them."""
    results = await asyncio.gather(
        session.call("appendFile", path=EVENTS_PATH, content="one\n"),
        session.call("appendFile", path=EVENTS_PATH, content="x" * (LIMIT + 1)),
        session.call("appendFile", path=EVENTS_PATH, content="three\n"),
        session.call("appendFile", path=EVENTS_PATH, content="four\n"),
    )
    assert [result is None for result in results] == [True, False, False, False]
    assert await store.read(KEY, EVENTS_PATH) == "one\n"
    assert len(session.failures) == 1


async def test_writes_are_stored_in_the_order_in_which_they_came(session: Session, store: SqliteFileStore) -> None:
    await asyncio.gather(
        *(session.call("appendFile", path=EVENTS_PATH, content=f"{number}\n") for number in range(100))
    )
    assert await store.read(KEY, EVENTS_PATH) == "".join(f"{number}\n" for number in range(100))


class Odd(SqliteFileStore):
    """A store whose next append ends in this error, after it was done."""

    error: BaseException | None = None

    async def append(self, key: SessionKey, epoch: int, path: str, content: str, *, durable: bool = True) -> None:
        await super().append(key, epoch, path, content)
        if (error := self.error) is not None:
            self.error = None
            raise error


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), asyncio.CancelledError()])
async def test_after_a_write_of_which_nobody_knows_nothing_is_written(
    store: SqliteFileStore, db: Database, error: BaseException
) -> None:
    odd = Odd(db)
    session = Session(odd, 1)
    odd.error = error
    with pytest.raises(type(error)):
        await session.call("appendFile", path=EVENTS_PATH, content="one\n")
    await refuses_everything(session)
    assert [type(failure) for failure in session.failures] == [StoreUnavailable]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), TimeoutError(), PermissionError(13, "no")])
async def test_an_error_of_the_system_is_no_ordinary_answer(
    store: SqliteFileStore, db: Database, error: OSError
) -> None:
    odd = Odd(db)
    session = Session(odd, 1)
    odd.error = error
    assert (await session.call("appendFile", path=EVENTS_PATH, content="one\n"))["code"] == "UNKNOWN"
    await refuses_everything(session)
    assert [type(failure) for failure in session.failures] == [StoreUnavailable]


async def test_an_ordinary_answer_of_a_file_system_closes_nothing(session: Session) -> None:
    await session.call("writeFile", path="/state/f", content="x")
    await session.call("mkdir", path="/state/d", recursive=False)
    refusals = [
        await session.call("rm", path="/state/none"),
        await session.call("rm", path="/"),
        await session.call("rm", path="/state"),
        await session.call("mkdir", path="/state/d", recursive=False),
        await session.call("mkdir", path="/none/d", recursive=False),
        await session.call("rename", src="/state/none", dest="/state/x"),
        await session.call("rename", src="/state", dest="/state/d/state"),
        await session.call("writeFile", path="/state/d", content="x"),
        await session.call("writeFile", path="/state/f/x", content="x"),
    ]
    assert all(refusal["code"] in ("ENOENT", "UNKNOWN") for refusal in refusals)
    assert session.failures == []
    assert await session.call("appendFile", path=EVENTS_PATH, content="one\n") is None


async def test_a_closed_activation_writes_nothing_and_reports_nothing(session: Session) -> None:
    session.files.close()
    await refuses_everything(session)
    assert session.failures == []


async def test_a_failure_after_the_close_is_not_reported(session: Session, store: SqliteFileStore) -> None:
    await store.raise_epoch(KEY, 2)
    writing = asyncio.create_task(session.call("appendFile", path=EVENTS_PATH, content="x"))
    await asyncio.sleep(0)
    session.files.close()
    assert (await writing)["code"] == "UNKNOWN"
    assert session.failures == []


# --- a store that cannot be read ---


async def test_a_session_does_not_look_empty_because_the_store_is_away(session: Session, db: Database) -> None:
    """A CLI that is told that there is no history would begin a new one."""
    await session.call("appendFile", path=EVENTS_PATH, content="one\n")
    await db.aclose()
    with pytest.raises(StoreUnavailable):
        await session.call("exists", path=EVENTS_PATH)
    for operation in ("readFile", "stat", "readdir", "readdirWithTypes"):
        result = await session.call(operation, path=EVENTS_PATH)
        assert result["error"]["code"] == "UNKNOWN"
        assert result["error"]["message"].startswith("store_unavailable: ")
    assert session.failures == []
