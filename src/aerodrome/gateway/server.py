"""The native gateway: accepts clients, knows who they are, and keeps them as long as their credential is good."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.errors import AerodromeError, Capacity, ConfigError, Draining, RuntimeUnavailable, Unauthenticated
from aerodrome.gateway.answers import Answers
from aerodrome.gateway.client import GatewayClient
from aerodrome.gateway.limits import GatewayLimits
from aerodrome.gateway.problems import RuntimeRefused
from aerodrome.model import Isolation, Principal
from aerodrome.policy.open_params import OpenContext
from aerodrome.policy.profiles import Profile
from aerodrome.policy.session_params import Credentials, ToolPolicy
from aerodrome.runtime.link import LinkClosed, RemoteError
from aerodrome.runtime.supervisor import ManagedRuntime
from aerodrome.sessions.service import SessionService

log = structlog.get_logger(__name__)

_BACKLOG = 1024
#: Seconds between two looks for links that nothing goes by any more, and for requests that nobody answers.
_TIDY = 5.0


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


class Gateway:
    def __init__(self, sessions: SessionService, auth: Authenticator, options: GatewayOptions) -> None:
        self.sessions = sessions
        self.limits = options.limits
        self.request_timeout = options.request_timeout
        self.cli_version = options.cli_version
        self.isolation_of = options.isolation_of
        self.tools = options.tools
        self.credentials_of = options.credentials_of
        self.answers = Answers(self)
        self._options = options
        self._auth = auth
        self._clients: set[GatewayClient] = set()
        #: Those who have not said who they are, the one that has been there longest first.
        self._strangers: dict[GatewayClient, None] = {}
        #: How many connections each user has, by tenant and name.
        self._admitted: Counter[tuple[str, str]] = Counter()
        self._tasks = TaskOwner("gateway")
        self._server: asyncio.Server | None = None

    @property
    def clients(self) -> list[GatewayClient]:
        return list(self._clients)

    # --- life ---

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address. Raises `ConfigError` when it is not to be had."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, host, port, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} (server.gateway): {error.strerror or error}; "
                "choose another address, or port 0 for a free one"
            ) from error
        self._tasks.start(self._recheck_for_ever(), "recheck credentials")
        self._tasks.start(self._tidy(), "close unused links")
        address = self._server.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    async def stop_listening(self) -> None:
        """Take no new clients; those that are there keep their connection until `aclose`."""
        if self._server is not None:
            self._server.close()

    async def aclose(self) -> None:
        """Close every connection and wait until nothing of the clients is left."""
        await self.stop_listening()
        for client in self.clients:
            client.close(Draining("this node is shutting down; connect again"))
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
            del self._strangers[oldest]
            oldest.connection.abort(f"{self.limits.max_strangers} connections without a key are open already")
        self._strangers[client] = None
        asyncio.get_running_loop().call_later(self.limits.connect_timeout, self._expect_connected, client)
        return client.connection

    def _expect_connected(self, client: GatewayClient) -> None:
        if client.principal is None and not client.gone:
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
            self._strangers.pop(client, None)
            self._admitted[principal.tenant, principal.user] += 1
            client.connection.take_frames_of(self.limits.max_frame)
        client.principal = principal
        client.credential = credential
        client.router.profile = self._options.profile_of(principal.tenant)
        log.info("gateway.client_connected", tenant=principal.tenant, user=principal.user, peer=client.connection.peer)

    def _refuse_when_full(self, principal: Principal) -> None:
        if self._admitted.total() >= self.limits.max_clients:
            raise Capacity(f"{self.limits.max_clients} clients are connected already", retry_after=1.0)
        if self._admitted[principal.tenant, principal.user] >= self.limits.max_clients_per_user:
            raise Capacity(f"this user has {self.limits.max_clients_per_user} connections already", retry_after=1.0)

    def client_closed(self, client: GatewayClient, reason: str) -> None:
        self._strangers.pop(client, None)
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

    def tell_lifecycle(
        self, who: Principal, kind: str, session_id: str, *, besides: GatewayClient | None = None
    ) -> None:
        """What happened to a session here and not in a runtime, to all clients of its user."""
        for client in self._clients:
            if client is not besides and client.is_of(who) and not client.gone:
                client.tell_lifecycle(kind, session_id)

    # --- what sessions get ---

    async def ask_any_runtime(self, who: Principal, method: str, params: dict[str, Any]) -> Any:
        """Ask a runtime of this user something that concerns no session. Raises `AerodromeError`."""
        runtime = await self.sessions.borrow(who)
        try:
            return await runtime.control.request(method, params)
        except RemoteError as error:
            raise RuntimeRefused(error.code, error.message) from error
        except (LinkClosed, TimeoutError) as error:
            raise RuntimeUnavailable(f"the runtime did not answer {method}: {error}") from error
        finally:
            self.sessions.give_back(runtime)

    def open_context(self, tenant: str, profile: Profile) -> Callable[[ManagedRuntime], OpenContext]:
        """What a session of this tenant is opened with, beside what its client asked for, in a runtime."""

        def context(runtime: ManagedRuntime) -> OpenContext:
            return OpenContext(
                profile=profile,
                isolation=self.isolation_of(tenant),
                tools=self.tools,
                credentials=self.credentials_of(tenant),
                working_directory=str(runtime.workspace),
            )

        return context

    # --- upkeep ---

    async def _recheck_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.limits.recheck)
            await self.recheck()

    async def recheck(self) -> None:
        """End the connections whose key has been revoked."""
        by_credential: dict[str, list[GatewayClient]] = {}
        for client in self._clients:
            if client.principal is not None:
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
        while True:
            await asyncio.sleep(_TIDY)
            for client in self.clients:
                client.close_unused_links()
                client.refuse_overdue(_TIDY)
