"""Session files in SQLite: an append is one row, the fence is a row read and compared in the same transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

from aerodrome._util.clock import Clock, SystemClock
from aerodrome._util.schema import Schema
from aerodrome._util.sqlite import Database
from aerodrome._util.surrogates import from_blob, to_blob
from aerodrome.model import SessionKey
from aerodrome.statestore.backends.common import fenced, parse, too_large_session
from aerodrome.statestore.backends.tree import Entry, Tree
from aerodrome.statestore.ports import Deleted, FileInfo

T = TypeVar("T")

_MiB = 1 << 20
#: The row id of no session: to a reader, a session without a row is an empty root.
_NO_SESSION = -1


class SqliteFileStore:
    """Implements `statestore.ports.SessionFileStore` on a `Database` that its maker opens and closes.

    Content is stored as UTF-8 in which lone surrogates are allowed (`_util.surrogates.to_blob`), so that whatever
    text is written is read again; sizes and limits count those bytes.

    Args:
        max_file_bytes: Largest size of a file.
        max_session_bytes: Largest total of a session's files.
        compact_after: Appends to a file after which its newest chunks are merged.
    """

    def __init__(
        self,
        database: Database,
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

    async def open(self) -> None:
        """Bring the tables up to date. The database must be open."""
        await self._database.write(Schema.load("statestore", __package__).migrate)

    async def aclose(self) -> None:
        """Nothing to do: the database belongs to whoever opened it."""

    # Fence

    async def epoch(self, key: SessionKey) -> int:
        def epoch(connection: sqlite3.Connection) -> int:
            row = _session(connection, key)
            return 0 if row is None else row[1]

        return await self._database.read(epoch)

    async def raise_epoch(self, key: SessionKey, epoch: int) -> None:
        def raise_epoch(connection: sqlite3.Connection) -> None:
            row = _session(connection, key)
            _check_not_deleted(connection, key)
            if row is not None and row[1] >= epoch:
                raise fenced(key, epoch, row[1])
            connection.execute(
                "INSERT INTO file_session (tenant, session, epoch) VALUES (?, ?, ?)"
                " ON CONFLICT (tenant, session) DO UPDATE SET epoch = excluded.epoch",
                (*key, epoch),
            )

        await self._database.write(raise_epoch)

    # Writing

    async def append(self, key: SessionKey, epoch: int, path: str, content: str, *, durable: bool = True) -> None:
        where, data, limit, compact_after = parse(path), to_blob(content), self._max_file_bytes, self._compact_after
        await self._write(
            key,
            epoch,
            lambda tree: tree.append(where, data, limit=limit, compact_after=compact_after),
            durable=durable,
        )

    async def write(self, key: SessionKey, epoch: int, path: str, content: str) -> None:
        where, data, limit = parse(path), to_blob(content), self._max_file_bytes
        await self._write(key, epoch, lambda tree: tree.write(where, data, limit=limit))

    async def mkdir(self, key: SessionKey, epoch: int, path: str, *, recursive: bool) -> None:
        where = parse(path)
        await self._write(key, epoch, lambda tree: tree.mkdir(where, recursive=recursive))

    async def remove(self, key: SessionKey, epoch: int, path: str, *, recursive: bool, force: bool) -> None:
        where = parse(path)
        await self._write(key, epoch, lambda tree: tree.remove(where, recursive=recursive, force=force))

    async def rename(self, key: SessionKey, epoch: int, source: str, target: str) -> None:
        old, new = parse(source), parse(target)
        await self._write(key, epoch, lambda tree: tree.rename(old, new))

    async def delete_session(self, key: SessionKey, epoch: int, created_at: float) -> None:
        def delete(connection: sqlite3.Connection) -> None:
            again = _check_not_deleted(connection, key, but=created_at)
            row = _session(connection, key)
            if row is None or row[1] > epoch or (row[1] < epoch and not again):
                raise fenced(key, epoch, None if row is None else row[1])
            # Their chunks go with them (ON DELETE CASCADE).
            connection.execute("DELETE FROM file WHERE session_id = ?", (row[0],))
            connection.execute(
                "UPDATE file_session SET epoch = ?, deleted_of = ?, bytes = 0 WHERE id = ?",
                (epoch, created_at, row[0]),
            )

        await self._database.write(delete)

    async def forget_session(self, key: SessionKey, epoch: int) -> bool:
        def forget(connection: sqlite3.Connection) -> bool:
            gone = connection.execute(
                "DELETE FROM file_session WHERE tenant = ? AND session = ? AND epoch = ?", (*key, epoch)
            )
            return gone.rowcount == 1

        return await self._database.write(forget)

    async def _write(self, key: SessionKey, epoch: int, change: Callable[[Tree], int], *, durable: bool = True) -> None:
        """Compare the epoch, change the files, count their bytes: one transaction."""

        def write(connection: sqlite3.Connection) -> None:
            row = _session(connection, key)
            if row is None or row[1] != epoch:
                raise fenced(key, epoch, None if row is None else row[1])
            session_id, _, total = row
            grown = change(Tree(connection, session_id, self._clock.time()))
            if grown > 0 and total + grown > self._max_session_bytes:
                raise too_large_session(total + grown, self._max_session_bytes)
            if grown:
                connection.execute("UPDATE file_session SET bytes = ? WHERE id = ?", (total + grown, session_id))

        await self._database.write(write, durable=durable)

    # Reading

    async def read(self, key: SessionKey, path: str) -> str:
        where = parse(path)
        # Decoded in the reader's thread: a history of many megabytes must not stop the loop.
        return await self._read(key, lambda tree: from_blob(tree.content(where)))

    async def stat(self, key: SessionKey, path: str) -> FileInfo:
        where = parse(path)
        return _info(await self._read(key, lambda tree: tree.get(where)))

    async def listdir(self, key: SessionKey, path: str) -> list[tuple[str, FileInfo]]:
        where = parse(path)
        found = await self._read(key, lambda tree: tree.children(where))
        return [(from_blob(name), _info(entry)) for name, entry in found]

    async def total_bytes(self, key: SessionKey) -> int:
        def total(connection: sqlite3.Connection) -> int:
            row = _session(connection, key)
            return 0 if row is None else row[2]

        return await self._database.read(total)

    async def sessions(self, after: SessionKey | None = None, limit: int = 100) -> list[SessionKey]:
        def sessions(connection: sqlite3.Connection) -> list[SessionKey]:
            rows = connection.execute(
                "SELECT tenant, session FROM file_session WHERE (tenant, session) > (?, ?) ORDER BY 1, 2 LIMIT ?",
                (*(after or ("", "")), limit),
            )
            return [SessionKey(*row) for row in rows]

        return await self._database.read(sessions)

    async def _read(self, key: SessionKey, look: Callable[[Tree], T]) -> T:
        def read(connection: sqlite3.Connection) -> T:
            row = _session(connection, key)
            return look(Tree(connection, _NO_SESSION if row is None else row[0], 0.0))

        return await self._database.read(read)


def _session(connection: sqlite3.Connection, key: SessionKey) -> tuple[int, int, int] | None:
    """Row id, epoch and total bytes."""
    row: tuple[int, int, int] | None = connection.execute(
        "SELECT id, epoch, bytes FROM file_session WHERE tenant = ? AND session = ?", key
    ).fetchone()
    return row


def _check_not_deleted(connection: sqlite3.Connection, key: SessionKey, but: float | None = None) -> bool:
    """Whether the mark of that deletion is there. Raises `Deleted` for that of another."""
    mark = connection.execute(
        "SELECT epoch, deleted_of FROM file_session WHERE tenant = ? AND session = ? AND deleted_of IS NOT NULL", key
    ).fetchone()
    if mark is not None and mark[1] != but:
        raise Deleted(key, *mark)
    return mark is not None


def _info(entry: Entry) -> FileInfo:
    return FileInfo(bool(entry.is_directory), entry.size, entry.modified_at, entry.created_at)
