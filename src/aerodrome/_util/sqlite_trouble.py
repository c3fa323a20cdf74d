"""What SQLite's errors mean: in plain words, and how to mend it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import structlog

from aerodrome.errors import StoreUnavailable

log = structlog.get_logger(__name__)

#: Result code -> what is wrong and how to mend it, and after how many seconds to try again if that may help.
#: The file's name goes first; its directory stays out, because callers of the API see these words.
_UNAVAILABLE: dict[int, tuple[str, float | None]] = {
    sqlite3.SQLITE_BUSY: ("is locked by another process", 1.0),
    sqlite3.SQLITE_LOCKED: ("is locked by another process", 1.0),
    sqlite3.SQLITE_PROTOCOL: ("is locked by another process", 1.0),
    sqlite3.SQLITE_FULL: ("cannot grow: the disk or its quota is full; free some space", None),
    sqlite3.SQLITE_IOERR: ("cannot be read or written: the disk reports an error or is full", 5.0),
    sqlite3.SQLITE_READONLY: ("is read-only; check its owner, its mode and how the disk is mounted", None),
    sqlite3.SQLITE_PERM: ("may not be used; check its owner and mode", None),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened; check that its directory exists, and that this user may write to both",
        None,
    ),
    sqlite3.SQLITE_CORRUPT: ("is damaged; stop all nodes and restore it from a backup", None),
    sqlite3.SQLITE_NOTADB: ("is not a SQLite database; move it away or configure another path", None),
}


class Health:
    """Translates SQLite's errors, and logs each spell of trouble once instead of once an operation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._trouble: int | None = None

    def translate(self, error: BaseException) -> BaseException:
        """The error as callers shall see it. Mistakes in SQL and broken constraints stay what they are."""
        code = primary_code(error)
        if isinstance(error, StopIteration):  # which no future can carry
            return RuntimeError("a database operation raised StopIteration")
        if code not in _UNAVAILABLE:
            return error
        what, retry_after = _UNAVAILABLE[code]
        if code != self._trouble:
            self._trouble = code
            log.error("sqlite.unavailable", path=str(self._path), error=str(error))
        translated = StoreUnavailable(f"{self._path.name} {what}", retry_after=retry_after)
        translated.__cause__ = error
        return translated

    def well(self) -> None:
        if self._trouble is not None:
            self._trouble = None
            log.info("sqlite.recovered", path=str(self._path))


def primary_code(error: BaseException) -> int | None:
    """SQLite's primary result code (``sqlite3.SQLITE_BUSY``, ...); ``None`` for any other error."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None
