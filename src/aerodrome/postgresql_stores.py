"""The stores that lie in PostgreSQL: opened for a node, and brought up to date by `aerodrome migrate`.

Part of the composition root, apart from `app` because the driver is an extra (`aerodrome[postgresql]`): whoever has
no such store does not need it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aerodrome._util.clock import Clock
from aerodrome._util.migrations import PostgresSchema, Status
from aerodrome._util.postgres import Postgres, Transaction
from aerodrome._util.store_names import said_of
from aerodrome.config.settings import Settings
from aerodrome.config.store_settings import CoordinationSettings, StateSettings
from aerodrome.config.types import StoreUrl
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
        state.tables_url,
        current=state.tables_url.current,
        schema=state.database_schema,
        max_connections=state.connections,
        deadline=state.patience,
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
            current=coordination.url.current,
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
    for setting, url, store, schemas in (
        (state.tables_setting, state.tables_url, state, state_schemas()),
        ("coordination.url", coordination.url, coordination, [PostgresCoordination.schema()]),
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
        with said_of(f"{setting} = {url.masked}"):
            async with database:
                for schema in schemas:
                    if not check:
                        done.applied[schema.name] = await schema.migrate(database, post=post)
                    done.statuses.append(await schema.status(database))
    return done


#: Of which no commit waits for any. Every role may see that there are some, and some may see no more; base backups and
#: subscribers are not meant, as far as can be seen.
_ASYNCHRONOUS_STANDBYS = """
    SELECT count(*) FROM pg_stat_replication AS r
    WHERE r.state IS DISTINCT FROM 'backup'
      AND NOT EXISTS (SELECT FROM pg_replication_slots AS s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
      AND (current_setting('synchronous_standby_names') = ''
           OR current_setting('synchronous_commit') IN ('local', 'off'))
"""


async def durability(settings: Settings) -> list[str]:
    """What lets the server lose acknowledged writes, each with when it does."""
    async with Postgres(settings.state.tables_url, max_connections=1) as database:
        found = await database.execute(
            "SELECT name || ' = ' || setting FROM pg_settings"
            " WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes') AND setting = 'off' ORDER BY name"
        )
        weak = [text for (text,) in found.rows]
        said = [f"{' and '.join(weak)}: a crash of the server loses what was acknowledged"] if weak else []
        ((standbys,),) = (await database.execute(_ASYNCHRONOUS_STANDBYS)).rows
        if standbys:
            said.append(
                f"commits that wait for none of its standby servers ({standbys}): a fail-over to one loses what was"
                " acknowledged last (synchronous_standby_names)"
            )
        return said


def _address(store: StateSettings | CoordinationSettings) -> StoreUrl:
    return store.tables_url if isinstance(store, StateSettings) else store.url


async def facts(
    store: StateSettings | CoordinationSettings, schemas: Sequence[PostgresSchema]
) -> tuple[dict[str, str], float]:
    """What the server is set to, what is wrong with the tables, and by how many seconds its clock is ahead of ours.

    Raises:
        StoreUnavailable: It cannot be asked.
    """
    async with Postgres(
        _address(store), current=_address(store).current, schema=store.database_schema, max_connections=1
    ) as database:
        found = await database.execute(
            "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes',"
            " 'server_version_num', 'max_connections')"
            " UNION ALL SELECT 'in_recovery', pg_is_in_recovery()::text"
            " UNION ALL SELECT 'connections', count(*)::text FROM pg_stat_activity"
        )
        known: dict[str, str] = dict(found.rows)
        if isinstance(store, StateSettings):  # nothing of the living is missed
            ((standbys,),) = (await database.execute(_ASYNCHRONOUS_STANDBYS)).rows
            known["asynchronous_standbys"] = str(standbys)
        problems = [(await schema.status(database)).problem for schema in schemas]
        known["tables"] = "\n".join(problem for problem in problems if problem is not None)
        asked_at = time.time()
        clock = await database.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        return known, clock.rows[0][0] - (asked_at + time.time()) / 2


#: After a restore to an earlier moment; see `app.restore`. `%(epoch)s` is the present time in milliseconds.
_FIT = (
    "DELETE FROM session WHERE kind = 'ephemeral'",
    "DELETE FROM turn WHERE NOT EXISTS (SELECT FROM session AS s WHERE s.tenant = turn.tenant AND s.id = turn.session)",
    (
        "DELETE FROM file_session AS f WHERE NOT EXISTS ("
        "SELECT FROM session AS s WHERE s.tenant = f.tenant AND s.id = f.session)"
    ),
    "UPDATE file_session SET epoch = greatest(epoch + 1, %(epoch)s)",
    (
        "INSERT INTO file_session (tenant, session, epoch) SELECT tenant, id, %(epoch)s FROM session"
        " ON CONFLICT (tenant, session) DO NOTHING"
    ),
    "UPDATE session SET state = 'hibernated' WHERE state <> 'hibernated'",
)
_FIT_COORDINATION = (
    "UPDATE lease SET incarnation = NULL WHERE incarnation IS NOT NULL",
    "UPDATE epoch_floor SET epoch = greatest(epoch, %(epoch)s)",
    "DELETE FROM node",
    "DELETE FROM place",
    "DELETE FROM rate",
)


async def restored_in_place(settings: Settings) -> tuple[int, int]:
    """Make the databases fit that have been restored to an earlier moment. Nobody else may use them.

    Returns:
        How many sessions there are, and how many unfinished turns.

    Raises:
        StoreUnavailable: They cannot be used.
        ConfigError: Their tables do not suit this release.
    """
    epoch = {"epoch": round(time.time() * 1000)}
    state, coordination = settings.state, settings.coordination

    async def fit(transaction: Transaction) -> tuple[int, int]:
        for statement in _FIT:
            await transaction.execute(statement, epoch)
        sessions = (await transaction.execute("SELECT count(*) FROM session")).rows[0][0]
        unfinished = "SELECT count(*) FROM turn WHERE status IN ('queued', 'running')"
        return sessions, (await transaction.execute(unfinished)).rows[0][0]

    async def fit_coordination(transaction: Transaction) -> None:
        for statement in _FIT_COORDINATION:
            await transaction.execute(statement, epoch)

    def database(store: StateSettings | CoordinationSettings) -> Postgres:
        return Postgres(
            _address(store),
            schema=store.database_schema,
            max_connections=1,
            statement_timeout=_MIGRATION,
            lock_timeout=_MIGRATION_LOCK,
        )

    if coordination.url.scheme.startswith("postgres"):
        with said_of(f"coordination.url = {coordination.url.masked}"):
            async with database(coordination) as opened:
                await PostgresCoordination.schema().ensure(opened)
                await opened.write(fit_coordination)
    with said_of(f"{state.tables_setting} = {state.tables_url.masked}"):
        async with database(state) as opened:
            for schema in state_schemas():
                await schema.ensure(opened)
            return await opened.write(fit)
