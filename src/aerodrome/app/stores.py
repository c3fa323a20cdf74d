"""The stores of a configuration, put together. Enough for commands that work beside a running server."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, cast

from aerodrome._util.clock import Clock, SystemClock
from aerodrome._util.patience import Patience, patient
from aerodrome._util.redis_url import RedisUrl
from aerodrome._util.sqlite import Database
from aerodrome._util.sqlite_threads import Synchronous
from aerodrome._util.store_names import said_of
from aerodrome.config.settings import Settings
from aerodrome.config.types import StoreUrl
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.backends.sqlite import SqliteCoordination
from aerodrome.coordination.backends.sqlite_directory import SqliteDirectory
from aerodrome.coordination.ports import ClusterEvent, Coordination, Directory
from aerodrome.errors import ConfigError
from aerodrome.identity.backends.sqlite import SqliteKeyStore
from aerodrome.identity.keys import REVOKED, KeyService
from aerodrome.identity.ports import KeyStore
from aerodrome.observability.calls import observed
from aerodrome.runtime.attached.backends.sqlite import SqliteAttachStore
from aerodrome.runtime.attached.ports import AttachStore
from aerodrome.sessions.backends.sqlite import SqliteLedger
from aerodrome.sessions.ports import Ledger
from aerodrome.statestore.backends.sqlite import SqliteFileStore
from aerodrome.statestore.backends.volume import VolumeFileStore
from aerodrome.statestore.ports import SessionFileStore, SharedVolume
from aerodrome.telemetry import SILENT, Telemetry

#: Made by a restore in `server.data_dir`, and removed at its end: until then the databases are not what they should be.
PARTIAL = "restore.partial"


@dataclass(frozen=True, slots=True)
class Stores:
    keys: KeyService
    coordination: Coordination
    directory: Directory
    files: SessionFileStore
    ledger: Ledger
    #: Servers that were attached at run time, and whose they all are.
    attached: AttachStore
    #: The files are on a volume that Copilot CLI servers share.
    volume: SharedVolume | None = None


@asynccontextmanager
async def open_stores(settings: Settings, telemetry: Telemetry = SILENT) -> AsyncIterator[Stores]:
    """The stores of this configuration, with their tables up to date.

    What must last lies where `state.url` says, what is about the living where `coordination.url` says. With SQLite
    there are two files, so that a write of one turn's files and the bookkeeping of another's do not wait for each
    other.

    Raises:
        StoreUnavailable: A store cannot be opened.
        ConfigError: A store was written by a newer version.
    """
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        files = SqliteFiles(settings, stack)
        with said_of(_where(settings.state.tables_setting, settings.state.tables_url, settings)):
            state = await _open_state(settings, clock, files, stack)
        coordination = observed(await _open_coordination(settings, clock, files, stack), "coordination", telemetry)

        async def announce(key_id: str) -> None:
            await coordination.publish(ClusterEvent(REVOKED, key_id))

        # A caller whose key is not in the cache needs the store, too.
        observed_keys = observed(state.keys, "keys", telemetry)
        patient_keys = patient(observed_keys, Patience(settings.state.patience, clock=clock), ("get", "list"))
        keys = KeyService(patient_keys, clock=clock, cache_ttl=settings.auth.key_cache, announce=announce)
        volume = await _open_volume(settings, state, stack)
        yield Stores(
            keys,
            coordination,
            observed(state.directory, "directory", telemetry),
            observed(volume or state.files, "files", telemetry),
            observed(state.ledger, "ledger", telemetry),
            state.attached,
            volume,
        )


async def _open_volume(settings: Settings, state: _State, stack: AsyncExitStack) -> VolumeFileStore | None:
    if (root := settings.state.volume) is None:
        return None
    limits = settings.state
    volume = VolumeFileStore(root, state.files, max_file_bytes=limits.max_file, max_session_bytes=limits.max_session)
    stack.push_async_callback(volume.aclose)
    await volume.open()
    return volume


def _where(setting: str, url: StoreUrl, settings: Settings) -> str:
    return f"server.data_dir = {settings.server.data_dir}" if url == "sqlite" else f"{setting} = {url.masked}"


@asynccontextmanager
async def coordination_of(settings: Settings) -> AsyncIterator[Coordination]:
    """The coordination store alone. Raises as `open_stores`."""
    async with AsyncExitStack() as stack:
        yield await _open_coordination(settings, SystemClock(), SqliteFiles(settings, stack), stack)


class SqliteFiles:
    """The databases in `server.data_dir`, each opened when first asked for and closed with the stack."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._directory = settings.server.data_dir
        self._synchronous: Synchronous = "FULL" if settings.state.synchronous == "full" else "NORMAL"
        self._stack = stack
        self._open: dict[str, Database] = {}

    async def get(self, name: str) -> Database:
        if name not in self._open:
            if (self._directory / PARTIAL).exists():
                raise ConfigError(f"a restore into {self._directory} was cut short: run `aerodrome restore` again")
            database = Database(self._directory / name, synchronous=self._synchronous)
            self._open[name] = await self._stack.enter_async_context(database)
        return self._open[name]


class _State(Protocol):
    """What must last."""

    @property
    def files(self) -> SessionFileStore: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def keys(self) -> KeyStore: ...
    @property
    def directory(self) -> Directory: ...
    @property
    def attached(self) -> AttachStore: ...


@dataclass(frozen=True, slots=True)
class _SqliteState:
    files: SessionFileStore
    ledger: Ledger
    keys: KeyStore
    directory: Directory
    attached: AttachStore


async def _open_state(settings: Settings, clock: Clock, databases: SqliteFiles, stack: AsyncExitStack) -> _State:
    state = settings.state
    if state.tables_url != "sqlite":
        opening = postgresql_stores().open_state(settings, clock)
        return cast("_State", await stack.enter_async_context(opening))
    database = await databases.get("state.sqlite3")
    files = SqliteFileStore(database, clock=clock, max_file_bytes=state.max_file, max_session_bytes=state.max_session)
    opened = _SqliteState(
        files,
        SqliteLedger(database),
        SqliteKeyStore(database),
        # With the leases, because a node changes both for each turn while files are being written.
        SqliteDirectory(await databases.get("coordination.sqlite3")),
        SqliteAttachStore(database),
    )
    for store in (opened.files, opened.ledger, opened.keys, opened.directory, opened.attached):
        await store.open()
        stack.push_async_callback(store.aclose)
    return opened


def postgresql_stores() -> ModuleType:
    """The module `postgresql_stores`, whose driver is an extra.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module("aerodrome.postgresql_stores")
    except ImportError as error:
        raise ConfigError(f"PostgreSQL needs its driver ({error}): install 'aerodrome[postgresql]'") from None


async def _open_coordination(
    settings: Settings, clock: Clock, databases: SqliteFiles, stack: AsyncExitStack
) -> Coordination:
    with said_of(_where("coordination.url", settings.coordination.url, settings)):
        return await _opened_coordination(settings, clock, databases, stack)


async def _opened_coordination(
    settings: Settings, clock: Clock, databases: SqliteFiles, stack: AsyncExitStack
) -> Coordination:
    url = settings.coordination.url
    if url.scheme in ("postgresql", "postgres"):
        opening = postgresql_stores().open_coordination(settings)
        return cast("Coordination", await stack.enter_async_context(opening))
    coordination: Coordination
    if url == "memory":
        coordination = MemoryCoordination(clock=clock)
    elif url == "sqlite":
        coordination = SqliteCoordination(await databases.get("coordination.sqlite3"), clock=clock)
    else:
        coordination = _redis_coordination(settings)
    stack.push_async_callback(coordination.aclose)
    await coordination.open()
    return coordination


class _RedisCoordination(Coordination, Protocol):
    async def about(self) -> tuple[dict[str, str], float]:
        """See `redis_facts`."""
        ...


def _redis_coordination(settings: Settings) -> _RedisCoordination:
    """Its driver is an extra. Raises `ConfigError` when it is not installed."""
    try:
        module = importlib.import_module("aerodrome.coordination.backends.redis")
    except ImportError as error:
        raise ConfigError(f"Redis needs its driver ({error}): pip install 'aerodrome[redis]'") from None
    coordination = settings.coordination
    return cast(
        "_RedisCoordination",
        module.RedisCoordination(
            RedisUrl.parse(coordination.url),
            current=lambda: RedisUrl.parse(coordination.url.current()),
            prefix=coordination.key_prefix,
            # A heartbeat without an answer must leave time for the next.
            timeout=coordination.ttl / 2,
            patience=coordination.patience,
        ),
    )


async def redis_facts(settings: Settings) -> tuple[dict[str, str], float]:
    """What the server of `coordination.url` says of itself, and by how many seconds its clock is ahead of ours.

    Raises:
        StoreUnavailable: It cannot be asked.
    """
    coordination = _redis_coordination(settings)
    try:
        return await coordination.about()
    finally:
        await coordination.aclose()
