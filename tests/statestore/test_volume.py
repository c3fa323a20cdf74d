"""What somebody leaves on the volume who wishes others ill: it reaches none of their sessions, and stops nobody's node.

Whoever has a shell in an attached server of a tenant can do anything in that tenant's directory, at any moment.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aerodrome._util.trees import remove_tree
from aerodrome.errors import Conflict, StoreUnavailable, TooLarge
from aerodrome.model import SessionKey
from aerodrome.statestore.backends import beneath
from aerodrome.statestore.backends.sqlite import SqliteFileStore
from aerodrome.statestore.backends.volume import VolumeFileStore
from aerodrome.statestore.walk import walk
from support.databases import database

pytestmark = pytest.mark.timeout(60)

MINE, THEIRS = SessionKey("acme", "payroll"), SessionKey("globex", "payroll")
EVENTS = "/state/events.jsonl"
MAX_FILE = 100_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "volume"


@pytest.fixture
async def store(tmp_path: Path, root: Path) -> AsyncIterator[VolumeFileStore]:
    """With a session of `acme` and one of `globex`, under the same id."""
    async with database(tmp_path / "s.db") as db:
        fence = SqliteFileStore(db)
        await fence.open()
        volume = VolumeFileStore(root, fence, max_file_bytes=MAX_FILE)
        await volume.open()
        for key in (MINE, THEIRS):
            await volume.raise_epoch(key, 1)
            await volume.write(key, 1, EVENTS, f"{key.tenant} {key.id}\n")
            await volume.write(key, 1, "/@home/notes", f"notes of {key.tenant}\n")
        yield volume
        await volume.aclose()


def lie(root: Path, name: str) -> Callable[[], None]:
    """Put a link in the place of something of acme's that leads to the same of globex, or to all of it."""
    at = root / "acme" / name

    def lay() -> None:
        at.rename(root / "acme" / "moved")
        target = root / "globex" if name == ".aerodrome" else root / "globex" / name
        at.symlink_to(os.path.relpath(target, at.parent))

    return lay


def of_globex(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in sorted((root / "globex").rglob("*")) if path.is_file()
    }


LIES = [".aerodrome", ".aerodrome/payroll", "payroll", "payroll/events.jsonl"]


@pytest.mark.parametrize("name", LIES)
async def test_a_link_to_another_tenant_is_neither_read_nor_written(
    store: VolumeFileStore, root: Path, name: str
) -> None:
    before = of_globex(root)
    lie(root, name)()
    paths = {
        ".aerodrome": ["/events.jsonl", EVENTS],
        ".aerodrome/payroll": ["/@home/notes"],
    }.get(name, [EVENTS])
    for path in paths:
        calls: list[Awaitable[object]] = [
            store.read(MINE, path),
            store.stat(MINE, path),
            store.append(MINE, 1, path, "forged\n"),
            store.write(MINE, 1, path, "forged\n"),
            store.rename(MINE, 1, path, f"{path}-2"),
        ]
        if name != "payroll/events.jsonl":  # beside such a link, the directory is ours
            calls.append(store.mkdir(MINE, 1, f"{path}-d/e", recursive=True))
        for call in calls:
            with pytest.raises(Conflict):
                await call
    assert of_globex(root) == before


@pytest.mark.parametrize("name", LIES)
async def test_a_link_to_another_tenant_is_not_deleted_through(store: VolumeFileStore, root: Path, name: str) -> None:
    before = of_globex(root)
    lie(root, name)()
    if name == ".aerodrome":
        with pytest.raises(Conflict):
            await store.delete_session(MINE, 1, 0.0)
    else:
        await store.delete_session(MINE, 1, 0.0)
        assert await store.forget_session(MINE, 1)
        assert not os.path.lexists(root / "acme" / "payroll")
        assert not os.path.lexists(root / "acme" / ".aerodrome" / "payroll")
    assert of_globex(root) == before


async def test_nothing_outside_of_the_volume_is_deleted(store: VolumeFileStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "payroll").mkdir(parents=True)
    (tmp_path / "data" / "payroll" / "file").write_text("ours")
    (tmp_path / "data" / "payroll.lock").write_text("ours")
    (root / "acme" / "payroll" / "files").symlink_to(tmp_path / "data")
    (root / "acme" / ".session-operation-locks").symlink_to(tmp_path / "data")
    await store.delete_session(MINE, 1, 0.0)
    assert not (root / "acme" / "payroll").exists()
    assert (tmp_path / "data" / "payroll" / "file").read_text() == "ours"
    assert (tmp_path / "data" / "payroll.lock").read_text() == "ours"


async def test_no_session_is_claimed_through_a_link(store: VolumeFileStore, root: Path) -> None:
    lie(root, ".aerodrome")()
    with pytest.raises(Conflict):
        await store.raise_epoch(SessionKey("acme", "fresh"), 1)
    assert not (root / "globex" / "fresh").exists()


async def test_a_look_through_a_link_that_comes_and_goes_never_leaves_the_tenant(
    store: VolumeFileStore, root: Path
) -> None:
    """Whatever happens between a look and its use."""
    mine, moved = root / "acme" / "payroll", root / "acme" / "moved"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            mine.rename(moved)
            with suppress(FileExistsError):
                mine.symlink_to("../globex/payroll")
                mine.unlink()
            while moved.exists():
                try:
                    moved.rename(mine)
                except OSError:  # an append has made it anew, and may still write into it
                    with suppress(OSError):
                        remove_tree(mine)

    before = of_globex(root)
    swapping = asyncio.create_task(asyncio.to_thread(swap))
    try:
        for _ in range(300):
            for call in (store.read(MINE, EVENTS), store.append(MINE, 1, EVENTS, "forged\n")):
                try:
                    text = await call
                except (Conflict, OSError):
                    continue
                assert "globex" not in (text or "")
    finally:
        stop.set()
        await swapping
    assert of_globex(root) == before


async def test_listings_and_sizes_pass_over_what_is_no_file(store: VolumeFileStore, root: Path) -> None:
    session = root / "acme" / "payroll"
    before = await store.total_bytes(MINE)
    os.mkfifo(session / "pipe")
    (session / "link").symlink_to("../../globex")
    (root / "acme" / ".aerodrome" / "payroll" / "out").symlink_to(root / "globex")
    assert [name for name, _ in await store.listdir(MINE, "/state")] == ["events.jsonl"]
    assert [name for name, _ in await store.listdir(MINE, "/")] == ["@home", "state"]
    assert await store.total_bytes(MINE) == before


# Deletion


def nest(directory: Path, depth: int) -> None:
    here = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def replaced_by_a_file(session: Path) -> None:
    remove_tree(session)
    session.touch()


def replaced_by_a_pipe(session: Path) -> None:
    remove_tree(session)
    os.mkfifo(session)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a file": replaced_by_a_file,
    "a pipe": replaced_by_a_pipe,
    "gone": remove_tree,
    "deep": lambda session: nest(session, 1500),
    "locked": lambda session: session.chmod(0),
    "a pipe within": lambda session: os.mkfifo(session / "pipe"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
async def test_whatever_lies_in_the_place_of_a_session_is_deleted(
    store: VolumeFileStore, root: Path, damage: str
) -> None:
    DAMAGES[damage](root / "acme" / "payroll")
    await store.delete_session(MINE, 1, 0.0)
    assert await store.forget_session(MINE, 1)
    assert [path for path in (root / "acme").rglob("*") if path.name != ".aerodrome"] == []
    assert await store.read(THEIRS, EVENTS) == "globex payroll\n"


@pytest.mark.parametrize("damage", ["a file", "a pipe"])
async def test_a_session_that_is_no_directory_is_not_taken_for_an_empty_one(
    store: VolumeFileStore, root: Path, damage: str
) -> None:
    DAMAGES[damage](root / "acme" / "payroll")
    for call in (store.read(MINE, EVENTS), store.append(MINE, 1, EVENTS, "x")):
        with pytest.raises(Conflict):
            await call
    assert await store.total_bytes(MINE) == len("notes of acme\n")


async def test_sizes_are_counted_of_a_tree_that_is_deep(store: VolumeFileStore, root: Path) -> None:
    nest(root / "acme" / "payroll", 1500)
    assert await store.total_bytes(MINE) == len("acme payroll\n") + len("notes of acme\n")
    await store.append(MINE, 1, EVENTS, "more\n")
    remove_tree(root / "acme" / "payroll")  # which pytest cannot


async def test_what_a_server_writes_behind_a_deletion_goes_with_its_mark(store: VolumeFileStore, root: Path) -> None:
    await store.delete_session(MINE, 1, 0.0)
    (root / "acme" / "payroll").mkdir()
    (root / "acme" / "payroll" / "events.jsonl").write_text("late\n")
    assert await store.forget_session(MINE, 1)
    assert [path for path in (root / "acme").rglob("*") if path.name != ".aerodrome"] == []


async def test_files_of_no_session_of_ours_outlive_a_deletion(store: VolumeFileStore, root: Path) -> None:
    remove_tree(root / "acme" / ".aerodrome" / "payroll")
    with pytest.raises(Conflict):
        await store.read(MINE, EVENTS)
    await store.delete_session(MINE, 1, 0.0)
    assert await store.forget_session(MINE, 1)
    assert (root / "acme" / "payroll" / "events.jsonl").read_text() == "acme payroll\n"


# Pipes, and a volume that hangs


@pytest.mark.timeout(30)
async def test_a_pipe_holds_up_nobody(store: VolumeFileStore, root: Path) -> None:
    for number in range(40):
        key = SessionKey("acme", f"s{number}")
        await store.raise_epoch(key, 1)
        (root / "acme" / key.id).mkdir()
        for name in ("events.jsonl", "inuse.1.lock", "inuse.2.hold"):
            os.mkfifo(root / "acme" / key.id / name)
        for call in (
            store.read(key, EVENTS),
            store.append(key, 1, EVENTS, "x"),
            store.write(key, 1, EVENTS, "x"),
            store.stat(key, EVENTS),
        ):
            with pytest.raises(Conflict):
                await call
        assert [holder.alive for holder in await store.holders(key)] == [False, False]
        assert await store.clear_stale(key) == 2
        assert await store.holders(key) == []
    assert await store.read(THEIRS, EVENTS) == "globex payroll\n"


@pytest.mark.timeout(30)
async def test_a_pipe_that_comes_behind_the_look_holds_up_nobody_either(
    store: VolumeFileStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = root / "acme" / "payroll" / "events.jsonl"
    look = beneath.look

    def swapped(at: int, name: str) -> os.stat_result | None:
        found = look(at, name)
        if name == events.name:
            events.unlink()
            os.mkfifo(events)
        return found

    for call in (
        lambda: store.read(MINE, EVENTS),
        lambda: store.append(MINE, 1, EVENTS, "x"),
    ):
        events.unlink()
        events.write_text("acme payroll\n")
        with monkeypatch.context() as swapping:
            swapping.setattr(beneath, "look", swapped)
            with pytest.raises(Conflict):
                await call()


@pytest.mark.timeout(30)
async def test_a_volume_that_hangs_holds_up_its_tenant_and_nothing_else(
    store: VolumeFileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    original = os.open

    def open_(path: object, *args: object, **kwargs: object) -> int:
        if path == "acme":
            hangs.wait()
        return original(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", open_)
    waiting = [asyncio.create_task(store.read(MINE, EVENTS)) for _ in range(100)]
    try:
        # More than the default executor has threads, on any machine that this runs on.
        for _ in range(100):
            assert await store.read(THEIRS, EVENTS) == "globex payroll\n"
        assert await asyncio.to_thread(lambda: 1) == 1
        # Those who give up waiting make no room for more calls that hang.
        for task in waiting[:50]:
            task.cancel()
        await asyncio.wait(waiting[:50])
        assert await store.read(THEIRS, EVENTS) == "globex payroll\n"
        assert not any(task.done() for task in waiting[50:])
    finally:
        hangs.set()
    assert set(await asyncio.gather(*waiting[50:])) == {"acme payroll\n"}


async def test_nothing_is_written_below_a_volume_that_goes_in_that_moment(
    store: VolumeFileStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when the call began. Below it comes to light what it was mounted on."""
    away, size = root.with_name("away"), VolumeFileStore._size

    def unmounted(*args: Any) -> int:
        if not away.exists():
            root.rename(away)
            root.mkdir()
        return size(*args)

    monkeypatch.setattr(VolumeFileStore, "_size", unmounted)
    await store.write(MINE, 1, EVENTS, "late\n")
    assert list(root.iterdir()) == []
    assert (away / "acme" / "payroll" / "events.jsonl").read_text() == "late\n"
    with pytest.raises(StoreUnavailable, match="mounted"):
        await store.append(MINE, 1, EVENTS, "later\n")
    assert list(root.iterdir()) == []


# Sizes


@pytest.mark.parametrize("path", [EVENTS, "/state/files/big", "/@home/big"])
async def test_no_more_is_read_of_a_file_than_one_may_have(store: VolumeFileStore, root: Path, path: str) -> None:
    await store.write(MINE, 1, path, "x" * MAX_FILE)
    assert len(await store.read(MINE, path)) == MAX_FILE
    within = path.removeprefix("/state/") if path.startswith("/state") else path.lstrip("/")
    base = root / "acme" / ("payroll" if path.startswith("/state") else ".aerodrome/payroll")
    os.truncate(base / within, 1 << 40)  # takes no room on the disk
    with pytest.raises(TooLarge) as refused:
        await store.read(MINE, path)
    assert refused.value.extra == {"limit": MAX_FILE}


@pytest.mark.parametrize(("depth", "whole"), [(90, True), (1500, False)])
async def test_a_walk_ends_however_deep_it_is(store: VolumeFileStore, root: Path, depth: int, whole: bool) -> None:
    session = root / "acme" / "payroll"
    nest(session, depth)
    (session / "d" / "d" / "notes").write_text("x")
    os.mkfifo(session / "d" / "pipe")
    found = {path: error async for path, error in walk(store, MINE, "/")}
    assert {path for path, error in found.items() if error is None} == {EVENTS, "/@home/notes", "/state/d/d/notes"}
    assert any(found.values()) != whole, "what is too deep is told"
    remove_tree(session)


# Who sees a tenant's directory


@pytest.mark.parametrize("there", ["a link that leads nowhere", "a file"])
async def test_a_directory_that_is_not_there_is_a_store_that_is_away(
    store: VolumeFileStore, root: Path, there: str
) -> None:
    if there == "a file":
        (root / "initech").touch()
    else:
        (root / "initech").symlink_to(root.parent / "not-mounted-yet")

    async def sees(name: str) -> bool:
        raise AssertionError(name)

    key = SessionKey("initech", "s1")
    for call in (store.check_sight("initech", sees), store.read(key, EVENTS), store.holders(key)):
        with pytest.raises(StoreUnavailable):
            await call


async def test_a_tenants_directory_may_be_a_link_of_the_operators(store: VolumeFileStore, root: Path) -> None:
    (root.parent / "share").mkdir()
    (root / "initech").symlink_to(root.parent / "share")
    seen: list[str] = []

    async def sees(name: str) -> bool:
        seen.extend(str(path.relative_to(root.parent / "share")) for path in (root.parent / "share").rglob("*"))
        return name in seen

    assert await store.check_sight("initech", sees)
    assert len(seen) == 2
    assert list((root.parent / "share").iterdir()) == []
    key = SessionKey("initech", "s1")
    await store.raise_epoch(key, 1)
    await store.write(key, 1, EVENTS, "x")
    assert await store.read(key, EVENTS) == "x"
