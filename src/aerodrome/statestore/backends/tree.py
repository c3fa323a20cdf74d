"""The rows of one session's files: a small file system in three tables (`sqlite_001_files.sql`).

Inside, a path is bytes: b"" is the root, b"/a/b" a file in the directory b"/a". Errors are the operating
system's. Methods that write return by how many bytes the session grew, and leave it to the caller's transaction
to take back what they did before they raised.
"""

from __future__ import annotations

import errno
import sqlite3
from typing import NamedTuple

from aerodrome.statestore.backends.common import COMPACTED_BYTES, os_error, too_large_file


class Entry(NamedTuple):
    id: int
    is_directory: bool
    size: int
    #: Chunks since the last compaction.
    fresh: int
    created_at: float
    modified_at: float


_ROOT = Entry(0, True, 0, 0, 0.0, 0.0)
#: Everything below a directory, from the directory's path three times: itself, + "/", + "0" (the next character).
_BELOW = "session_id = ? AND (parent = ? OR parent > ? AND parent < ?)"
_COLUMNS = "id, is_directory, size, fresh, created_at, modified_at"


class Tree:
    """The files of the session with this row id, as one transaction sees them."""

    def __init__(self, connection: sqlite3.Connection, session_id: int, now: float) -> None:
        self._connection = connection
        self._session_id = session_id
        self._now = now

    # Lookup

    def find(self, path: bytes) -> Entry | None:
        """The entry, if any. Raises `NotADirectoryError` when the way to it leads through a file."""
        if (entry := self._look(path)) is not None:
            return entry
        above = _parent(path)
        while (ancestor := self._look(above)) is None:
            above = _parent(above)
        if not ancestor.is_directory:
            raise os_error(errno.ENOTDIR, path)
        return None

    def get(self, path: bytes) -> Entry:
        if (entry := self.find(path)) is None:
            raise os_error(errno.ENOENT, path)
        return entry

    def get_file(self, path: bytes) -> Entry:
        if (entry := self.get(path)).is_directory:
            raise os_error(errno.EISDIR, path)
        return entry

    def _look(self, path: bytes) -> Entry | None:
        if not path:
            return _ROOT
        row = self._connection.execute(
            f"SELECT {_COLUMNS} FROM file WHERE session_id = ? AND parent = ? AND name = ?",
            (self._session_id, *_split(path)),
        ).fetchone()
        return None if row is None else Entry._make(row)

    # Reading

    def content(self, path: bytes) -> bytes:
        chunks = self._connection.execute(
            "SELECT content FROM file_chunk WHERE file_id = ? ORDER BY id", (self.get_file(path).id,)
        ).fetchall()
        return b"".join(content for (content,) in chunks)

    def children(self, path: bytes) -> list[tuple[bytes, Entry]]:
        """What is in a directory, by name."""
        if not self.get(path).is_directory:
            raise os_error(errno.ENOTDIR, path)
        rows = self._connection.execute(
            f"SELECT name, {_COLUMNS} FROM file WHERE session_id = ? AND parent = ? ORDER BY name",
            (self._session_id, path),
        ).fetchall()
        return [(name, Entry._make(row)) for name, *row in rows]

    # Writing

    def append(self, path: bytes, content: bytes, *, limit: int, compact_after: int) -> int:
        file = self._file(path)
        if (size := file.size + len(content)) > limit:
            raise too_large_file(size, limit)
        fresh = file.fresh
        if content:
            self._add_chunk(file.id, content)
            fresh += 1
        if fresh >= compact_after:
            self._compact(file.id, fresh)
            fresh = 0
        self._update(file.id, file.size + len(content), fresh)
        return len(content)

    def write(self, path: bytes, content: bytes, *, limit: int) -> int:
        if len(content) > limit:
            raise too_large_file(len(content), limit)
        file = self._file(path)
        self._connection.execute("DELETE FROM file_chunk WHERE file_id = ?", (file.id,))
        if content:
            self._add_chunk(file.id, content)
        self._update(file.id, len(content), int(bool(content)))
        return len(content) - file.size

    def mkdir(self, path: bytes, *, recursive: bool) -> int:
        present = self.find(path)
        if present is not None:
            if not (recursive and present.is_directory):
                raise os_error(errno.EEXIST, path)
            return 0
        if not recursive:
            self.get(_parent(path))
        self._make_parents(path)
        self._insert(path, is_directory=True)
        return 0

    def remove(self, path: bytes, *, recursive: bool, force: bool) -> int:
        if (entry := self.find(path)) is None:
            if not force:
                raise os_error(errno.ENOENT, path)
            return 0
        if not entry.is_directory:
            return self._delete(entry)
        if not recursive:
            raise os_error(errno.EISDIR, path)
        below = self._below(path)
        size = self._connection.execute(f"SELECT coalesce(sum(size), 0) FROM file WHERE {_BELOW}", below).fetchone()[0]
        self._connection.execute(f"DELETE FROM file WHERE {_BELOW}", below)
        self._delete(entry)
        return -int(size)

    def rename(self, source: bytes, target: bytes) -> int:
        moved = self.get(source)
        if not source or not target:
            raise os_error(errno.EBUSY, b"")
        if source == target:
            return 0
        if target.startswith(source + b"/"):
            raise os_error(errno.EINVAL, target)
        self.get(_parent(target))
        replaced = self.find(target)
        if replaced is not None:
            self._check_replaceable(moved, replaced, target)
        grown = self._delete(replaced) if replaced is not None else 0
        self._connection.execute("UPDATE file SET parent = ?, name = ? WHERE id = ?", (*_split(target), moved.id))
        if moved.is_directory:
            self._move_descendants(source, target)
        return grown

    def _check_replaceable(self, moved: Entry, replaced: Entry, target: bytes) -> None:
        if replaced.is_directory and not moved.is_directory:
            raise os_error(errno.EISDIR, target)
        if moved.is_directory and not replaced.is_directory:
            raise os_error(errno.ENOTDIR, target)
        if replaced.is_directory and self.children(target):
            raise os_error(errno.ENOTEMPTY, target)

    def _move_descendants(self, source: bytes, target: bytes) -> None:
        parents = self._connection.execute(
            f"SELECT DISTINCT parent FROM file WHERE {_BELOW}", self._below(source)
        ).fetchall()
        for (parent,) in parents:
            self._connection.execute(
                "UPDATE file SET parent = ? WHERE session_id = ? AND parent = ?",
                (target + parent[len(source) :], self._session_id, parent),
            )

    def _below(self, path: bytes) -> tuple[int, bytes, bytes, bytes]:
        return self._session_id, path, path + b"/", path + b"0"

    # Rows

    def _file(self, path: bytes) -> Entry:
        """The file, made with its parents if absent."""
        if (entry := self.find(path)) is None:
            self._make_parents(path)
            return self._insert(path, is_directory=False)
        if entry.is_directory:
            raise os_error(errno.EISDIR, path)
        return entry

    def _make_parents(self, path: bytes) -> None:
        missing = []
        above = _parent(path)
        while self._look(above) is None:
            missing.append(above)
            above = _parent(above)
        for directory in reversed(missing):
            self._insert(directory, is_directory=True)

    def _insert(self, path: bytes, *, is_directory: bool) -> Entry:
        added = self._connection.execute(
            "INSERT INTO file (session_id, parent, name, is_directory, created_at, modified_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (self._session_id, *_split(path), is_directory, self._now, self._now),
        )
        assert added.lastrowid is not None
        return Entry(added.lastrowid, is_directory, 0, 0, self._now, self._now)

    def _delete(self, entry: Entry) -> int:
        self._connection.execute("DELETE FROM file WHERE id = ?", (entry.id,))
        return -entry.size

    def _update(self, file_id: int, size: int, fresh: int) -> None:
        self._connection.execute(
            "UPDATE file SET size = ?, fresh = ?, modified_at = ? WHERE id = ?", (size, fresh, self._now, file_id)
        )

    def _add_chunk(self, file_id: int, content: bytes) -> None:
        self._connection.execute("INSERT INTO file_chunk (file_id, content) VALUES (?, ?)", (file_id, content))

    def _compact(self, file_id: int, fresh: int) -> None:
        """Merge the newest chunks into one, as many as fit into `COMPACTED_BYTES`.

        Part of the append that makes it due, hence fenced like it, and unseen by readers: the content is the same.
        A file keeps at most about `compact_after` chunks for each `COMPACTED_BYTES` of its size.
        """
        newest = self._connection.execute(
            "SELECT id, length(content) FROM file_chunk WHERE file_id = ? ORDER BY id DESC LIMIT ?",
            (file_id, fresh + 1),
        ).fetchall()
        first, total, merged = 0, 0, 0
        for chunk_id, size in newest:
            if total + size > COMPACTED_BYTES:
                break
            first, total, merged = chunk_id, total + size, merged + 1
        if merged < 2:
            return
        parts = self._connection.execute(
            "SELECT content FROM file_chunk WHERE file_id = ? AND id >= ? ORDER BY id", (file_id, first)
        ).fetchall()
        self._connection.execute("DELETE FROM file_chunk WHERE file_id = ? AND id > ?", (file_id, first))
        self._connection.execute(
            "UPDATE file_chunk SET content = ? WHERE id = ?", (b"".join(part for (part,) in parts), first)
        )


def _split(path: bytes) -> tuple[bytes, bytes]:
    parent, _, name = path.rpartition(b"/")
    return parent, name


def _parent(path: bytes) -> bytes:
    return _split(path)[0]
