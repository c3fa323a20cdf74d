"""A whole server: `Node`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, Self, cast

import structlog

import aerodrome
from aerodrome._util.clock import SystemClock
from aerodrome._util.patience import Patience
from aerodrome._util.tasks import TaskOwner
from aerodrome.app.ceilings import residents, turn_admission
from aerodrome.app.condition import Condition
from aerodrome.app.drain import Drain
from aerodrome.app.launch import checked_launcher
from aerodrome.app.observe import Observability, open_observability, state_of
from aerodrome.app.options import (
    advertised,
    attach_entries,
    attach_tokens,
    attached_options,
    credentials_of,
    gateway_options,
    http_limits,
    patience,
    peer_silence,
    pool_options,
    session_options,
)
from aerodrome.app.sandbox import workspaces
from aerodrome.app.secret_keeper import SecretKeeper
from aerodrome.app.stores import Stores, open_stores
from aerodrome.app.workspaces import WorkspaceCare
from aerodrome.config.settings import Settings
from aerodrome.coordination.heartbeat import Heartbeat
from aerodrome.coordination.ports import ClusterEvent
from aerodrome.errors import AerodromeError, ConfigError
from aerodrome.gateway.server import Gateway
from aerodrome.http.api import create_app
from aerodrome.http.door import Door
from aerodrome.http.readers import Readers
from aerodrome.http.server import HttpServer
from aerodrome.identity.ephemeral import Authenticator, EitherOf
from aerodrome.identity.keys import REVOKED
from aerodrome.observability.loop_lag import watch_loop
from aerodrome.observability.page import MetricsPage
from aerodrome.operators.administration import Administration
from aerodrome.operators.requests import RequestDesk
from aerodrome.peers.cluster import Cluster
from aerodrome.peers.link import PeerLinks
from aerodrome.peers.sessions import ClusterSessions
from aerodrome.peers.versions import refusal
from aerodrome.runtime.attached.admin import ATTACHED, AttachAdmin
from aerodrome.runtime.attached.fleet import HeartbeatFleet
from aerodrome.runtime.attached.pool import AttachedPool
from aerodrome.runtime.attached.ports import Resolver
from aerodrome.runtime.attached.resolver import SystemResolver
from aerodrome.runtime.binary import resolve
from aerodrome.runtime.homes import Homes
from aerodrome.runtime.pool import RuntimePool
from aerodrome.runtime.sources import AttachedOrLaunched
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.janitor import Janitor
from aerodrome.sessions.patience import patient_directory, patient_files, patient_leases, patient_ledger
from aerodrome.sessions.returns import OwnLeases
from aerodrome.sessions.service import SessionService

log = structlog.get_logger(__name__)


#: Seconds that another node may take to answer.
_PEER_TIMEOUT = 30.0
#: Seconds for what is tidied up behind the end of everything else.
_FAREWELL = 2.0


class Node:
    """One aerodrome process: stores, runtimes, sessions and front doors. Use as an asynchronous context manager.

    `async with Node(settings) as node` serves when the block is entered; leaving it drains.

    Args:
        http: Whether the HTTP API is served.
        authenticator: Who else knows callers; asked before the stored keys.
        resolver: Finds the addresses of attached servers; by default the system's.
        listeners: Sockets that listen already, in place of `server.http` and `server.gateway`: by `http` and
            `gateway`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        http: bool = True,
        authenticator: Authenticator | None = None,
        resolver: Resolver | None = None,
        listeners: Mapping[str, socket.socket] | None = None,
    ) -> None:
        self.settings = settings
        #: As they were last read; of these only what `reload` says counts.
        self._reloaded = settings
        self.stores: Stores
        #: Runtimes of our own, and those of others.
        self.pool: RuntimePool
        self.attached: AttachedPool
        self._runtimes: AttachedOrLaunched
        self.sessions: SessionService
        self.janitor: Janitor
        self.secrets: SecretKeeper
        #: Where the HTTP API listens, if it does.
        self.http_address: tuple[str, int]
        #: Where the native gateway listens.
        self.gateway_address: tuple[str, int]
        #: Where the metrics have an address of their own, if they do.
        self.metrics_address: tuple[str, int]
        self.gateway: Gateway
        self.observability: Observability
        #: The other nodes on the same stores.
        self.cluster: Cluster
        self._links: PeerLinks
        #: The HTTP API, if there is one, and who reads events over it.
        self.http_server: HttpServer | None = None
        self.readers: Readers | None = None
        self._http = http
        self._listeners = dict(listeners or {})
        self._authenticator = authenticator
        self._resolver = resolver or SystemResolver()
        self._heartbeat: Heartbeat
        self._desk: RequestDesk
        self._workspaces: WorkspaceCare
        self._stack = AsyncExitStack()
        self._tasks = TaskOwner("node")
        self._clock = SystemClock()
        self._drain: Drain
        #: How the node stands.
        self.condition: Condition
        #: Set when an operator has asked this node to drain; it does, and its process may end.
        self.asked_to_drain = asyncio.Event()
        #: Called when it has drained, and begins to close what is left.
        self.on_drained: Callable[[], None] | None = None

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
        if nobodys := settings.provider.without_token():
            # No error: runtimes may have a model by `runtime.env`, and attached servers one of their own.
            log.warning("provider.no_token", sections=nobodys, mend="set github_token there, or another type")
        self.observability = open_observability(settings, lambda: state_of(self, binary.version))
        telemetry = self.observability.telemetry
        self._stack.push_async_callback(asyncio.to_thread, telemetry.tracer.shutdown)
        self.stores = await self._stack.enter_async_context(open_stores(settings, telemetry))
        homes = self._stack.enter_context(Homes(settings.server.data_dir / "runtimes"))
        self._heartbeat = Heartbeat(
            self.stores.coordination,
            settings.server.node_name,
            interval=settings.coordination.heartbeat,
            ttl=settings.coordination.ttl,
            clock=self._clock,
            load=lambda: self.condition.load(),
        )
        self._workspaces = WorkspaceCare(lambda: self.stores.directory, workspaces(settings), self._tasks)
        runtimes = await checked_launcher(settings, binary.path, homes.path, self._workspaces.released)
        self.pool = RuntimePool(pool_options(settings, binary.path, homes.path), runtimes, meter=telemetry.meter)
        self.attached = AttachedPool(
            attached_options(settings),
            self.stores.attached,
            self._resolver,
            self.stores.volume,
            attach_entries(settings),
            attach_tokens(settings),
            HeartbeatFleet(self.stores.coordination, lambda: self._heartbeat.incarnation),
        )
        self._runtimes = AttachedOrLaunched(self.attached, self.pool)
        self.attached.drains.announce = self._announce_attached
        self._desk = RequestDesk(
            self._runtimes,
            own=lambda: self._heartbeat.incarnation,
            tasks=self._tasks,
            clock=self._clock,
            on_news=self._beat,
        )
        self.cluster = self._cluster()
        context = self._session_context()
        self.sessions = SessionService(context)
        self.cluster.on_deleted.append(self.sessions.deleted_elsewhere)
        self.cluster.on_members.append(lambda key: self._soon(self.sessions.members_here.refresh(key), "members"))
        self.cluster.on_gone.append(lambda gone: telemetry.meter.nodes_gone(len(gone)))
        self.cluster.on_gone.append(lambda _: self._soon(self._recover(), "recover"))
        self.janitor = Janitor(self.sessions, context)
        self.secrets = SecretKeeper(settings, self.sessions, on_tokens=self._reload_attached)
        self._heartbeat.on_reborn = self._reborn
        self._heartbeat.on_lapse = self._lapsed
        self._drain = Drain(settings, self.sessions, self._tasks, self.asked_to_drain)
        self._heartbeat.on_drain = self._drain.ask
        self.condition = Condition(
            settings.server.node_name,
            heartbeat=self._heartbeat,
            sessions=self.sessions,
            pool=self.pool,
            attached=self.attached,
            runtimes=self._runtimes,
            desk=self._desk,
            secrets=self.secrets,
            drain=self._drain,
            clock=self._clock,
        )
        await self._refuse_odd_releases()
        await self._heartbeat.start()
        self._stack.push_async_callback(self._clear_leases)
        self._stack.push_async_callback(self._heartbeat.aclose)
        await self.cluster.start()
        self._stack.push_async_callback(self.cluster.aclose)
        self._stack.push_async_callback(context.tasks.aclose)
        await self.sessions.recover()
        self._soon(self._recover(), "recover")
        await self.pool.start()
        self._stack.push_async_callback(self.pool.aclose)
        if self.stores.volume is not None:  # without one there are no attached servers
            await self.attached.start()
        self._stack.push_async_callback(self.attached.aclose)
        self._tasks.start(self.janitor.run(), "janitor")
        self._tasks.start(self.secrets.run(), "secrets")
        self._tasks.start(self._workspaces.run(), "workspaces")
        self._stack.push_async_callback(self._tasks.aclose)
        auth: Authenticator = self.stores.keys
        if self._authenticator is not None:
            auth = EitherOf(self._authenticator, auth)
        await self._open_gateway(auth, binary.version)
        if self._http:
            await self._open_http(auth)
        await self._open_metrics()
        self._stack.callback(self.stores.coordination.listen(self._hear))
        # Last in, first out: drain while everything still works.
        self._stack.push_async_callback(self.drain)

    async def _refuse_odd_releases(self) -> None:
        """Raises ConfigError: this release and one that lives do not understand each other."""
        living = await self.stores.coordination.nodes()
        releases = {node.name: node.load["version"] for node in living if "version" in node.load}
        if (reason := refusal(aerodrome.__version__, releases)) is not None:
            raise ConfigError(reason)

    async def drain(self) -> None:
        """See `Drain.run`."""
        try:
            await self._drain.run()
        finally:
            if self.on_drained is not None:
                self.on_drained()

    async def _clear_leases(self) -> None:
        """The node has left: a lease that was taken in the moment in which that began is nobody's."""
        with suppress(AerodromeError, TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await self.stores.coordination.clear_dead()

    async def reload(self, settings: Settings) -> None:
        """Take over what may change while the node runs: the attached servers. Running turns are not disturbed.

        Raises:
            ConfigError: The stores have changed, which needs a restart.
        """
        if settings.state.volume != self.settings.state.volume:
            raise ConfigError("state.url cannot be changed while the node runs")
        self._reloaded = settings
        self.secrets.reloaded(settings)
        await self._reload_attached()

    async def _reload_attached(self) -> None:
        """With the tokens as they are now."""
        await self.attached.reload(attach_entries(self._reloaded), attach_tokens(self._reloaded))

    def abort(self) -> None:
        """Kill every runtime, with all it has started, before the process ends without a drain."""
        if hasattr(self, "pool"):
            self.pool.abort()

    def _hear(self, event: ClusterEvent) -> None:
        if event.kind == ATTACHED and self.stores.volume is not None:
            self._soon(self.attached.refresh(), "refresh attached servers")
        self._desk.hear(event)
        if event.kind == REVOKED:
            self.stores.keys.forget(event.subject)
            if not self._tasks.closed:
                # Connections that stand were checked when they were made.
                self._tasks.start(self.gateway.recheck(event.subject), "recheck credentials")
                if self.readers is not None:
                    self._tasks.start(self.readers.recheck(event.subject), "recheck readers")

    async def _open_gateway(self, auth: Authenticator, cli_version: str) -> None:
        self.gateway = Gateway(
            self.sessions,
            auth,
            gateway_options(self.settings, cli_version),
            self.cluster,
            peer_token=lambda: self._heartbeat.node.peer_token,
            telemetry=self.observability.telemetry,
        )
        self.gateway_address = await self.gateway.start(
            *self.settings.server.gateway, listener=self._listeners.get("gateway")
        )
        self._stack.push_async_callback(self.gateway.aclose)
        self._drain.opened(self.gateway)
        await self._heartbeat.advertise(str(self.settings.server.advertise or advertised(*self.gateway_address)))

    async def _open_http(self, auth: Authenticator) -> None:
        sessions = self._drain.forwarded = ClusterSessions(
            self.sessions,
            self.cluster,
            self._links,
            self.stores.ledger.get,
            patience=patience(self.settings),
            reader_bytes=self.settings.limits.sse_buffer,
            tracer=self.observability.telemetry.tracer,
        )
        exposition = self.observability.exposition if self.settings.telemetry.metrics_token is not None else None
        app = create_app(
            sessions,
            auth,
            self.condition,
            Administration(self.stores.coordination),
            http_limits(self.settings),
            self._attach_admin(),
            metrics=exposition,
            telemetry=self.observability.telemetry,
        )
        self.readers = readers = cast("Door", app.state.door).readers
        self._tasks.start(readers.recheck_for_ever(), "recheck readers")
        self.http_server = HttpServer(app, *self.settings.server.http, listener=self._listeners.get("http"))
        self.http_address = await self.http_server.start()
        self._stack.push_async_callback(self.http_server.stop, 5.0)

    async def _open_metrics(self) -> None:
        if (exposition := self.observability.exposition) is None:
            return
        self._tasks.start(watch_loop(self.observability.telemetry.meter), "watch the loop")
        if (address := self.settings.telemetry.metrics_address) is not None:
            server = HttpServer(MetricsPage(exposition), *address, setting="telemetry.metrics_address")
            self.metrics_address = await server.start()
            self._stack.push_async_callback(server.stop, 1.0)

    def _attach_admin(self) -> AttachAdmin:
        return AttachAdmin(
            self.stores.attached,
            self.stores.coordination,
            tokens=lambda: self.attached.tokens,
            on_volume=self.stores.volume is not None,
            clock=self._clock,
            resolver=self._resolver,
            entries=lambda: attach_entries(self._reloaded),
            rows=self.attached.describe,
        )

    def _cluster(self) -> Cluster:
        cluster = Cluster(
            self.stores.coordination,
            self.stores.coordination,
            self.stores.coordination,
            incarnation=lambda: self._heartbeat.incarnation,
            loaded=lambda key: self.sessions.is_loaded(key),
            interval=self.settings.coordination.heartbeat,
            patience=Patience(self.settings.coordination.patience, clock=self._clock),
        )
        self._links = PeerLinks(
            own=lambda: self._heartbeat.incarnation, timeout=_PEER_TIMEOUT, silence=peer_silence(self.settings)
        )
        self._stack.push_async_callback(self._links.aclose)
        cluster.on_gone.append(self._links.nodes_gone)
        return cluster

    def _announce_attached(self, endpoint: str) -> None:
        """Have the other nodes look at their attached servers soon."""
        self._soon(self.stores.coordination.publish(ClusterEvent(ATTACHED, endpoint)), "announce")

    def _beat(self) -> None:
        """Have others know soon what is new here."""
        self._soon(self._heartbeat.beat(), "beat")

    def _soon(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Do what a hint is about; what becomes of it the janitor sees to as well."""
        self._tasks.start_if_open(work, name, expected=AerodromeError)

    def _lapsed(self) -> None:
        self.observability.telemetry.meter.fenced_itself()
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
        self.observability.telemetry.meter.reborn()
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
            leases=OwnLeases(
                patient_leases(self.stores.coordination, patience), lambda: self._heartbeat.incarnation, tasks
            ),
            membership=self.stores.coordination,
            ledger=patient_ledger(self.stores.ledger, state_patience),
            files=patient_files(self.stores.files, state_patience),
            volume=self.stores.volume,
            pool=self._runtimes,
            clock=self._clock,
            credentials=lambda tenant: credentials_of(self.settings.provider.of(tenant)),
            incarnation=lambda: self._heartbeat.incarnation,
            # `check`: whoever asks first notices, were it after a pause of the whole process.
            may_serve=lambda: self._heartbeat.check(),
            tasks=tasks,
            alone=lambda: self.cluster.alone,
            settled=lambda: self._heartbeat.unsettled == 0,
            deleted=self._workspaces.deleted,
            announce=lambda kind, key: self.cluster.announce(kind, key),
            admission=turn_admission(
                self.settings, self.stores.coordination, lambda: self._heartbeat.incarnation, tasks
            ),
            residents=residents(self.settings, lambda: self.pool.changed),
            patience=patience,
            state_patience=state_patience,
            telemetry=self.observability.telemetry,
        )
