"""Copies of SQLite databases that are in use, each as of one moment, and whether a database is in use at all."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from aerodrome._util.sqlite_trouble import primary_code

#: Pages that are copied in one go: 4 MiB, between which others get the processor, and progress is told.
_PAGES = 1024

#: Called with the bytes that have been copied and those there are.
Progress = Callable[[int, int], None]


def copy_databases(pairs: Sequence[tuple[Path, Path]], progress: Progress) -> None:
    """Copy each source to its target, a new file of mode 0600.

    All are pinned before the first is copied, one after the other: each copy is as of the moment of its pin, however
    long the copying takes, and what is committed in the first before the second is pinned is not in the copy of the
    first. Readers and writers are not held up; the log of a source grows for as long as it is read.

    Raises:
        sqlite3.Error, OSError: It cannot be read, or not be written.
    """
    with ExitStack() as stack:
        sources = [stack.enter_context(_pinned(source)) for source, _ in pairs]
        sizes = [_bytes(source) for source in sources]
        done = 0
        for source, size, (_, target) in zip(sources, sizes, pairs, strict=True):
            _copy(source, target, lambda copied, before=done: progress(before + copied, sum(sizes)))  # type: ignore[misc]
            done += size


def check(path: Path) -> str | None:
    """What SQLite finds wrong with the structure of a database that nobody uses; ``None``: nothing."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        return str(error)
    return None if found == "ok" else str(found)


def in_use(path: Path) -> bool:
    """Whether a process has the database open, were it a process that stands still."""
    if not path.exists():
        return False
    with closing(sqlite3.connect(path, timeout=0.5, isolation_level=None)) as connection:
        try:
            # In write-ahead mode every open connection holds a share of the file, which this does not get along with.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            code = primary_code(error)
            # Nobody works with what is damaged, and to restore it is what backups are for.
            if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            return code == sqlite3.SQLITE_BUSY
    return False


@contextmanager
def _pinned(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose reads are all of this moment."""
    with closing(sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("BEGIN")
        # The moment is that of the first read.
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        yield connection
        connection.execute("ROLLBACK")


def _bytes(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int(pages * size)


def _copy(source: sqlite3.Connection, target: Path, progress: Callable[[int], None]) -> None:
    os.mknod(target, stat.S_IFREG | 0o600)
    (page,) = source.execute("PRAGMA page_size").fetchone()
    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        source.backup(copy, pages=_PAGES, progress=lambda _, left, all_: progress((all_ - left) * page), sleep=0.0)
        # One file by itself, without a log beside it.
        copy.execute("PRAGMA journal_mode=DELETE").fetchone()
    sync(target)


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, survive a power failure from here on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some file systems do not do this for a directory, and say so.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
