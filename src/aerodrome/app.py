"""The composition root: the only place that names adapters and puts the parts together.

`open_stores` is enough for commands that work beside a running server; `Node` is a whole server.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, Self, cast

import structlog

from aerodrome._util.clock import Clock, SystemClock
from aerodrome._util.patience import Patience, patient
from aerodrome._util.redis_url import RedisUrl
from aerodrome._util.sqlite import Database, Synchronous
from aerodrome._util.tasks import TaskOwner
from aerodrome._util.xdg import runtime_packages
from aerodrome.config.settings import ProviderSettings, Settings, reveal
from aerodrome.config.types import Address
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.backends.sqlite import SqliteCoordination
from aerodrome.coordination.backends.sqlite_directory import SqliteDirectory
from aerodrome.coordination.heartbeat import Heartbeat
from aerodrome.coordination.ports import ClusterEvent, Coordination, Directory
from aerodrome.errors import AerodromeError, ConfigError, Draining
from aerodrome.gateway.limits import GatewayLimits
from aerodrome.gateway.server import Gateway, GatewayOptions
from aerodrome.http.api import create_app
from aerodrome.http.limits import HttpLimits
from aerodrome.http.server import HttpServer
from aerodrome.identity.backends.sqlite import SqliteKeyStore
from aerodrome.identity.ephemeral import Authenticator, EitherOf
from aerodrome.identity.keys import REVOKED, KeyService
from aerodrome.identity.ports import KeyStore
from aerodrome.model import RuntimeKey
from aerodrome.peers.cluster import Cluster
from aerodrome.peers.link import PeerLinks
from aerodrome.peers.sessions import ClusterSessions
from aerodrome.policy.session_params import Credentials, ToolPolicy
from aerodrome.runtime.binary import resolve
from aerodrome.runtime.homes import Homes
from aerodrome.runtime.launchers.process import ProcessLauncher
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.pool import PoolOptions, RuntimePool
from aerodrome.runtime.supervisor import RuntimeOptions
from aerodrome.sessions.admission import TurnAdmission, TurnLimits
from aerodrome.sessions.backends.sqlite import SqliteLedger
from aerodrome.sessions.context import SessionContext, SessionOptions
from aerodrome.sessions.janitor import Janitor
from aerodrome.sessions.patience import patient_directory, patient_files, patient_leases, patient_ledger
from aerodrome.sessions.ports import Ledger
from aerodrome.sessions.recovery import EARLIER
from aerodrome.sessions.service import SessionService
from aerodrome.sessions.slots import TurnSlots
from aerodrome.statestore.backends.sqlite import SqliteFileStore
from aerodrome.statestore.ports import SessionFileStore

log = structlog.get_logger(__name__)

#: Seconds that another node may take to answer.
_PEER_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Stores:
    keys: KeyService
    coordination: Coordination
    directory: Directory
    files: SessionFileStore
    ledger: Ledger


@asynccontextmanager
async def open_stores(settings: Settings) -> AsyncIterator[Stores]:
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
        state = await _open_state(settings, clock, files, stack)
        coordination = await _open_coordination(settings, clock, files, stack)

        async def announce(key_id: str) -> None:
            await coordination.publish(ClusterEvent(REVOKED, key_id))

        # A caller whose key is not in the cache needs the store, too.
        patient_keys = patient(state.keys, Patience(settings.state.patience, clock=clock), ("get", "list"))
        keys = KeyService(patient_keys, clock=clock, cache_ttl=settings.auth.key_cache, announce=announce)
        yield Stores(keys, coordination, state.directory, state.files, state.ledger)


class SqliteFiles:
    """The databases in `server.data_dir`, each opened when first asked for and closed with the stack."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._directory = settings.server.data_dir
        self._synchronous: Synchronous = "FULL" if settings.state.synchronous == "full" else "NORMAL"
        self._stack = stack
        self._open: dict[str, Database] = {}

    async def get(self, name: str) -> Database:
        if name not in self._open:
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


@dataclass(frozen=True, slots=True)
class _SqliteState:
    files: SessionFileStore
    ledger: Ledger
    keys: KeyStore
    directory: Directory


async def _open_state(settings: Settings, clock: Clock, databases: SqliteFiles, stack: AsyncExitStack) -> _State:
    state = settings.state
    if state.url != "sqlite":
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
    )
    for store in (opened.files, opened.ledger, opened.keys, opened.directory):
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


def _redis_coordination(settings: Settings) -> Coordination:
    """Its driver is an extra. Raises `ConfigError` when it is not installed."""
    try:
        module = importlib.import_module("aerodrome.coordination.backends.redis")
    except ImportError as error:
        raise ConfigError(f"Redis needs its driver ({error}): pip install 'aerodrome[redis]'") from None
    coordination = settings.coordination
    return cast(
        "Coordination",
        module.RedisCoordination(
            RedisUrl.parse(coordination.url),
            prefix=coordination.key_prefix,
            # A heartbeat without an answer must leave time for the next.
            timeout=coordination.ttl / 2,
            patience=coordination.patience,
        ),
    )


class Node:
    """One aerodrome process: stores, runtimes, sessions and front doors. Use as an asynchronous context manager.

    `async with Node(settings) as node` serves when the block is entered; leaving it drains.

    Args:
        http: Whether the HTTP API is served.
        authenticator: Who else knows callers; asked before the stored keys.
    """

    def __init__(self, settings: Settings, *, http: bool = True, authenticator: Authenticator | None = None) -> None:
        self.settings = settings
        self.stores: Stores
        self.pool: RuntimePool
        self.sessions: SessionService
        self.janitor: Janitor
        #: Where the HTTP API listens, if it does.
        self.http_address: tuple[str, int]
        #: Where the native gateway listens.
        self.gateway_address: tuple[str, int]
        self.gateway: Gateway
        #: The other nodes on the same stores.
        self.cluster: Cluster
        self._links: PeerLinks
        self._http = http
        self._authenticator = authenticator
        self._heartbeat: Heartbeat
        self._stack = AsyncExitStack()
        self._tasks = TaskOwner("node")
        self._clock = SystemClock()
        self._started_at = self._clock.time()
        self._draining: asyncio.Task[None] | None = None
        #: Set when an operator has asked this node to drain; it does, and its process may end.
        self.asked_to_drain = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        """Each part is pushed for closing as soon as it runs; they close in reverse order."""
        settings = self.settings
        binary = await asyncio.to_thread(
            resolve,
            settings.runtime.command,
            allow_version_mismatch=settings.runtime.allow_version_mismatch,
        )
        log.info("node.starting", node=settings.server.node_name, cli=str(binary.path), cli_version=binary.version)
        self.stores = await self._stack.enter_async_context(open_stores(settings))
        homes = self._stack.enter_context(Homes(settings.server.data_dir / "runtimes"))
        self._heartbeat = Heartbeat(
            self.stores.coordination,
            settings.server.node_name,
            interval=settings.coordination.heartbeat,
            ttl=settings.coordination.ttl,
            clock=self._clock,
            load=self._load,
        )
        self.pool = RuntimePool(pool_options(settings, binary.path, homes.path), _launcher())
        self.cluster = self._cluster()
        context = self._session_context()
        self.sessions = SessionService(context)
        self.cluster.on_deleted.append(self.sessions.deleted_elsewhere)
        self.cluster.on_members.append(lambda key: self._soon(self.sessions.members_here.refresh(key), "members"))
        self.cluster.on_gone.append(lambda _: self._soon(self._recover(), "recover"))
        self.janitor = Janitor(self.sessions, context)
        self._heartbeat.on_reborn = self._reborn
        self._heartbeat.on_lapse = self._lapsed
        self._heartbeat.on_drain = self._asked_to_drain
        await self._heartbeat.start()
        self._stack.push_async_callback(self._heartbeat.aclose)
        await self.cluster.start()
        self._stack.push_async_callback(self.cluster.aclose)
        self._stack.push_async_callback(context.tasks.aclose)
        await self.sessions.recover()
        self._soon(self._recover(), "recover")
        await self.pool.start()
        self._stack.push_async_callback(self.pool.aclose)
        self._tasks.start(self.janitor.run(), "janitor")
        self._stack.push_async_callback(self._tasks.aclose)
        auth: Authenticator = self.stores.keys
        if self._authenticator is not None:
            auth = EitherOf(self._authenticator, auth)
        await self._open_gateway(auth, binary.version)
        if self._http:
            await self._open_http(auth)
        self._stack.callback(self.stores.coordination.listen(self._hear))
        # Last in, first out: drain while everything still works.
        self._stack.push_async_callback(self.drain)

    async def drain(self) -> None:
        """Take no new work, let running turns end for up to `server.drain_timeout`, hand the sessions over.

        Clients and readers are told to go as soon as nothing of theirs is under way. Whoever comes second waits for the
        first.
        """
        if self._draining is None:
            self._draining = self._tasks.start(self._drain(), "drain")
        await asyncio.shield(self._draining)

    async def _drain(self) -> None:
        log.info("node.draining", sessions=len(self.sessions.live))
        letting_go = self._tasks.start(self.gateway.let_go(), "let clients go")
        try:
            await self.sessions.drain(self.settings.server.drain_timeout)
        finally:
            letting_go.cancel()
        log.info("node.drained")

    def _asked_to_drain(self) -> None:
        self.asked_to_drain.set()
        if hasattr(self, "gateway") and self._draining is None and not self._tasks.closed:
            self._draining = self._tasks.start(self._drain(), "drain")

    def abort(self) -> None:
        """Kill every runtime, with all it has started, before the process ends without a drain."""
        if hasattr(self, "pool"):
            self.pool.abort()

    def _hear(self, event: ClusterEvent) -> None:
        if event.kind == REVOKED:
            self.stores.keys.forget(event.subject)
            if not self._tasks.closed:
                # Connections that stand were checked when they were made.
                self._tasks.start(self.gateway.recheck(event.subject), "recheck credentials")

    async def _open_gateway(self, auth: Authenticator, cli_version: str) -> None:
        self.gateway = Gateway(
            self.sessions,
            auth,
            gateway_options(self.settings, cli_version),
            self.cluster,
            peer_token=lambda: self._heartbeat.node.peer_token,
        )
        self.gateway_address = await self.gateway.start(*self.settings.server.gateway)
        self._stack.push_async_callback(self.gateway.aclose)
        await self._heartbeat.advertise(str(self.settings.server.advertise or advertised(*self.gateway_address)))

    async def _open_http(self, auth: Authenticator) -> None:
        limits = HttpLimits(max_body=self.settings.limits.max_body)
        sessions = ClusterSessions(
            self.sessions,
            self.cluster,
            self._links,
            self.stores.ledger.get,
            patience=patience(self.settings),
            reader_bytes=self.settings.limits.sse_buffer,
        )
        server = HttpServer(create_app(sessions, auth, self, limits), *self.settings.server.http)
        self.http_address = await server.start()
        self._stack.push_async_callback(server.stop, 5.0)

    def _cluster(self) -> Cluster:
        cluster = Cluster(
            self.stores.coordination,
            self.stores.coordination,
            self.stores.coordination,
            incarnation=lambda: self._heartbeat.incarnation,
            loaded=lambda key: self.sessions.is_loaded(key),
            interval=self.settings.coordination.heartbeat,
        )
        self._links = PeerLinks(
            own=lambda: self._heartbeat.incarnation, timeout=_PEER_TIMEOUT, silence=peer_silence(self.settings)
        )
        self._stack.push_async_callback(self._links.aclose)
        cluster.on_gone.append(self._links.nodes_gone)
        return cluster

    def _soon(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Do what a hint is about; what becomes of it the janitor sees to as well."""
        if self._tasks.closed:
            work.close()
        else:
            self._tasks.start(work, name, expected=AerodromeError)

    def _lapsed(self) -> None:
        self.sessions.give_up_all(
            "this node could not reach its coordination store, and its sessions may soon be others'",
            within=self._heartbeat.lapse_time,
        )

    async def _recover(self) -> None:
        """Once it is certain who has gone."""
        while (wait := self._heartbeat.unsettled) > 0:  # noqa: ASYNC110 - it may be born again meanwhile
            await asyncio.sleep(min(wait, self.settings.coordination.ttl))
        await self.sessions.recover()

    async def _reborn(self) -> None:
        self._soon(self._recover(), "recover")
        # Others may have them already; what does not unload them soon is killed all the same.
        self.sessions.give_up_all(
            "this node was held for dead, and its sessions may have moved", within=self._heartbeat.lapse_time
        )

    def _session_context(self) -> SessionContext:
        tasks = TaskOwner("sessions")
        patience = Patience(self.settings.coordination.patience, clock=self._clock)
        state_patience = Patience(self.settings.state.patience, clock=self._clock)
        return SessionContext(
            options=session_options(self.settings),
            directory=patient_directory(self.stores.directory, state_patience),
            leases=patient_leases(self.stores.coordination, patience),
            membership=self.stores.coordination,
            ledger=patient_ledger(self.stores.ledger, state_patience),
            files=patient_files(self.stores.files, state_patience),
            pool=self.pool,
            clock=self._clock,
            credentials=lambda tenant: credentials_of(self.settings.provider.of(tenant)),
            incarnation=lambda: self._heartbeat.incarnation,
            # `check`: whoever asks first notices, were it after a pause of the whole process.
            may_serve=lambda: self._heartbeat.check(),
            tasks=tasks,
            alone=lambda: self.cluster.alone,
            settled=lambda: self._heartbeat.unsettled == 0,
            announce=lambda kind, key: self.cluster.announce(kind, key),
            admission=self._admission(tasks),
            patience=patience,
            state_patience=state_patience,
        )

    def _admission(self, tasks: TaskOwner) -> TurnAdmission:
        limits, timeout = self.settings.limits, self.settings.runtime.capacity_timeout

        def later(work: Coroutine[Any, Any, Any], name: str) -> None:
            if tasks.closed:
                work.close()  # the places of a node that has left are free
            else:
                tasks.start(work, name, expected=AerodromeError)

        return TurnAdmission(
            TurnSlots(
                total=limits.max_turns,
                per_tenant=limits.max_turns_per_tenant or max(1, limits.max_turns // 5),
                timeout=timeout,
            ),
            TurnLimits(
                per_minute=limits.turns_per_minute,
                per_minute_of_tenant=limits.turns_per_minute_per_tenant,
                at_once=limits.max_turns_per_user,
                at_once_of_tenant=limits.max_turns_per_tenant,
            ),
            self.stores.coordination,
            incarnation=lambda: self._heartbeat.incarnation,
            later=later,
            timeout=timeout,
        )

    def ready(self) -> tuple[bool, str]:
        """For `/ready` (see `http.ports.Readiness`)."""
        if self.sessions.draining:
            raise Draining("this node is shutting down")
        if not self._heartbeat.may_serve:
            return False, "the coordination store cannot be reached"
        if (reason := self.pool.unavailable_reason) is not None:
            return False, f"the Copilot CLI does not start: {reason}"
        if not any(r.state in (RuntimeState.WARM, RuntimeState.CLAIMED) for r in self.pool.runtimes):
            return False, "the first runtime is being started"
        return True, "accepting work"

    def _load(self) -> dict[str, Any]:
        name = self.settings.server.node_name
        runtimes = [{**runtime.describe(), "node": name} for runtime in self.pool.runtimes]
        return {
            "runtimes": runtimes,
            "sessions": len(self.sessions.live),
            "draining": self.sessions.draining,
            "started_at": self._started_at,
            EARLIER: list(self._heartbeat.earlier),
        }


def pool_options(settings: Settings, command: Path, homes: Path) -> PoolOptions:
    runtime = settings.runtime
    return PoolOptions(
        runtime=RuntimeOptions(
            command=command,
            homes=homes,
            logs=settings.server.data_dir / "logs",
            env={**_provider_env(settings), **runtime.env},
            start_timeout=runtime.start_timeout,
            ping_interval=runtime.ping_interval,
            ping_timeout=runtime.ping_timeout,
            stop_timeout=runtime.stop_timeout,
            max_frame=settings.limits.max_frame,
            log_bytes=runtime.log_bytes,
        ),
        warm=runtime.warm,
        max_runtimes=runtime.max_runtimes,
        max_sessions=runtime.max_sessions,
        spawn_concurrency=runtime.spawn_concurrency,
        capacity_timeout=runtime.capacity_timeout,
        idle_timeout=runtime.idle_timeout,
    )


def patience(settings: Settings) -> float:
    """Seconds to look for the node that runs a session: until a dead one's leases are free, and some more."""
    return settings.coordination.ttl + 5.0


def peer_silence(settings: Settings) -> float:
    """Seconds in which a connection to another node may bring nothing: as long as its heartbeats may stay away."""
    return settings.coordination.ttl


def advertised(host: str, port: int) -> Address:
    """Where other nodes find a gateway that listens there: at this machine's own name, if it listens everywhere."""
    return Address(socket.getfqdn() if host in ("0.0.0.0", "::") else host, port)  # noqa: S104 - compared, not bound


def gateway_options(settings: Settings, cli_version: str) -> GatewayOptions:
    limits = settings.limits
    return GatewayOptions(
        cli_version=cli_version,
        isolation_of=settings.isolation.of,
        profile_of=settings.policy.of,
        credentials_of=lambda tenant: credentials_of(settings.provider.of(tenant)),
        tools=ToolPolicy(isolated=settings.policy.tools, host=settings.policy.host_tools),
        peer_silence=peer_silence(settings),
        patience=patience(settings),
        limits=GatewayLimits(
            max_clients=limits.max_clients,
            max_clients_per_user=limits.max_clients_per_user,
            max_frame=limits.max_frame,
            max_requests=limits.max_requests,
            connect_timeout=limits.client_timeout,
            write_timeout=limits.client_timeout,
            client_buffer=limits.client_buffer,
            request_bytes=limits.client_buffer,
        ),
    )


def session_options(settings: Settings) -> SessionOptions:
    sessions = settings.sessions
    return SessionOptions(
        idle_timeout=sessions.idle_timeout,
        ttl=sessions.ttl,
        on_busy=sessions.on_busy,
        cancel_on_disconnect=sessions.on_disconnect == "cancel",
        request_timeout=sessions.request_timeout,
        max_queued=sessions.max_queued,
        turn_timeout=sessions.turn_timeout,
        max_prompt=settings.limits.max_prompt,
        reader_bytes=settings.limits.sse_buffer,
        default_isolation=settings.isolation.default,
        isolation=dict(settings.isolation.tenants),
        tools=ToolPolicy(isolated=settings.policy.tools, host=settings.policy.host_tools),
    )


def credentials_of(provider: ProviderSettings) -> Credentials:
    """What a session of this provider is created and resumed with. The wire's names are the SDK's."""
    if provider.type == "github":
        return Credentials(github_token=reveal(provider.github_token), model=provider.model)
    wire: dict[str, Any] = {"type": provider.type, "baseUrl": provider.base_url}
    if provider.api_key is not None:
        wire["apiKey"] = reveal(provider.api_key)
    if provider.wire_api is not None:
        wire["wireApi"] = provider.wire_api
    if provider.azure_api_version is not None:
        wire["azure"] = {"apiVersion": provider.azure_api_version}
    return Credentials(provider=wire, model=provider.model)


def _provider_env(settings: Settings) -> dict[str, str]:
    """Runtimes of a host without GitHub models stay off the network but for the sessions' own providers."""
    providers = [settings.provider, *settings.provider.tenants.values()]
    if any(provider.type == "github" for provider in providers):
        return {}
    return {
        "COPILOT_OFFLINE": "true",
        # Offline mode refuses to start without a provider of its own (docs/facts.md, "Starting"). Sessions bring
        # theirs, so this one leads nowhere on purpose.
        "COPILOT_PROVIDER_BASE_URL": "http://127.0.0.1:9/v1",
        "COPILOT_MODEL": settings.provider.model or "gpt-4.1",
    }


async def try_runtime(settings: Settings) -> float:
    """Start one runtime, let it take a turn against a model of our own, stop it; returns the seconds to ready.

    Raises:
        RuntimeUnavailable: With the reason.
    """
    binary = await asyncio.to_thread(
        resolve, settings.runtime.command, allow_version_mismatch=settings.runtime.allow_version_mismatch
    )
    began = time.monotonic()
    with Homes(settings.server.data_dir / "runtimes") as homes:
        pool = RuntimePool(replace(pool_options(settings, binary.path, homes.path), warm=0), _launcher())
        await pool.start()
        try:
            await pool.reserve(RuntimeKey("aerodrome", "doctor"))
            return time.monotonic() - began
        finally:
            await pool.aclose()


def _launcher() -> ProcessLauncher:
    # One unpacked copy of the CLI for all runtimes of this user; else 235 MB each (docs/facts.md, "Starting").
    return ProcessLauncher(runtime_packages())
