"""Versioned tables in PostgreSQL, changed under a running fleet in two phases.

The migrations of a schema are the files ``postgresql_<name>_001_pre_<what>.sql``, ``..._002_post_<what>.sql``, ...
beside its adapter, in one numbering.

- **pre** only adds (a table, a nullable column, a function under a new name): nodes of the release before go on
  working while it runs and afterwards. A release needs all its `pre` migrations.
- **post** takes away what only older releases used, once their last node has gone. No release needs its own `post`
  migrations; a later one may run before or after them.

What has run is recorded in the table `aerodrome_migration` by name, version and checksum. A migration may say in its
first lines ``-- oldest compatible: N``: from then on only programs work that know at least version N. So a node
starts with tables that are newer than itself as long as they still suit it, and a fleet can be rolled back.

A schema that is not there at all is made at the start of whoever comes first: nothing can be harmed by it. One that is
behind is brought up to date by ``aerodrome migrate`` only, because when that is right is the operator's to say.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from aerodrome._util.postgres import Postgres, Transaction
from aerodrome.errors import ConfigError

Phase = Literal["pre", "post"]

#: Any number will do, as long as nobody else in the database uses it: "aero".
_LOCK = 0x6165726F
_OLDEST = re.compile(r"^-- oldest compatible: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    phase: Phase
    file: str
    script: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.script.encode()).hexdigest()

    @property
    def oldest_compatible(self) -> int:
        """The oldest version a program may know and still work with the tables as they are after this."""
        return oldest_compatible(self.script) or 0


def oldest_compatible(script: str) -> int | None:
    """What the script says of it, if anything."""
    found = _OLDEST.search(script)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Status:
    """How the stored tables of one schema stand to this program."""

    name: str
    #: The newest version that was applied; 0: there are no tables yet.
    stored: int
    #: The newest version this program knows.
    known: int
    #: Files still to be applied.
    pre: tuple[str, ...]
    post: tuple[str, ...]
    #: Why this program cannot work with the tables, and what to do about it.
    problem: str | None


@dataclass(frozen=True, slots=True)
class PostgresSchema:
    """The tables of one adapter."""

    name: str
    migrations: tuple[Migration, ...]

    @classmethod
    def load(cls, name: str, package: str) -> PostgresSchema:
        """Read the scripts that lie in `package`, such as ``"aerodrome.statestore.backends"``."""
        prefix = f"postgresql_{name}_"
        entries = {entry.name: entry for entry in resources.files(package).iterdir() if entry.name.startswith(prefix)}
        migrations = []
        for number, file in enumerate(sorted(file for file in entries if file.endswith(".sql")), start=1):
            match = re.fullmatch(rf"{prefix}(\d{{3}})_(pre|post)_\w+\.sql", file)
            if match is None or int(match[1]) != number:
                raise ValueError(f"{package}: expected migration {number:03d} in place of {file}")
            phase: Phase = "pre" if match[2] == "pre" else "post"
            migrations.append(Migration(number, phase, file, entries[file].read_text(encoding="utf-8")))
        return cls(name, tuple(migrations))

    async def ensure(self, database: Postgres) -> None:
        """Make the tables if there are none, and see that they suit this program.

        Raises:
            ConfigError: They do not; it says what to run.
            StoreUnavailable: The server cannot be asked, or does not let this role make tables.
        """

        async def ensure(transaction: Transaction) -> Status:
            await _lock(transaction, database.schema)
            applied = await self._applied(transaction)
            if not applied:
                for migration in self.migrations:
                    await self._apply(transaction, migration)
                applied = await self._applied(transaction)
            return self._status(applied)

        status = await database.read(self._look)
        if status.stored == 0:
            status = await database.write(ensure)
        if status.problem is not None:
            raise ConfigError(status.problem)

    async def status(self, database: Postgres) -> Status:
        return await database.read(self._look)

    async def migrate(self, database: Postgres, *, post: bool = False) -> list[str]:
        """Apply what is due, all or nothing; returns the files. `post`: also what old nodes could not bear.

        Raises:
            ConfigError: The stored tables do not suit this program, and no migration of it can mend that.
        """

        async def migrate(transaction: Transaction) -> list[str]:
            await _lock(transaction, database.schema)
            applied = await self._applied(transaction)
            if (problem := self._unsuitable(applied)) is not None:
                raise ConfigError(problem)
            first = not applied
            done = []
            for migration in self.migrations:
                if migration.version not in applied and (post or first or migration.phase == "pre"):
                    await self._apply(transaction, migration)
                    done.append(migration.file)
            return done

        return await database.write(migrate)

    async def _look(self, transaction: Transaction) -> Status:
        return self._status(await self._applied(transaction))

    async def _applied(self, transaction: Transaction) -> dict[int, tuple[str, int]]:
        """Version -> checksum and oldest compatible version of what has run."""
        there = await transaction.execute("SELECT to_regclass('aerodrome_migration') IS NOT NULL")
        if there.row != (True,):
            return {}
        found = await transaction.execute(
            "SELECT version, checksum, oldest_compatible FROM aerodrome_migration WHERE name = %s", (self.name,)
        )
        return {version: (checksum, oldest) for version, checksum, oldest in found.rows}

    async def _apply(self, transaction: Transaction, migration: Migration) -> None:
        await transaction.execute(migration.script)
        await transaction.execute(
            "INSERT INTO aerodrome_migration (name, version, file, checksum, oldest_compatible)"
            " VALUES (%s, %s, %s, %s, %s)",
            (self.name, migration.version, migration.file, migration.checksum, migration.oldest_compatible),
        )

    def _status(self, applied: dict[int, tuple[str, int]]) -> Status:
        pending = [migration for migration in self.migrations if migration.version not in applied]
        pre = tuple(migration.file for migration in pending if migration.phase == "pre")
        post = tuple(migration.file for migration in pending if migration.phase == "post")
        stored = max(applied, default=0)
        problem = self._unsuitable(applied)
        if problem is None and pre:
            behind = f"have version {stored}" if stored else "are missing"
            problem = (
                f"the stored tables {self.name!r} {behind}, and this Aerodrome needs version {len(self.migrations)}:"
                " run `aerodrome migrate` with this configuration; running nodes go on meanwhile"
            )
        return Status(self.name, stored, len(self.migrations), pre, post, problem)

    def _unsuitable(self, applied: dict[int, tuple[str, int]]) -> str | None:
        known = len(self.migrations)
        oldest = max((oldest for _, oldest in applied.values()), default=0)
        if oldest > known:
            return (
                f"the stored tables {self.name!r} need an Aerodrome that knows version {oldest} of them, and this one"
                f" knows {known}: run a newer release"
            )
        for migration in self.migrations:
            checksum, _ = applied.get(migration.version, (migration.checksum, 0))
            if checksum != migration.checksum:
                return (
                    f"the stored tables {self.name!r} were made by another {migration.file} than this Aerodrome's:"
                    " run the release that made them, or restore the database"
                )
        return None


async def _lock(transaction: Transaction, schema: str) -> None:
    """One at a time in this database, until the transaction ends; then see that there is somewhere to record."""
    await transaction.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_LOCK, schema))
    # Asked first: IF NOT EXISTS needs the right to create all the same, which a node's role may not have.
    there = await transaction.execute("SELECT to_regnamespace(quote_ident(%s)) IS NOT NULL", (schema,))
    if there.row != (True,):
        await transaction.execute('CREATE SCHEMA "{}"'.format(schema.replace('"', '""')))
    there = await transaction.execute("SELECT to_regclass('aerodrome_migration') IS NOT NULL")
    if there.row != (True,):
        await transaction.execute(
            "CREATE TABLE aerodrome_migration ("
            " name text NOT NULL, version integer NOT NULL, file text NOT NULL, checksum text NOT NULL,"
            " oldest_compatible integer NOT NULL, applied_at timestamptz NOT NULL DEFAULT now(),"
            " PRIMARY KEY (name, version))"
        )
