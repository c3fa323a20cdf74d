"""The native gateway: accepts clients, knows who they are, and keeps them as long as their credential is good."""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import structlog

from aerodrome._util.tasks import TaskOwner, every
from aerodrome.errors import (
    AerodromeError,
    Capacity,
    ConfigError,
    Draining,
    RateLimited,
    RuntimeUnavailable,
    Unauthenticated,
)
from aerodrome.gateway.answers import Answers
from aerodrome.gateway.client import GatewayClient
from aerodrome.gateway.limits import GatewayLimits
from aerodrome.gateway.members import role_changed
from aerodrome.gateway.peering import PeerServer
from aerodrome.gateway.problems import RuntimeRefused
from aerodrome.model import Isolation, Principal, SessionKey, SessionRow
from aerodrome.peers.cluster import Cluster
from aerodrome.policy.open_params import OpenContext
from aerodrome.policy.profiles import Profile
from aerodrome.policy.session_params import Credentials, ToolPolicy
from aerodrome.runtime.link import LinkClosed, RemoteError
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions.service import SessionService
from aerodrome.telemetry import SILENT, Telemetry

log = structlog.get_logger(__name__)

_BACKLOG = 1024
#: Seconds between two looks for links that nothing goes by any more, and for requests that nobody answers.
_TIDY = 5.0
#: Seconds between two looks, while the node drains, for clients of which nothing is under way.
_LOOK_AGAIN = 0.05


class Authenticator(Protocol):
    async def authenticate(self, key: str) -> Principal:
        """Raises `Unauthenticated` or `StoreUnavailable`."""
        ...


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What the gateway has to know of the configuration."""

    cli_version: str
    isolation_of: Callable[[str], Isolation]
    profile_of: Callable[[str], Profile]
    credentials_of: Callable[[str], Credentials]
    tools: ToolPolicy = field(default_factory=ToolPolicy)
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    #: Seconds that a runtime may take to answer our own requests.
    request_timeout: float = 30.0
    #: Seconds in which nothing is heard of another node on a connection, and after which it is held for gone.
    peer_silence: float = 5.0
    #: Seconds to look for the node that runs a session while it moves.
    patience: float = 10.0


class Gateway:
    """Args:
    peer_token: What other nodes prove themselves with.
    """

    def __init__(
        self,
        sessions: SessionService,
        auth: Authenticator,
        options: GatewayOptions,
        cluster: Cluster,
        *,
        peer_token: Callable[[], str],
        telemetry: Telemetry = SILENT,
    ) -> None:
        self.telemetry = telemetry
        self.sessions = sessions
        self.cluster = cluster
        self.patience = options.patience
        self.peer_silence = options.peer_silence
        self.limits = options.limits
        self.request_timeout = options.request_timeout
        self.cli_version = options.cli_version
        self.isolation_of = options.isolation_of
        self.tools = options.tools
        self.credentials_of = options.credentials_of
        self.answers = Answers(self)
        self._options = options
        self._auth = auth
        self._peer_token = peer_token
        self._clients: set[GatewayClient] = set()
        self._peers: set[PeerServer] = set()
        #: Those who have not said who they are, the one that has been there longest first, and what ends their time.
        self._strangers: dict[GatewayClient, asyncio.TimerHandle] = {}
        #: How many connections each user has, by tenant and name.
        self._admitted: Counter[tuple[str, str]] = Counter()
        self._tasks = TaskOwner("gateway")
        self._server: asyncio.Server | None = None
        cluster.on_awake.append(self._on_awake)
        cluster.on_gone.append(self._on_gone)
        cluster.followed.append(self._followed)
        sessions.members_here.listen(partial(role_changed, self))

    @property
    def clients(self) -> list[GatewayClient]:
        return list(self._clients)

    # --- life ---

    async def start(self, host: str, port: int, *, listener: socket.socket | None = None) -> tuple[str, int]:
        """Listen; returns the address. Raises `ConfigError` when it is not to be had.

        Args:
            listener: A socket that listens already, in place of that address.
        """
        loop = asyncio.get_running_loop()
        try:
            if listener is not None:
                self._server = await loop.create_server(self._accept, sock=listener, backlog=_BACKLOG)
            else:
                self._server = await loop.create_server(self._accept, host, port, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} (server.gateway): {error.strerror or error}; "
                "choose another address, or port 0 for a free one"
            ) from error
        self._tasks.start(every(self.limits.recheck, self.recheck, "gateway.recheck_failed"), "recheck credentials")
        self._tasks.start(every(_TIDY, self._tidy, "gateway.tidy_failed"), "close unused links")
        address = self._server.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    async def stop_listening(self) -> None:
        """Take no new clients; those that are there keep their connection until `aclose`."""
        if self._server is not None:
            self._server.close()

    async def let_go(self) -> None:
        """Close each connection once nothing of its client is under way; ends when none is left.

        New ones are still taken, and answered `draining`: a port that refuses looks like a node that has died.
        """
        while self._clients:
            for client in self.clients:
                # What another node has opened for a session that is still here is idle until it has attached to it.
                begins = client.relayed and not client.attachments
                if client.idle and not client.gone and not begins:
                    client.close(Draining("this node is shutting down; connect again"))
            await asyncio.sleep(_LOOK_AGAIN)

    async def quiet(self) -> None:
        """Returns when nothing of any client is under way: of those that are here for what runs on other nodes, too."""
        while any(not client.idle and not client.gone for client in self.clients):  # noqa: ASYNC110 - as `let_go`
            await asyncio.sleep(_LOOK_AGAIN)

    async def aclose(self) -> None:
        """Close every connection and wait until nothing of the clients is left."""
        await self.stop_listening()
        for client in self.clients:
            client.close(Draining("this node is shutting down; connect again"))
        for peer in list(self._peers):
            await peer.aclose()
        while leaving := [client.left for client in self._clients]:
            await asyncio.wait(leaving)
        await self._tasks.aclose()

    # --- clients ---

    def _accept(self) -> asyncio.Protocol:
        client = GatewayClient(self)
        self._clients.add(client)
        if len(self._strangers) >= self.limits.max_strangers:
            # Whoever has a key shows it at once; those who only hold connections shall not keep others out.
            oldest = next(iter(self._strangers))
            self._no_stranger(oldest)
            oldest.connection.abort(f"{self.limits.max_strangers} connections without a key are open already")
        self._strangers[client] = asyncio.get_running_loop().call_later(
            self.limits.connect_timeout, self._expect_connected, client
        )
        return client.connection

    def _no_stranger(self, client: GatewayClient) -> None:
        """It has said who it is, or has gone. The timer would keep it in memory: connections come faster than theirs
        end."""
        if (timer := self._strangers.pop(client, None)) is not None:
            timer.cancel()

    def _expect_connected(self, client: GatewayClient) -> None:
        if client.principal is None and not client.is_node and not client.gone:
            client.close(Unauthenticated(f"no `connect` with a good key within {self.limits.connect_timeout:g} s"))

    async def authenticate(self, credential: str) -> Principal:
        if self.sessions.draining:
            raise Draining("this node is shutting down; connect again", retry_after=1.0)
        return await self._auth.authenticate(credential)

    def admit(self, client: GatewayClient, principal: Principal, credential: str) -> None:
        """The client is who it says.

        Raises:
            Unauthenticated: It was somebody else before.
            Capacity: There are too many already. The connection ends with the answer.
        """
        if client.principal is not None and client.principal != principal:
            raise Unauthenticated("this connection belongs to another principal; open a new one")
        if client.gone:
            raise Unauthenticated("the connection has ended")
        if client.principal is None:
            try:
                self._refuse_when_full(principal)
            except Capacity as error:
                asyncio.get_running_loop().call_soon(client.close, error)
                raise
            self._no_stranger(client)
            self._admitted[principal.tenant, principal.user] += 1
            client.connection.take_frames_of(self.limits.max_frame)
        client.principal = principal
        client.credential = credential
        client.router.profile = self._options.profile_of(principal.tenant)
        log.info("gateway.client_connected", tenant=principal.tenant, user=principal.user, peer=client.connection.peer)

    def _refuse_when_full(self, principal: Principal) -> None:
        if self._admitted[principal.tenant, principal.user] >= self.limits.max_clients_per_user:
            raise RateLimited(f"this user has {self.limits.max_clients_per_user} connections already", retry_after=1.0)
        if self._admitted.total() >= self.limits.max_clients:
            raise Capacity(f"{self.limits.max_clients} clients are connected already", retry_after=1.0)

    # --- other nodes ---

    def is_node(self, token: str) -> bool:
        """Whether this is what other nodes prove themselves with here."""
        own = self._peer_token()
        return bool(own) and hmac.compare_digest(token.encode(), own.encode())

    def hand_over(self, client: GatewayClient) -> None:
        """What connected as a client is a node, with work of its own."""
        self._clients.discard(client)
        self._no_stranger(client)
        client.connection.take_frames_of(self.limits.max_frame)
        self._peers.add(
            PeerServer(
                client.connection,
                self.sessions,
                moved=self.cluster.elsewhere,
                peer=client.is_node,
                silence=self.peer_silence,
                on_closed=self._peers.discard,
            )
        )

    def _on_awake(self, key: SessionKey, incarnation: str) -> None:
        if incarnation != self.cluster.own and self.sessions.holds(key):
            return  # news of long ago
        for client in self._clients:
            if client.principal is not None and client.principal.tenant == key.tenant:
                client.away.runs_at(key.id, incarnation)

    def _on_gone(self, incarnations: frozenset[str]) -> None:
        for client in self.clients:
            client.nodes_gone(incarnations)

    def _followed(self) -> list[SessionKey]:
        """Sessions that clients are attached to and that are not loaded here."""
        attached = [attachment.live.row.key for client in self._clients for attachment in client.attachments.values()]
        return attached + [key for client in self._clients for key in client.away.keys]

    # --- clients ---

    def client_closed(self, client: GatewayClient, reason: str) -> None:
        self._no_stranger(client)
        if client.principal is not None:
            self._admitted -= Counter({(client.principal.tenant, client.principal.user): 1})
        log.info("gateway.client_gone", peer=client.connection.peer, reason=reason)
        if self._tasks.closed:
            self._clients.discard(client)
        else:
            client.left = self._tasks.start(self._see_off(client), "see off", expected=AerodromeError)

    async def _see_off(self, client: GatewayClient) -> None:
        try:
            await client.leave()
        finally:
            self._clients.discard(client)

    def tell_lifecycle(self, row: SessionRow, kind: str, *, besides: Collection[GatewayClient] = ()) -> None:
        """What happened to a session here and not in a runtime, to all clients of its users."""
        for client in self._clients:
            if client in besides or client.gone or client.principal is None:
                continue
            if row.role_of(client.principal) is not None:
                client.tell_lifecycle(kind, row.key.id)

    def start_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do something that nobody waits for, whatever becomes of the client that it is about."""
        self._tasks.start_if_open(work, name, expected=AerodromeError)

    # --- what sessions get ---

    async def ask_any_runtime(self, who: Principal, method: str, params: dict[str, Any]) -> Any:
        """Ask a runtime of this user something that concerns no session. Raises `AerodromeError`."""
        runtime = await self.sessions.native.borrow(who)
        try:
            return await runtime.control.request(method, params)
        except RemoteError as error:
            raise RuntimeRefused(error.code, error.message) from error
        except (LinkClosed, TimeoutError) as error:
            raise RuntimeUnavailable(f"the runtime did not answer {method}: {error}") from error
        finally:
            self.sessions.native.give_back(runtime)

    def open_context(self, tenant: str, profile: Profile) -> Callable[[Runtime], OpenContext]:
        """What a session of this tenant is opened with, beside what its client asked for, in a runtime."""

        def context(runtime: Runtime) -> OpenContext:
            return OpenContext(
                profile=profile,
                isolation=self.isolation_of(tenant),
                tools=self.tools,
                credentials=self.credentials_of(tenant),
                working_directory=str(runtime.workspace),
            )

        return context

    # --- upkeep ---

    async def recheck(self, key_id: str | None = None) -> None:
        """End the connections whose key has been revoked: of all keys, or of the one with this id."""
        by_credential: dict[str, list[GatewayClient]] = {}
        for client in self._clients:
            if client.principal is None or client.relayed:
                continue  # who is relayed is looked after where it is connected
            if key_id in (None, client.principal.key_id):
                by_credential.setdefault(client.credential, []).append(client)
        for credential, clients in by_credential.items():
            try:
                await self._auth.authenticate(credential)
            except Unauthenticated as error:
                for client in clients:
                    client.close(error)
            except AerodromeError:
                break  # the store is away, which is no client's fault

    async def _tidy(self) -> None:
        for client in self.clients:
            client.close_unused_links()
            client.refuse_overdue(_TIDY)
