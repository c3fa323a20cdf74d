"""Versioned tables: each adapter brings its own migrations, and several share one database file.

The migrations of an adapter are the files `sqlite_001_*.sql`, `sqlite_002_*.sql`, ... beside it. The version
it has reached is a row of the table `aerodrome_schema`, one row an adapter, rather than `PRAGMA user_version`,
of which a file has only one.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from importlib import resources

from aerodrome.errors import ConfigError


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
        row = connection.execute("SELECT version FROM aerodrome_schema WHERE name = ?", (self.name,)).fetchone()
        version = row[0] if row else 0
        if version > len(self.migrations):
            raise ConfigError(
                f"the stored tables {self.name!r} have version {version}, and this Aerodrome knows only"
                f" {len(self.migrations)}: run a release at least as new as the one that wrote them"
            )
        for script in self.migrations[version:]:
            for statement in statements(script):
                connection.execute(statement)
        if version < len(self.migrations):
            connection.execute(
                "INSERT INTO aerodrome_schema (name, version) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET version = excluded.version",
                (self.name, len(self.migrations)),
            )


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
