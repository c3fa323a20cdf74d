"""Session files on a volume that Copilot CLI servers keep their sessions on themselves, as they lay them out.

    ROOT/TENANT/ID/events.jsonl ...      what is `/state/...` in our paths: the `session-state` of the tenant's servers
    ROOT/TENANT/.aerodrome/ID/           that the session is ours, and the few files whose path is outside `/state`
    ROOT/.aerodrome-volume               that this is the volume, and not the empty directory it is mounted on

Epochs and deletion marks are rows of another store (`fence`). A write of ours compares the epoch *before* it changes
the file and not together with it, and what the servers write by themselves is compared with nothing. So here it is the
lease that keeps two from writing; the epoch catches most of those whose lease was lost, not all (ADR 0027).

A directory that was not made for a session of ours, by servers that somebody also uses in other ways, is never read,
changed or deleted: its id cannot be had.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal, TypeVar

from aerodrome._util.sqlite import to_blob
from aerodrome.errors import Conflict, Fenced, StoreUnavailable, TooLarge
from aerodrome.model import SessionKey
from aerodrome.statestore.backends.tree import os_error, parse
from aerodrome.statestore.ports import FileInfo, Holder, SessionFileStore
from aerodrome.statestore.provider import STATE_PATH

T = TypeVar("T")

_MiB = 1 << 20
MARKER = ".aerodrome-volume"
_OWN = ".aerodrome"
#: What the runtime leaves beside a session's files to tell others that it is there; no content of the session.
_LOCK = re.compile(r"inuse\.(\d+)\.(lock|hold)|\.workspace-fork\.lock")
_OPERATION_LOCKS = ".session-operation-locks"
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
        max_file_bytes, max_session_bytes: For what we write; what servers write by themselves is not bounded here.
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

    async def open(self) -> None:
        """Raises `StoreUnavailable` when the directory is not the volume that the known sessions are on."""
        known = bool(await self._fence.sessions(limit=1))
        await asyncio.to_thread(self._open, known)

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

    async def aclose(self) -> None:
        """Nothing to do."""

    def directory(self, tenant: str) -> Path:
        """What the servers of a tenant have as their `session-state`."""
        return self._root / tenant

    # Fence

    async def epoch(self, key: SessionKey) -> int:
        return await self._fence.epoch(key)

    async def raise_epoch(self, key: SessionKey, epoch: int) -> None:
        await self._fence.raise_epoch(key, epoch)
        await self._do(lambda: self._claim(key))

    def _claim(self, key: SessionKey) -> None:
        if not self._session(key).exists():
            self.directory(key.tenant).mkdir(mode=0o700, exist_ok=True)
            self._own(key).mkdir(mode=0o700, parents=True, exist_ok=True)

    async def delete_session(self, key: SessionKey, epoch: int, created_at: float) -> None:
        await self._fence.delete_session(key, epoch, created_at)
        await self._do(lambda: self._erase(key))

    async def forget_session(self, key: SessionKey, epoch: int) -> bool:
        if await self._fence.epoch(key) == epoch:
            # What a server has written since `delete_session`, and the claim of one that was never begun.
            await self._do(lambda: self._erase(key))
        return await self._fence.forget_session(key, epoch)

    async def sessions(self, after: SessionKey | None = None, limit: int = 100) -> list[SessionKey]:
        return await self._fence.sessions(after, limit)

    def _erase(self, key: SessionKey) -> None:
        if not self._own(key).exists():
            return  # it is not ours
        # The claim goes last: a deletion that was cut short finds it again.
        for directory in (self._session(key), self._own(key)):
            with suppress(FileNotFoundError):
                shutil.rmtree(directory)
        with suppress(FileNotFoundError):
            (self._root / key.tenant / _OPERATION_LOCKS / f"{key.id}.lock").unlink()

    # Writing

    async def append(self, key: SessionKey, epoch: int, path: str, content: str, *, durable: bool = True) -> None:
        data = _encode(content)

        def append() -> None:
            target = self._locate(key, path)
            if target.is_dir():
                raise os_error(errno.EISDIR, path)
            size = target.stat().st_size if target.exists() else 0
            self._check_size(key, size + len(data), len(data))
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _open(target, "ab") as file:
                _write_all(file, data)

        await self._write(key, epoch, append)

    async def write(self, key: SessionKey, epoch: int, path: str, content: str) -> None:
        data = _encode(content)

        def write() -> None:
            target = self._locate(key, path)
            if target.is_dir():
                raise os_error(errno.EISDIR, path)
            size = target.stat().st_size if target.exists() else 0
            self._check_size(key, len(data), len(data) - size)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # In one piece: a reader on another machine sees the old file or the new one.
            fresh = target.with_name(f".{target.name}.aerodrome-{os.getpid()}")
            try:
                with _open(fresh, "wb") as file:
                    _write_all(file, data)
                fresh.replace(target)
            finally:
                fresh.unlink(missing_ok=True)

        await self._write(key, epoch, write)

    async def mkdir(self, key: SessionKey, epoch: int, path: str, *, recursive: bool) -> None:
        def mkdir() -> None:
            target = self._locate(key, path)
            if target.exists() and not (recursive and target.is_dir()):
                raise os_error(errno.EEXIST, path)
            if not recursive and not target.parent.is_dir() and target.parent not in self._roots(key):
                raise os_error(errno.ENOENT, path)
            target.mkdir(mode=0o700, parents=True, exist_ok=True)

        await self._write(key, epoch, mkdir)

    async def remove(self, key: SessionKey, epoch: int, path: str, *, recursive: bool, force: bool) -> None:
        def remove() -> None:
            target = self._locate(key, path)
            if not target.exists():
                if not force:
                    raise os_error(errno.ENOENT, path)
            elif not target.is_dir():
                target.unlink()
            elif not recursive:
                raise os_error(errno.EISDIR, path)
            else:
                shutil.rmtree(target)

        await self._write(key, epoch, remove)

    async def rename(self, key: SessionKey, epoch: int, source: str, target: str) -> None:
        def rename() -> None:
            old, new = self._locate(key, source), self._locate(key, target)
            if {old, new} & set(self._roots(key)):
                raise os_error(errno.EBUSY, source)
            if not old.exists() or not (new.parent.is_dir() or new.parent in self._roots(key)):
                raise os_error(errno.ENOENT, source)
            if new.is_dir() and not old.is_dir():
                raise os_error(errno.EISDIR, target)
            old.rename(new)

        await self._write(key, epoch, rename)

    async def _write(self, key: SessionKey, epoch: int, change: Callable[[], None]) -> None:
        present = await self._fence.epoch(key)
        if present != epoch:
            raise Fenced(f"session {key} is at epoch {present}; a write of epoch {epoch} is refused")
        await self._do(change)

    def _check_size(self, key: SessionKey, size: int, grown: int) -> None:
        if size > self._max_file_bytes:
            limit = self._max_file_bytes
            raise TooLarge(f"the file would have {size} bytes; at most {limit} are allowed", limit=limit)
        total = sum(path.stat().st_size for path in self._contents(key))
        if grown > 0 and total + grown > self._max_session_bytes:
            limit = self._max_session_bytes
            raise TooLarge(
                f"the session's files would have {total + grown} bytes; at most {limit} are allowed", limit=limit
            )

    # Reading

    async def read(self, key: SessionKey, path: str) -> str:
        def read() -> str:
            target = self._locate(key, path)
            if target.is_dir() or path == "/":
                raise os_error(errno.EISDIR, path)
            with _open(target, "rb") as file:
                return _decode(file.read())

        return await self._do(read)

    async def stat(self, key: SessionKey, path: str) -> FileInfo:
        def look() -> FileInfo:
            target = self._locate(key, path)
            if path == "/" and not target.exists():
                return FileInfo(is_directory=True, size=0, modified_at=0.0, created_at=0.0)  # it is always there
            return _info(target.stat())

        return await self._do(look)

    async def listdir(self, key: SessionKey, path: str) -> list[tuple[str, FileInfo]]:
        def listdir() -> list[tuple[str, FileInfo]]:
            target = self._locate(key, path)
            found = list(target.iterdir()) if target.is_dir() or path != "/" else []
            if path == "/" and self._session(key).is_dir():
                found.append(self._session(key))
            session, name = self._session(key), STATE_PATH.lstrip("/")
            shown = (each for each in found if not _LOCK.fullmatch(each.name) and not each.is_symlink())
            names = {each: name if each == session else _decode(os.fsencode(each.name)) for each in shown}
            return sorted((name, _info(each.stat())) for each, name in names.items())

        return await self._do(listdir)

    async def total_bytes(self, key: SessionKey) -> int:
        return await self._do(lambda: sum(path.stat().st_size for path in self._contents(key)))

    # What the servers leave

    async def holders(self, key: SessionKey) -> list[Holder]:
        return await self._do(lambda: [Holder(pid, held) for pid, held, _ in self._locks(key)])

    async def clear_stale(self, key: SessionKey) -> int:
        def clear() -> int:
            stale = [paths for _, held, paths in self._locks(key) if not held]
            for path in (path for paths in stale for path in paths):
                path.unlink(missing_ok=True)
            return len(stale)

        return await self._do(clear)

    async def check_sight(self, tenant: str, sees: Callable[[str], Awaitable[bool]]) -> bool:
        name = f"aerodrome-sight-{secrets.token_hex(8)}"
        probe = self.directory(tenant) / name

        def lay_out() -> None:
            probe.parent.mkdir(mode=0o700, exist_ok=True)
            probe.mkdir(mode=0o700)
            (probe / "events.jsonl").touch(mode=0o600)

        try:
            await self._do(lay_out)
            return await sees(name)
        finally:
            await asyncio.to_thread(shutil.rmtree, probe, ignore_errors=True)

    def _locks(self, key: SessionKey) -> Iterator[tuple[int, bool, list[Path]]]:
        directory = self._session(key)
        if not directory.is_dir() or not self._own(key).is_dir():
            return
        by_pid: dict[int, list[Path]] = {}
        for path in directory.iterdir():
            if (found := _LOCK.fullmatch(path.name)) and found[1]:
                by_pid.setdefault(int(found[1]), []).append(path)
        for pid, paths in sorted(by_pid.items()):
            yield pid, any(_is_held(path) for path in paths), paths

    # Places

    def _session(self, key: SessionKey) -> Path:
        return self._root / key.tenant / key.id

    def _own(self, key: SessionKey) -> Path:
        return self._root / key.tenant / _OWN / key.id

    def _roots(self, key: SessionKey) -> tuple[Path, Path]:
        return self._session(key), self._own(key)

    def _locate(self, key: SessionKey, path: str) -> Path:
        """Where a file of the session is. Never outside of its directories, whatever links somebody has left there."""
        parse(path)
        session, own = self._roots(key)
        if session.exists() and not own.exists():
            raise Conflict("the volume has files under this id that belong to no session of this host")
        inside = path == STATE_PATH or path.startswith(f"{STATE_PATH}/")
        root, rest = (session, path[len(STATE_PATH) :]) if inside else (own, path)
        target = root / os.fsdecode(to_blob(rest.lstrip("/")))
        above = target
        while above != root.parent:
            if above.is_symlink():
                raise os_error(errno.EINVAL, path)
            if above != target and above.exists() and not above.is_dir():
                raise os_error(errno.ENOTDIR, path)
            above = above.parent
        return target

    def _contents(self, key: SessionKey) -> Iterator[Path]:
        for root in self._roots(key):
            for parent, _, names in os.walk(root):
                for path in (Path(parent, name) for name in names if not _LOCK.fullmatch(name)):
                    if not path.is_symlink() and path.exists():
                        yield path

    async def _do(self, work: Callable[[], T]) -> T:
        """Work on the volume, in a thread: it may be a network away."""

        def checked() -> T:
            if not (self._root / MARKER).exists():
                raise StoreUnavailable(f"the volume {self._root} is not there (any more): is it mounted?")
            try:
                return work()
            except OSError as error:
                if error.errno in _ORDINARY:
                    raise
                raise StoreUnavailable(f"the volume cannot be used: {error}") from error

        return await asyncio.to_thread(checked)


def _open(path: Path, mode: Literal["ab", "rb", "wb"]) -> IO[bytes]:
    """No link is followed: what it leads to is none of the session's files."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600))


def _write_all(file: IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _is_held(path: Path) -> bool:
    """Whether a living process has the lock: its end gives it back, however it came."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False  # gone at this moment
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _info(found: os.stat_result) -> FileInfo:
    is_directory = stat.S_ISDIR(found.st_mode)
    return FileInfo(is_directory, 0 if is_directory else found.st_size, found.st_mtime, found.st_ctime)


def _encode(content: str) -> bytes:
    """What `_decode` makes the same text of: also of one that is not quite Unicode, or was read from no text at all."""
    for errors in ("strict", "surrogateescape"):
        with suppress(UnicodeEncodeError):
            return content.encode("utf-8", errors)
    return content.encode("utf-8", "surrogatepass")


def _decode(data: bytes) -> str:
    for errors in ("strict", "surrogatepass"):
        with suppress(UnicodeDecodeError):
            return data.decode("utf-8", errors)
    return data.decode("utf-8", "surrogateescape")
