"""Session files in PostgreSQL: a write is one call of a function there (`postgresql_files_001_pre_files.sql` and
`..._003_pre_order.sql`), which compares the epoch, changes the files and counts their bytes in one transaction.

The writes of one session go one after another, in the order of the calls: over several connections they could
overtake each other, and an event log that is appended to out of order is another log. So the number of the last write
is enough to find out whether one whose answer was lost had been done. Each names the number of the one before it, too:
an attempt that was given up and repeated, and that reaches the server when later writes are done, changes nothing.
One of which no answer came at all is *settled* before the session is read or written to again: if it has not been done
until then, it will not be (ADR 0047).
"""

from __future__ import annotations

import asyncio
import errno
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from aerodrome._util.clock import Clock, SystemClock
from aerodrome._util.migrations import PostgresSchema
from aerodrome._util.postgres import Postgres
from aerodrome._util.queries import load_queries
from aerodrome._util.surrogates import from_blob, to_blob
from aerodrome.errors import Fenced
from aerodrome.model import SessionKey
from aerodrome.statestore.backends.common import (
    COMPACTED_BYTES,
    fenced,
    os_error,
    parse,
    too_large_file,
    too_large_session,
)
from aerodrome.statestore.ports import Deleted, FileInfo

_MiB = 1 << 20
#: Longest path in bytes: parent and name together are a key of an index, and those are at most 2,704 bytes.
MAX_PATH = 2000
#: Text longer than this is decoded off the loop.
_LONG = 1 << 20
#: Sessions of which the last write is remembered; of others it is looked up first.
_REMEMBERED = 10_000


class _Path(NamedTuple):
    path: bytes
    #: Parent and name of every step of the way, the path itself the last; empty for the root.
    parents: list[bytes]
    names: list[bytes]

    @property
    def own(self) -> dict[str, Any]:
        return {"path": self.path, "parent": self.parents[-1], "name": self.names[-1]}

    @property
    def way(self) -> dict[str, Any]:
        return {"path": self.path, "parents": self.parents, "names": self.names}


class PostgresFileStore:
    """Implements `statestore.ports.SessionFileStore` on a `Postgres` that its maker opens and closes.

    Content is stored as UTF-8 in which lone surrogates are allowed; sizes and limits count those bytes. Paths have at
    most 2,000 bytes.

    Args:
        max_file_bytes: Largest size of a file.
        max_session_bytes: Largest total of a session's files.
        compact_after: Appends to a file after which its newest chunks are merged.
    """

    def __init__(
        self,
        database: Postgres,
        *,
        clock: Clock | None = None,
        max_file_bytes: int = 64 * _MiB,
        max_session_bytes: int = 256 * _MiB,
        compact_after: int = 64,
    ) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._max_file_bytes = max_file_bytes
        self._max_session_bytes = max_session_bytes
        self._compact_after = compact_after
        self._queries = load_queries(__package__, "postgresql_files.sql")
        self._turns = _Turns()
        self._known = _Known(_REMEMBERED)

    @staticmethod
    def schema() -> PostgresSchema:
        return PostgresSchema.load("files", __package__)

    async def open(self) -> None:
        """See that the tables are there and suit. The database must be open. Raises `ConfigError`."""
        await self.schema().ensure(self._database)

    async def aclose(self) -> None:
        """Nothing to do: the database belongs to whoever opened it."""

    # Fence

    async def epoch(self, key: SessionKey) -> int:
        row = await self._one("epoch", key)
        return 0 if row is None else int(row[0])

    async def raise_epoch(self, key: SessionKey, epoch: int) -> None:
        number = _number()
        if await self._one("raise_epoch", key, epoch=epoch, write=number) is None:
            raise await self._refusal(key, epoch)
        self._known.put(key, epoch, number)

    # Writing

    async def append(self, key: SessionKey, epoch: int, path: str, content: str, *, durable: bool = True) -> None:
        await self._put(key, epoch, path, content, replace=False)

    async def write(self, key: SessionKey, epoch: int, path: str, content: str) -> None:
        await self._put(key, epoch, path, content, replace=True)

    async def _put(self, key: SessionKey, epoch: int, path: str, content: str, *, replace: bool) -> None:
        where = _path(path)
        if not where.path:
            # The fence goes first, as everywhere; nothing is written to a root.
            await self._change("mkdir", key, epoch, [where], recursive=True, now=0.0)
            raise os_error(errno.EISDIR, path)
        await self._change(
            "put",
            key,
            epoch,
            [where],
            content=to_blob(content),
            replace=replace,
            now=self._clock.time(),
            max_file=self._max_file_bytes,
            max_session=self._max_session_bytes,
            compact_after=self._compact_after,
            compacted_bytes=COMPACTED_BYTES,
        )

    async def mkdir(self, key: SessionKey, epoch: int, path: str, *, recursive: bool) -> None:
        await self._change("mkdir", key, epoch, [_path(path)], recursive=recursive, now=self._clock.time())

    async def remove(self, key: SessionKey, epoch: int, path: str, *, recursive: bool, force: bool) -> None:
        await self._change("remove", key, epoch, [_path(path)], recursive=recursive, force=force)

    async def rename(self, key: SessionKey, epoch: int, source: str, target: str) -> None:
        old, new = _path(source), _path(target)
        to = {f"to_{name}": value for name, value in new.way.items()}
        await self._change("rename", key, epoch, [old, new], **to, max_path=MAX_PATH)

    async def delete_session(self, key: SessionKey, epoch: int, created_at: float) -> None:
        row = await self._one("delete_session", key, epoch=epoch, created_at=created_at)
        if row is None or not row[0]:
            raise await self._refusal(key, epoch, created_at)

    async def forget_session(self, key: SessionKey, epoch: int) -> bool:
        # Files and chunks go with it (ON DELETE CASCADE).
        gone = await self._database.execute(self._queries["forget_session"], _named(key, epoch=epoch))
        return gone.count == 1 or gone.repeated

    async def _refusal(self, key: SessionKey, epoch: int, created_at: float | None = None) -> Fenced:
        """Why an epoch was not taken, as it stands now."""
        row = await self._one("mark", key)
        if row is not None and row[1] is not None and row[1] != created_at:
            return Deleted(key, *row)
        return fenced(key, epoch, None if row is None else row[0])

    async def _change(self, query: str, key: SessionKey, epoch: int, paths: list[_Path], **parameters: Any) -> None:
        """Call the function behind the query, and raise what it answers. `paths`: what `OSError`s are about."""
        number = _number()
        async with self._turns.of(key):
            earlier = await self._last_write(key, epoch)
            try:
                row = await self._one(
                    query, key, epoch=epoch, write=number, earlier=earlier, **paths[0].way, **parameters
                )
            except BaseException:
                self._known.doubt(key, number)
                raise
            assert row is not None
            code, detail = row
            if code in ("ok", "again"):
                self._known.put(key, epoch, number)
                return
            if code in ("fenced", "overtaken"):
                self._known.drop(key)
        match code:
            case "fenced":
                raise fenced(key, epoch, detail)
            case "overtaken":
                raise Fenced(
                    f"the files of session {key} are not as this activation has left them; its write is refused"
                )
            case "too_large_file":
                raise too_large_file(detail, self._max_file_bytes)
            case "too_large_session":
                raise too_large_session(detail, self._max_session_bytes)
        name, _, which = code.partition("_")
        path = paths[-1 if which else 0].path
        raise os_error(getattr(errno, name), path.rpartition(b"/")[0] if which == "PARENT" else path)

    async def _last_write(self, key: SessionKey, epoch: int) -> int:
        """The number of the last write of this epoch; whatever else may be on its way will not be done any more."""
        last = self._known.get(key)
        if last is not None and last.epoch == epoch:
            return last.number if last.doubtful is None else await self._settle(key, last, last.doubtful)
        row = await self._one("last_write", key)
        if row is None or row[0] != epoch:
            return 0  # the write will be told so
        self._known.put(key, epoch, row[1])
        return int(row[1])

    async def _settle(self, key: SessionKey, last: _Last, doubtful: int) -> int:
        # As if it had been done: should it come now, it finds its own number.
        settled = await self._database.execute(
            self._queries["settle"], _named(key, epoch=last.epoch, earlier=last.number, write=doubtful)
        )
        if settled.count == 1:
            self._known.put(key, last.epoch, doubtful)
        else:
            self._known.drop(key)  # somebody newer has the session
        return doubtful

    # Reading

    async def read(self, key: SessionKey, path: str) -> str:
        where = _path(path)
        if (last := self._known.get(key)) is not None and last.doubtful is not None:
            # Whoever looks whether a write has been done must not see it come afterwards.
            async with self._turns.of(key):
                if (last := self._known.get(key)) is not None and last.doubtful is not None:
                    await self._settle(key, last, last.doubtful)
        if not where.path:
            raise os_error(errno.EISDIR, path)
        found = await self._database.execute(self._queries["read"], _named(key, **where.own), binary=True)
        if found.row is None:
            raise await self._absent(key, where)
        if found.row[0]:
            raise os_error(errno.EISDIR, path)
        content = b"".join(chunk for _, chunk in found.rows if chunk is not None)
        if len(content) > _LONG:
            # A history of many megabytes must not stop the loop.
            return await asyncio.to_thread(from_blob, content)
        return from_blob(content)

    async def stat(self, key: SessionKey, path: str) -> FileInfo:
        where = _path(path)
        if not where.path:
            return FileInfo(True, 0, 0.0, 0.0)
        row = await self._one("stat", key, **where.own)
        if row is None:
            raise await self._absent(key, where)
        return FileInfo(*row)

    async def listdir(self, key: SessionKey, path: str) -> list[tuple[str, FileInfo]]:
        where = _path(path)
        own = where.own if where.path else {"path": b"", "parent": None, "name": None}
        found = await self._database.execute(self._queries["listdir"], _named(key, **own), binary=True)
        if where.path:
            itself = [row for row in found.rows if not row[0]]
            if not itself:
                raise await self._absent(key, where)
            if not itself[0][2]:
                raise os_error(errno.ENOTDIR, path)
        return [(from_blob(name), FileInfo(*info)) for inside, name, *info in found.rows if inside]

    async def total_bytes(self, key: SessionKey) -> int:
        row = await self._one("total_bytes", key)
        return 0 if row is None else int(row[0])

    async def sessions(self, after: SessionKey | None = None, limit: int = 100) -> list[SessionKey]:
        found = await self._database.execute(
            self._queries["sessions"], _named(after or SessionKey("", ""), limit=limit)
        )
        return [SessionKey(tenant, session) for tenant, session in found.rows]

    async def _absent(self, key: SessionKey, where: _Path) -> OSError:
        row = await self._one("blocked", key, parents=where.parents, names=where.names)
        return os_error(errno.ENOTDIR if row is not None and row[0] else errno.ENOENT, where.path)

    async def _one(self, query: str, key: SessionKey, **parameters: Any) -> tuple[Any, ...] | None:
        found = await self._database.execute(self._queries[query], _named(key, **parameters))
        return found.row


class _Last(NamedTuple):
    epoch: int
    #: Of the last write that is known to be done.
    number: int
    #: Of one after it of which no answer came.
    doubtful: int | None = None


class _Known:
    """The last write of each session that this program writes to, of as many as it may remember."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: OrderedDict[SessionKey, _Last] = OrderedDict()

    def get(self, key: SessionKey) -> _Last | None:
        return self._last.get(key)

    def put(self, key: SessionKey, epoch: int, number: int) -> None:
        self._last[key] = _Last(epoch, number)
        self._last.move_to_end(key)
        if len(self._last) > self._most:
            self._last.popitem(last=False)

    def doubt(self, key: SessionKey, number: int) -> None:
        """This one may have been done, or be done at some later time."""
        if (last := self._last.get(key)) is not None:
            self._last[key] = last._replace(doubtful=number)
            self._last.move_to_end(key)

    def drop(self, key: SessionKey) -> None:
        self._last.pop(key, None)


class _Turns:
    """A lock for each session that is being written to, given in the order of asking."""

    def __init__(self) -> None:
        self._locks: dict[SessionKey, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, key: SessionKey) -> AsyncIterator[None]:
        lock, users = self._locks.get(key) or (asyncio.Lock(), 0)
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = lock, users - 1


def _number() -> int:
    """A name for a write, by which its repetition is known."""
    return secrets.randbits(62) + 1


def _named(key: SessionKey, **parameters: Any) -> dict[str, Any]:
    return {"tenant": key.tenant, "session": key.id, **parameters}


def _path(path: str) -> _Path:
    whole = parse(path)
    if len(whole) > MAX_PATH:
        raise os_error(errno.ENAMETOOLONG, path)
    steps = whole.split(b"/")[1:]
    parents = [b"".join(b"/" + step for step in steps[:number]) for number in range(len(steps))]
    return _Path(whole, parents, steps)
