"""Session files on a volume that Copilot CLI servers keep their sessions on themselves, as they lay them out.

    ROOT/TENANT/ID/events.jsonl ...      what is `/state/...` in our paths: the `session-state` of the tenant's servers
    ROOT/TENANT/.aerodrome/ID/           that the session is ours, and the few files whose path is outside `/state`
    ROOT/.aerodrome-volume               that this is the volume, and not the empty directory it is mounted on

Epochs and deletion marks are rows of another store (`fence`). A write of ours compares the epoch *before* it changes
the file and not together with it, and what the servers write by themselves is compared with nothing. So here it is the
lease that keeps two from writing; the epoch catches most of those whose lease was lost, not all (ADR 0027).

A directory that was not made for a session of ours, by servers that somebody also uses in other ways, is never read,
changed or deleted: its id cannot be had. What is in the tenant's directory is not trusted (`volume_places`, ADR 0041).
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from aerodrome._util.threads import Threads
from aerodrome._util.trees import clear_tree, remove_tree
from aerodrome.errors import Conflict, StoreUnavailable
from aerodrome.model import SessionKey
from aerodrome.statestore.backends import beneath
from aerodrome.statestore.backends.beneath import Astray, descend, look
from aerodrome.statestore.backends.common import fenced, os_error, parse, too_large_file, too_large_session
from aerodrome.statestore.backends.volume_places import LOCK, REMOVED_WITHIN, Places, is_outermost, is_root
from aerodrome.statestore.ports import FileInfo, Holder, SessionFileStore
from aerodrome.statestore.provider import STATE_PATH

T = TypeVar("T")

_MiB = 1 << 20
MARKER = ".aerodrome-volume"
#: Calls at a time, and those of one tenant: a share of its own may hang.
_THREADS, _OF_ONE_TENANT = 16, 4
#: Refusals of any file system, told to the caller as they are. Everything else means that the volume cannot be used.
_ORDINARY = frozenset(
    getattr(errno, name)
    for name in ("ENOENT", "EEXIST", "EISDIR", "ENOTDIR", "ENOTEMPTY", "EINVAL", "EBUSY", "ENAMETOOLONG")
)


class VolumeFileStore:
    """Implements `statestore.ports.SessionFileStore` and `SharedVolume`.

    Args:
        root: The mounted volume.
        fence: Where epochs and marks are; its maker opens and closes it. No file is stored there.
        max_file_bytes, max_session_bytes: For what we write. What servers write by themselves is not bounded; of a
            larger file nothing is read.
    """

    def __init__(
        self,
        root: Path,
        fence: SessionFileStore,
        *,
        max_file_bytes: int = 64 * _MiB,
        max_session_bytes: int = 256 * _MiB,
    ) -> None:
        self._root = root
        self._fence = fence
        self._max_file_bytes = max_file_bytes
        self._max_session_bytes = max_session_bytes
        self._threads = Threads("volume", _THREADS, _OF_ONE_TENANT)

    async def open(self) -> None:
        """Raises `StoreUnavailable` when the directory is not the volume that the known sessions are on."""
        known = bool(await self._fence.sessions(limit=1))
        await self._threads.run("", lambda: self._open(known))

    def _open(self, known: bool) -> None:
        marker = self._root / MARKER
        try:
            if not marker.exists():
                if known:
                    raise StoreUnavailable(f"{self._root} is not the volume of these sessions: is it mounted?")
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
                marker.touch(mode=0o600)
        except OSError as error:
            raise StoreUnavailable(f"the volume {self._root} cannot be used: {error}") from error

    @contextmanager
    def _mounted(self) -> Iterator[int]:
        """The volume's directory, open within the block: what is done from there is done on the volume, also when it
        is unmounted meanwhile, and the empty directory below it comes to light."""
        try:
            descriptor = os.open(self._root, beneath.DIRECTORY)
            try:
                os.stat(MARKER, dir_fd=descriptor)
            except OSError:
                os.close(descriptor)
                raise
        except FileNotFoundError:
            raise StoreUnavailable(f"the volume {self._root} is not there (any more): is it mounted?") from None
        except OSError as error:
            raise StoreUnavailable(f"the volume {self._root} cannot be used: {error}") from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    async def aclose(self) -> None:
        """End the threads. What still hangs on the volume is not waited for."""
        self._threads.close()

    def directory(self, tenant: str) -> Path:
        return self._root / tenant

    # Fence

    async def epoch(self, key: SessionKey) -> int:
        return await self._fence.epoch(key)

    async def raise_epoch(self, key: SessionKey, epoch: int) -> None:
        await self._fence.raise_epoch(key, epoch)
        await self._do(key.tenant, lambda places: places.claim(key))

    async def delete_session(self, key: SessionKey, epoch: int, created_at: float) -> None:
        await self._fence.delete_session(key, epoch, created_at)
        await self._do(key.tenant, lambda places: places.erase(key, claim=False))

    async def forget_session(self, key: SessionKey, epoch: int) -> bool:
        if await self._fence.epoch(key) == epoch:
            # What a server has written since `delete_session`, and the claim, also of one that was never begun.
            await self._do(key.tenant, lambda places: places.erase(key, claim=True))
        return await self._fence.forget_session(key, epoch)

    async def sessions(self, after: SessionKey | None = None, limit: int = 100) -> list[SessionKey]:
        return await self._fence.sessions(after, limit)

    # Writing

    async def append(self, key: SessionKey, epoch: int, path: str, content: str, *, durable: bool = True) -> None:
        data = _encode(content)

        def append(places: Places) -> None:
            self._check_size(places, key, self._size(places, key, path) + len(data), len(data))
            with places.at(key, path, make=True) as (parent, name):
                beneath.append(parent, name, data)

        await self._write(key, epoch, append)

    async def write(self, key: SessionKey, epoch: int, path: str, content: str) -> None:
        data = _encode(content)

        def write(places: Places) -> None:
            self._check_size(places, key, len(data), len(data) - self._size(places, key, path))
            with places.at(key, path, make=True) as (parent, name):
                beneath.replace(parent, name, data)

        await self._write(key, epoch, write)

    async def mkdir(self, key: SessionKey, epoch: int, path: str, *, recursive: bool) -> None:
        def mkdir(places: Places) -> None:
            with places.at(key, path, make=recursive or is_outermost(path)) as (parent, name):
                found = look(parent, name)
                if found is None:
                    os.mkdir(name, 0o700, dir_fd=parent)
                elif not (recursive and stat.S_ISDIR(found.st_mode)):
                    raise os_error(errno.EEXIST, path)

        await self._write(key, epoch, mkdir)

    async def remove(self, key: SessionKey, epoch: int, path: str, *, recursive: bool, force: bool) -> None:
        def remove(places: Places) -> None:
            with places.at(key, path) as (parent, name):
                # Links and pipes may go, too.
                if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=parent)
                elif not recursive:
                    raise os_error(errno.EISDIR, path)
                elif path != "/":
                    remove_tree(name, parent, within=REMOVED_WITHIN)
                else:
                    clear_tree(name, parent, within=REMOVED_WITHIN)  # the session is ours all the same
                    with places.tenant(key.tenant) as tenant:
                        beneath.remove(tenant, key.id, within=REMOVED_WITHIN)

        def remove_if_there(places: Places) -> None:
            try:
                remove(places)
            except FileNotFoundError:
                if not force:
                    raise os_error(errno.ENOENT, path) from None

        await self._write(key, epoch, remove_if_there)

    async def rename(self, key: SessionKey, epoch: int, source: str, target: str) -> None:
        def rename(places: Places) -> None:
            for path in (source, target):
                parse(path)
            if is_root(source) or is_root(target):
                raise os_error(errno.EBUSY, source)
            with places.at(key, source) as old, places.at(key, target, make=is_outermost(target)) as new:
                moved, replaced = look(*old), look(*new)
                if moved is None:
                    raise os_error(errno.ENOENT, source)
                if replaced is not None and stat.S_ISDIR(replaced.st_mode) and not stat.S_ISDIR(moved.st_mode):
                    raise os_error(errno.EISDIR, target)
                os.rename(old[1], new[1], src_dir_fd=old[0], dst_dir_fd=new[0])

        await self._write(key, epoch, rename)

    async def _write(self, key: SessionKey, epoch: int, change: Callable[[Places], None]) -> None:
        present = await self._fence.epoch(key)
        if present != epoch:
            raise fenced(key, epoch, present)
        await self._do(key.tenant, change, ordinary=True)

    def _size(self, places: Places, key: SessionKey, path: str) -> int:
        """Of the file as it is; 0 when there is none."""
        if is_root(path):
            raise os_error(errno.EISDIR, path)
        with suppress(FileNotFoundError), places.at(key, path) as (parent, name):
            if (found := look(parent, name)) is not None:
                if stat.S_ISDIR(found.st_mode):
                    raise os_error(errno.EISDIR, path)
                return found.st_size
        return 0

    def _check_size(self, places: Places, key: SessionKey, size: int, grown: int) -> None:
        if size > self._max_file_bytes:
            raise too_large_file(size, self._max_file_bytes)
        if grown > 0 and (total := places.total_bytes(key) + grown) > self._max_session_bytes:
            raise too_large_session(total, self._max_session_bytes)

    # Reading

    async def read(self, key: SessionKey, path: str) -> str:
        """Raises `TooLarge` above the largest size of a file, whoever has written it."""

        def read(places: Places) -> str:
            if path == "/":
                raise os_error(errno.EISDIR, path)
            with places.at(key, path) as (parent, name):
                return _decode(beneath.read(parent, name, self._max_file_bytes))

        return await self._do(key.tenant, read, ordinary=True)

    async def stat(self, key: SessionKey, path: str) -> FileInfo:
        def find(places: Places) -> FileInfo:
            with suppress(FileNotFoundError), places.at(key, path) as (parent, name):
                if (found := look(parent, name)) is not None:
                    return _info(found)
            if path != "/":
                raise os_error(errno.ENOENT, path)
            return FileInfo(is_directory=True, size=0, modified_at=0.0, created_at=0.0)  # it is always there

        return await self._do(key.tenant, find, ordinary=True)

    async def listdir(self, key: SessionKey, path: str) -> list[tuple[str, FileInfo]]:
        def listdir(places: Places) -> list[tuple[str, FileInfo]]:
            found: dict[str, FileInfo] = {}
            try:
                with places.at(key, path) as (parent, name), descend(parent, [name]) as directory:
                    for entry, status in beneath.entries(directory):
                        if not LOCK.fullmatch(entry):
                            found[_decode(os.fsencode(entry))] = _info(status)
            except FileNotFoundError:
                if path != "/":
                    raise os_error(errno.ENOENT, path) from None
            if path == "/":
                with suppress(FileNotFoundError), places.at(key, STATE_PATH) as (parent, name):
                    if (status_of := look(parent, name)) is not None:
                        found[STATE_PATH.lstrip("/")] = _info(status_of)
            return sorted(found.items(), key=lambda each: each[0])

        return await self._do(key.tenant, listdir, ordinary=True)

    async def total_bytes(self, key: SessionKey) -> int:
        return await self._do(key.tenant, lambda places: places.total_bytes(key))

    # What the servers leave

    async def holders(self, key: SessionKey) -> list[Holder]:
        locks = await self._do(key.tenant, lambda places: places.locks(key))
        return [Holder(pid, held) for pid, held in locks]

    async def clear_stale(self, key: SessionKey) -> int:
        return await self._do(key.tenant, lambda places: places.clear_stale(key))

    async def check_sight(self, tenant: str, sees: Callable[[str], Awaitable[bool]]) -> bool:
        name = f"aerodrome-sight-{secrets.token_hex(8)}"

        def lay_out(places: Places) -> None:
            with places.tenant(tenant, make=True) as at, descend(at, [name], make=True) as probe:
                os.close(beneath.open_file(probe, "events.jsonl", os.O_WRONLY | os.O_CREAT))

        def clear(places: Places) -> None:
            with places.tenant(tenant) as at:
                beneath.remove(at, name, within=REMOVED_WITHIN)

        try:
            try:
                await self._do(tenant, lay_out)
            except Conflict as error:
                raise StoreUnavailable(error.detail) from error  # to a server all the same
            return await sees(name)
        finally:
            with suppress(StoreUnavailable, Conflict):
                await self._do(tenant, clear)

    async def _do(self, tenant: str, work: Callable[[Places], T], *, ordinary: bool = False) -> T:
        """Work on the volume, in a thread: it may be a network away.

        Args:
            ordinary: The caller may be told what any file system refuses.
        """

        def checked() -> T:
            try:
                with self._mounted() as root:
                    return work(Places(self._root, root))
            except Astray as error:
                raise Conflict(f"on the volume, {error} is not a file or directory of the session") from error
            except PermissionError as error:
                # Waiting mends none, and is not for one tenant to make others do.
                raise Conflict(f"on the volume, the node may not use what it finds: {error}") from error
            except OSError as error:
                if ordinary and error.errno in _ORDINARY:
                    raise
                raise StoreUnavailable(f"the volume cannot be used: {error}") from error

        return await self._threads.run(tenant, checked)


def _info(found: os.stat_result) -> FileInfo:
    is_directory = stat.S_ISDIR(found.st_mode)
    return FileInfo(is_directory, 0 if is_directory else found.st_size, found.st_mtime, found.st_ctime)


def _encode(content: str) -> bytes:
    """What `_decode` makes the same text of: also of one that is not quite Unicode, or was read from no text at all."""
    for errors in ("strict", "surrogateescape"):
        with suppress(UnicodeEncodeError):
            return content.encode("utf-8", errors)
    return content.encode("utf-8", "surrogatepass")


def _decode(data: bytes | bytearray) -> str:
    for errors in ("strict", "surrogatepass"):
        with suppress(UnicodeDecodeError):
            return data.decode("utf-8", errors)
    return data.decode("utf-8", "surrogateescape")
