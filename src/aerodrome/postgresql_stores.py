"""The stores that lie in PostgreSQL: opened for a node, and brought up to date by `aerodrome migrate`.

Part of the composition root, apart from `app` because the driver is an extra (`aerodrome[postgresql]`): whoever has
no such store does not need it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aerodrome._util.clock import Clock
from aerodrome._util.migrations import PostgresSchema, Status
from aerodrome._util.postgres import Postgres
from aerodrome.config.settings import Settings
from aerodrome.coordination.backends.postgresql import PostgresCoordination
from aerodrome.coordination.backends.postgresql_directory import PostgresDirectory
from aerodrome.identity.backends.postgresql import PostgresKeyStore
from aerodrome.runtime.attached.backends.postgresql import PostgresAttachStore
from aerodrome.sessions.backends.postgresql import PostgresLedger
from aerodrome.statestore.backends.postgresql import PostgresFileStore

#: Seconds a migration may take, statement by statement, and wait for the locks of running nodes.
_MIGRATION, _MIGRATION_LOCK = 3600.0, 10.0


@dataclass(frozen=True, slots=True)
class PostgresStores:
    files: PostgresFileStore
    ledger: PostgresLedger
    keys: PostgresKeyStore
    directory: PostgresDirectory
    attached: PostgresAttachStore


@asynccontextmanager
async def open_state(settings: Settings, clock: Clock) -> AsyncIterator[PostgresStores]:
    """What must last, in the database that `state.url` or `state.tables` names.

    Raises:
        StoreUnavailable: It cannot be used.
        ConfigError: Its tables do not suit this release.
    """
    state = settings.state
    database = Postgres(
        state.tables_url, schema=state.database_schema, max_connections=state.connections, deadline=state.patience
    )
    async with database:
        files = PostgresFileStore(
            database, clock=clock, max_file_bytes=state.max_file, max_session_bytes=state.max_session
        )
        stores = PostgresStores(
            files,
            PostgresLedger(database),
            PostgresKeyStore(database),
            PostgresDirectory(database),
            PostgresAttachStore(database),
        )
        for store in (stores.files, stores.ledger, stores.keys, stores.directory, stores.attached):
            await store.open()
        yield stores


@asynccontextmanager
async def open_coordination(settings: Settings) -> AsyncIterator[PostgresCoordination]:
    """What is about the living, in the database that `coordination.url` names; with connections of its own, because a
    heartbeat must not wait for files to be written.

    Raises:
        StoreUnavailable: It cannot be used.
        ConfigError: Its tables do not suit this release.
    """
    coordination = settings.coordination

    def connections(most: int) -> Postgres:
        return Postgres(
            coordination.url,
            schema=coordination.database_schema,
            max_connections=most,
            deadline=coordination.patience,
            statement_timeout=max(0.1, coordination.ttl / 6),
            lock_timeout=max(0.1, coordination.ttl / 6),
            # Before a heartbeat is given up (a quarter of the time to live): the driver does not let go of a statement
            # that is cancelled until the server has confirmed that, and one that is not there never does.
            hang=max(0.15, coordination.ttl / 5),
        )

    async with connections(4) as database, connections(1) as beats:
        store = PostgresCoordination(database, beats=beats, beat_deadline=coordination.ttl / 2)
        await store.open()
        try:
            yield store
        finally:
            await store.aclose()


def state_schemas() -> list[PostgresSchema]:
    return [
        PostgresFileStore.schema(),
        PostgresLedger.schema(),
        PostgresKeyStore.schema(),
        PostgresDirectory.schema(),
        PostgresAttachStore.schema(),
    ]


@dataclass(frozen=True, slots=True)
class Migrated:
    #: Schema -> the files that were applied now.
    applied: dict[str, list[str]]
    #: How all stand to this release afterwards.
    statuses: list[Status]


async def migrate(settings: Settings, *, check: bool = False, post: bool = False) -> Migrated:
    """Bring the tables of `state.url` and `coordination.url` up to date, as far as they are in PostgreSQL.

    Args:
        check: Only look.
        post: See `_util.migrations`.
    """
    done = Migrated({}, [])
    state, coordination = settings.state, settings.coordination
    for url, store, schemas in (
        (state.tables_url, state, state_schemas()),
        (coordination.url, coordination, [PostgresCoordination.schema()]),
    ):
        if not url.scheme.startswith("postgres"):
            continue
        database = Postgres(
            url,
            schema=store.database_schema,
            max_connections=1,
            statement_timeout=_MIGRATION,
            lock_timeout=_MIGRATION_LOCK,
        )
        async with database:
            for schema in schemas:
                if not check:
                    done.applied[schema.name] = await schema.migrate(database, post=post)
                done.statuses.append(await schema.status(database))
    return done


async def durability(settings: Settings) -> list[str]:
    """What the server is set to that lets acknowledged writes be lost, as `name = value`."""
    async with Postgres(settings.state.tables_url, max_connections=1) as database:
        found = await database.execute(
            "SELECT name || ' = ' || setting FROM pg_settings"
            " WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes') AND setting = 'off' ORDER BY name"
        )
        return [text for (text,) in found.rows]
