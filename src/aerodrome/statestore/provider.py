"""The `sessionFs` provider: answers the CLI's file operations for one activation of one session.

Bound to the activation's epoch for its whole life. After the first write that the store could not do, every
later write is refused as well: the CLI keeps the events of a failed append and writes them with the next one that
succeeds (docs/facts.md, "Session files"), which would put a turn into the history that was reported as failed, or,
after a lost lease, behind somebody else's. For the same reason writes are carried out one after the other: none may
overtake one that is about to fail. A store that is away for a moment is waited for. (What any file system would
refuse, such as removing what is not there, is an ordinary answer and closes nothing.)

Results and errors have the shapes of the SDK's `SessionFsHandler`: a write answers null or an error object, a read
answers an object with an `error` in it. `exists` has no place for an error: there, and only there, a store that
cannot be read raises `StoreUnavailable`, because a session that seems to be empty would be begun anew.
"""

from __future__ import annotations

import asyncio
import errno
import posixpath
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from aerodrome._util.patience import Patience
from aerodrome.errors import AerodromeError, StoreUnavailable
from aerodrome.model import SessionKey
from aerodrome.statestore.ports import FileInfo, SessionFileStore

#: Where the CLI is told to keep a session's files (`sessionFs.setProvider`, `sessionStatePath`).
STATE_PATH = "/state"
EVENTS_PATH = f"{STATE_PATH}/events.jsonl"
#: What a runtime's own `COPILOT_HOME` is called in the store: some paths contain it, and a session moves between
#: runtimes.
HOME_PATH = "/@home"

Params = dict[str, Any]

#: What any file system answers when it is asked for the impossible.
_ORDINARY = frozenset((errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EINVAL))


class SessionFs:
    """Args:
    home: The runtime's `COPILOT_HOME`, as it stands in paths.
    lasting: Whether an append has to survive a power failure before it is answered.
    on_failed_write: Called once, with the reason, when the store could not do a write; not after `close`.
    """

    def __init__(
        self,
        store: SessionFileStore,
        key: SessionKey,
        epoch: int,
        *,
        home: str,
        patience: Patience | None = None,
        lasting: Callable[[], bool] = lambda: True,
        on_failed_write: Callable[[AerodromeError], None],
    ) -> None:
        self._store = store
        self._key = key
        self._epoch = epoch
        self._home = posixpath.normpath(home)
        self._patience = patience or Patience(0.0)
        self._lasting = lasting
        self._on_failed_write = on_failed_write
        self._closed = False
        self._writing = asyncio.Lock()
        self._operations: dict[str, Callable[[Params], Awaitable[Any]]] = {
            "readFile": self._read_file,
            "exists": self._exists,
            "stat": self._stat,
            "readdir": self._readdir,
            "readdirWithTypes": self._readdir_with_types,
            "writeFile": self._write_file,
            "appendFile": self._append_file,
            "mkdir": self._mkdir,
            "rm": self._rm,
            "rename": self._rename,
            "sqliteExists": self._sqlite_exists,
        }

    def close(self) -> None:
        """Refuse every write from now on."""
        self._closed = True

    async def handle(self, operation: str, params: Params) -> Any:
        """Carry out `sessionFs.<operation>`. Errors are part of the result, as the CLI expects them."""
        perform = self._operations.get(operation)
        if perform is None:
            return {"error": _error("UNKNOWN", f"sessionFs.{operation} is not offered")}
        return await perform(params)

    # --- reads ---

    async def _read_file(self, params: Params) -> Any:
        try:
            return {"content": await self._store.read(self._key, self._path(params["path"]))}
        except (OSError, AerodromeError) as error:
            return {"content": "", "error": _describe(error)}

    async def _exists(self, params: Params) -> Any:
        try:
            await self._store.stat(self._key, self._path(params["path"]))
        except OSError:
            return {"exists": False}
        return {"exists": True}

    async def _stat(self, params: Params) -> Any:
        try:
            info = await self._store.stat(self._key, self._path(params["path"]))
        except (OSError, AerodromeError) as error:
            nothing = _stat_result(FileInfo(is_directory=False, size=0, modified_at=0.0, created_at=0.0))
            return {**nothing, "isFile": False, "error": _describe(error)}
        return _stat_result(info)

    async def _readdir(self, params: Params) -> Any:
        try:
            entries = await self._store.listdir(self._key, self._path(params["path"]))
        except (OSError, AerodromeError) as error:
            return {"entries": [], "error": _describe(error)}
        return {"entries": [name for name, _ in entries]}

    async def _readdir_with_types(self, params: Params) -> Any:
        try:
            entries = await self._store.listdir(self._key, self._path(params["path"]))
        except (OSError, AerodromeError) as error:
            return {"entries": [], "error": _describe(error)}
        return {
            "entries": [{"name": name, "type": "directory" if info.is_directory else "file"} for name, info in entries]
        }

    async def _sqlite_exists(self, params: Params) -> Any:
        return {"exists": False}

    # --- writes ---

    async def _write_file(self, params: Params) -> Any:
        return await self._guard(
            self._store.write, self._key, self._epoch, self._path(params["path"]), params["content"]
        )

    async def _append_file(self, params: Params) -> Any:
        return await self._guard(
            self._store.append,
            self._key,
            self._epoch,
            self._path(params["path"]),
            params["content"],
            appends=True,
            durable=self._lasting(),
        )

    async def _mkdir(self, params: Params) -> Any:
        path, recursive = self._path(params["path"]), bool(params.get("recursive"))
        return await self._guard(self._store.mkdir, self._key, self._epoch, path, recursive=recursive)

    async def _rm(self, params: Params) -> Any:
        path, recursive, force = self._path(params["path"]), params.get("recursive"), params.get("force")
        return await self._guard(
            self._store.remove, self._key, self._epoch, path, recursive=bool(recursive), force=bool(force)
        )

    async def _rename(self, params: Params) -> Any:
        source, target = self._path(params["src"]), self._path(params["dest"])
        return await self._guard(self._store.rename, self._key, self._epoch, source, target)

    async def _guard(
        self, write: Callable[..., Awaitable[None]], *args: Any, appends: bool = False, **kwargs: Any
    ) -> Any:
        async with self._writing:
            if self._closed:
                return _error("UNKNOWN", "this activation of the session is closed for writing")
            try:
                await self._write_patiently(write, args, kwargs, appends=appends)
            except OSError as error:
                if error.errno not in _ORDINARY:
                    self._fail(StoreUnavailable(f"a session file could not be written: {error}"))
                return _describe(error)
            except AerodromeError as error:
                self._fail(error)
                return _describe(error)
            except BaseException as error:
                # Cancelled, or a bug: nobody knows whether it was written.
                self._fail(StoreUnavailable(f"a session file may not have been written: {type(error).__name__}"))
                raise
        return None

    async def _write_patiently(
        self, write: Callable[..., Awaitable[None]], args: Any, kwargs: Any, *, appends: bool
    ) -> None:
        """Do it, again after the store was away. The try that failed may have been done all the same, and an event must
        not stand in the history twice. (Nobody else writes under our epoch.)"""
        if appends and args[2] != EVENTS_PATH:
            await write(*args, **kwargs)  # a text that may well stand there twice: nobody could tell
            return
        failed: StoreUnavailable | None = None

        async def attempt() -> None:
            nonlocal failed
            if failed is not None:
                if self._closed:
                    raise failed  # given up while we waited
                if appends and await self._is_appended(*args):
                    return
            try:
                await write(*args, **kwargs)
            except StoreUnavailable as error:
                failed = error
                raise
            except (FileNotFoundError, FileExistsError):
                if failed is None:
                    raise
                # Removed, renamed or made by the try before.

        await self._patience(attempt)

    async def _is_appended(self, key: SessionKey, epoch: int, path: str, content: str) -> bool:
        try:
            # Events have ids: what ends with these was written by the try before.
            return (await self._store.read(key, path)).endswith(content)
        except FileNotFoundError:
            return False

    def _fail(self, error: AerodromeError) -> None:
        if not self._closed:
            self._closed = True
            self._on_failed_write(error)

    def _path(self, path: str) -> str:
        """The name of the file in the store: absolute, without dots, without this runtime's home."""
        normal = posixpath.normpath("/" + path.replace("\\", "/"))
        # POSIX keeps two leading slashes apart; here they mean nothing.
        normal = "/" + normal.lstrip("/")
        if normal == self._home or normal.startswith(self._home + "/"):
            return HOME_PATH + normal[len(self._home) :]
        return normal


def _stat_result(info: FileInfo) -> dict[str, Any]:
    return {
        "isFile": not info.is_directory,
        "isDirectory": info.is_directory,
        "size": info.size,
        "mtime": _timestamp(info.modified_at),
        "birthtime": _timestamp(info.created_at),
    }


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _describe(error: OSError | AerodromeError) -> dict[str, str]:
    if isinstance(error, FileNotFoundError):
        return _error("ENOENT", str(error))
    if isinstance(error, AerodromeError):
        return _error("UNKNOWN", f"{error.code}: {error.detail}")
    return _error("UNKNOWN", str(error))


def _error(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
