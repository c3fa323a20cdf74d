"""Versioned tables: each adapter brings its own migrations, and several share one database file.

The migrations of an adapter are the files `sqlite_001_*.sql`, `sqlite_002_*.sql`, ... beside it. The version
it has reached is a row of the table `aerodrome_schema`, one row an adapter, rather than `PRAGMA user_version`,
of which a file has only one.

A migration may say in its first lines ``-- oldest compatible: N``: a program that knows version N works with the
tables as they are after it, because it only added. Then a release that is older than the tables may start, and an
upgrade can be taken back. Without such a line only a program works that knows the migration.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from importlib import resources

from aerodrome.errors import ConfigError

_OLDEST = re.compile(r"^-- oldest compatible: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one adapter: `migrations[n]` is the script that leads from version n to version n + 1."""

    name: str
    migrations: tuple[str, ...]

    @classmethod
    def load(cls, name: str, package: str) -> Schema:
        """Read the scripts that lie in `package`, such as ``"aerodrome.statestore.backends"``."""
        files = sorted(
            (entry for entry in resources.files(package).iterdir() if _is_migration(entry.name)),
            key=lambda entry: entry.name,
        )
        for number, entry in enumerate(files, start=1):
            if not entry.name.startswith(f"sqlite_{number:03d}_"):
                raise ValueError(f"{package}: expected migration {number:03d} in place of {entry.name}")
        return cls(name, tuple(entry.read_text(encoding="utf-8") for entry in files))

    def migrate(self, connection: sqlite3.Connection) -> None:
        """Bring the tables to this version. An operation for `Database.write`, hence one transaction.

        Raises:
            ConfigError: The file was written by a newer version of the program.
        """
        connection.execute(
            "CREATE TABLE IF NOT EXISTS aerodrome_schema (name TEXT PRIMARY KEY, version INTEGER NOT NULL)"
        )
        if "oldest_compatible" not in (
            column[1] for column in connection.execute("PRAGMA table_info(aerodrome_schema)")
        ):
            # A file of a release that had not thought of it.
            connection.execute("ALTER TABLE aerodrome_schema ADD COLUMN oldest_compatible INTEGER")
        row = connection.execute(
            "SELECT version, oldest_compatible FROM aerodrome_schema WHERE name = ?", (self.name,)
        ).fetchone()
        version, oldest = row or (0, None)
        if version > len(self.migrations):
            if oldest is not None and oldest <= len(self.migrations):
                return
            raise ConfigError(
                f"the stored tables {self.name!r} have version {version}, and this Aerodrome knows only"
                f" {len(self.migrations)}: run a release at least as new as the one that wrote them"
            )
        for script in self.migrations[version:]:
            for statement in statements(script):
                connection.execute(statement)
        if version < len(self.migrations):
            connection.execute(
                "INSERT INTO aerodrome_schema (name, version, oldest_compatible) VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET version = excluded.version,"
                " oldest_compatible = excluded.oldest_compatible",
                (self.name, len(self.migrations), self.oldest_compatible),
            )

    @property
    def oldest_compatible(self) -> int:
        """The oldest version a program may know and still work with these tables."""
        oldest = 1
        for version, script in enumerate(self.migrations, start=1):
            found = _OLDEST.search(script)
            oldest = max(oldest, int(found[1]) if found else version)
        return oldest


def statements(script: str) -> list[str]:
    """The script's statements one by one: `executescript` would commit the transaction it is called in."""
    found: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    if any(line.strip() and not line.strip().startswith("--") for line in pending.splitlines()):
        raise ValueError(f"unfinished statement at the end of a migration: {pending.strip()[:80]!r}")
    return found


def _is_migration(name: str) -> bool:
    return name.startswith("sqlite_") and name.endswith(".sql")
