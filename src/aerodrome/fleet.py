"""A node inside a Python program, and official Copilot clients for its users.

The clients are the SDK's own and go by the native gateway, so that what holds for a client of a server holds for them:
who they are, what they may do, what survives. Only the way in is the program's own: the gateway listens on loopback, on
a port that the system chooses, and the credentials are in the memory of this process.

The node has a thread and an event loop of its own. A program may hold up its loop (to import the SDK alone takes
seconds on a busy machine), and a node that is held up for as long misses its heartbeats and gives up its sessions.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from weakref import WeakSet

import structlog

from aerodrome._util.loop_thread import LoopThread
from aerodrome.app.node import Node
from aerodrome.config import Settings, load_settings, settings_of
from aerodrome.config.types import Address
from aerodrome.errors import Invalid
from aerodrome.http.objects import session_object
from aerodrome.identity.ephemeral import EphemeralCredentials
from aerodrome.model import Principal, SessionRow, valid_name
from aerodrome.observability.logging import log_to_the_application

if TYPE_CHECKING:
    from copilot import CopilotClient

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Of users for whom no tenant is named.
DEFAULT_TENANT = "default"


class Fleet:
    """Use as an asynchronous context manager: ``async with Fleet() as fleet: ...``. Leaving it stops the clients that
    it has given out, lets running turns finish for up to `server.drain_timeout`, and ends every process it has started.

    Args:
        settings: `Settings`, a mapping with the sections of `aerodrome.toml`, or the path of such a file. Without it,
            what `aerodrome serve` would read: `aerodrome.toml` here or in the user's configuration directory, and
            `AERODROME_*` variables. Sessions are kept in `server.data_dir`, so the same settings find them again.
        tenant: Tenant of users for whom none is named.
        http: Whether to serve the HTTP API as well, at `server.http`.

    `server.gateway` is not used: the gateway is for this program.

    Raises:
        ConfigError: The settings are wrong, or there is no such file.
    """

    def __init__(
        self,
        settings: Settings | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        *,
        tenant: str = DEFAULT_TENANT,
        http: bool = False,
    ) -> None:
        self.settings = _embedded(_read(settings))
        self.tenant = _checked_name("tenant", tenant)
        self._http = http
        self._credentials = EphemeralCredentials()
        # Weak: a program may stop its clients by itself, and make one for each request.
        self._clients: WeakSet[CopilotClient] = WeakSet()
        self._thread: LoopThread[Node] | None = None
        self._node: Node | None = None

    async def __aenter__(self) -> Self:
        """Start. Raises what a node may raise at its start: `ConfigError`, `RuntimeUnavailable`, `StoreUnavailable`."""
        if self._thread is not None:
            raise RuntimeError("a fleet is entered once; make another one")
        log_to_the_application()
        self._thread = LoopThread("aerodrome", self._make_node)
        self._node = await self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._thread is not None
        self._node = None
        try:
            for client in list(self._clients):
                await _stop(client)
        finally:
            await self._thread.stop()

    def _make_node(self) -> Node:
        return Node(self.settings, http=self._http, authenticator=self._credentials)

    async def client(
        self,
        user: str,
        *,
        tenant: str | None = None,
        mode: Literal["copilot-cli", "empty"] = "copilot-cli",
        **options: Any,
    ) -> CopilotClient:
        """A started client of the official SDK that acts for this user.

        It sees the user's sessions and nobody else's. Stop it when you are done with it, as any other, or leave that to
        the fleet.

        Args:
            mode: The SDK's own. What a session may do is decided by the host (`policy.profile`), in both modes; `empty`
                also makes the SDK ask for `available_tools` in each session.
            options: For `CopilotClient`, all but `connection`.

        Raises:
            ImportError: The SDK is not installed.
            RuntimeError: The fleet does not run.
            Invalid: User or tenant is no valid name.
        """
        # On a thread: it is a large module.
        copilot = await asyncio.to_thread(_sdk)
        address, credential = self.gateway_address, self.credential(user, tenant=tenant)
        connection = copilot.RuntimeConnection.for_uri(address, connection_token=credential)
        client: CopilotClient = copilot.CopilotClient(connection=connection, mode=mode, **options)
        self._clients.add(client)
        try:
            await client.start()
        except BaseException:
            await client.force_stop()
            raise
        return client

    def credential(self, user: str, *, tenant: str | None = None) -> str:
        """What proves that a caller is this user, as long as this fleet runs and nowhere else: the connection token of
        an SDK in another language, or the bearer token of an HTTP client.

        Raises:
            Invalid: User or tenant is no valid name.
        """
        tenant = self.tenant if tenant is None else _checked_name("tenant", tenant)
        return self._credentials.issue(Principal(tenant, _checked_name("user", user)))

    @property
    def gateway_address(self) -> str:
        """Where SDKs connect: ``HOST:PORT``, for this machine only."""
        host, port = self._running_node().gateway_address
        return str(Address(host, port))

    @property
    def http_url(self) -> str:
        """Where the HTTP API is: ``http://HOST:PORT``. Raises `RuntimeError` without ``http=True``."""
        if not self._http:
            raise RuntimeError("the HTTP API is not served: make the fleet with http=True")
        host, port = self._running_node().http_address
        return f"http://{Address(host, port)}"

    async def sessions(self, tenant: str | None = None) -> list[dict[str, Any]]:
        """The stored sessions of one tenant, or of all, the last used first; the objects are those of the HTTP API.

        For the program itself, which may see everybody's. Users see theirs with their client.
        """
        return await self._on_node(_listed(self._running_node(), tenant))

    async def runtimes(self) -> list[dict[str, Any]]:
        """The Copilot CLI processes: `{id, pid, state, tenant, user, sessions, turns, rss_bytes, started_at}`."""
        return await self._on_node(_described(self._running_node()))

    def _running_node(self) -> Node:
        if self._node is None:
            raise RuntimeError("the fleet does not run: use `async with Fleet() as fleet`")
        return self._node

    async def _on_node(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something with the node, on its own loop: nothing of it may be used on another."""
        assert self._thread is not None
        return await self._thread.run(work)


async def _listed(node: Node, tenant: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = await node.stores.directory.list(tenant, cursor=cursor, limit=200)
        found += [session_object(_as_it_stands(node, row)) for row in page.rows]
        if (cursor := page.next) is None:
            return found


def _as_it_stands(node: Node, row: SessionRow) -> SessionRow:
    """The row with the state of this moment; what the directory says of a session that is loaded here comes later."""
    live = node.sessions.find_live(row.key)
    if live is None or live.activation is None:
        return row
    return replace(row, state=live.listed_state, last_turn=live.row.last_turn or row.last_turn)


async def _described(node: Node) -> list[dict[str, Any]]:
    return [runtime.describe() for runtime in node.pool.runtimes]


async def _stop(client: CopilotClient) -> None:
    """Cut its connection; the gateway sees to the rest. The SDK's `stop` would hold up the program's event loop for a
    second, waiting for a thread of its own, and that for each client.
    """
    try:
        await client.force_stop()
    except Exception as error:
        # Others must be stopped as well.
        log.warning("fleet.client_not_stopped", reason=str(error) or type(error).__name__)


def _read(settings: Settings | Mapping[str, Any] | str | os.PathLike[str] | None) -> Settings:
    if isinstance(settings, Settings):
        return settings
    if isinstance(settings, Mapping):
        return settings_of(settings)
    return load_settings(None if settings is None else os.fspath(settings))


def _embedded(settings: Settings) -> Settings:
    """The settings of a node that is part of a program and may have others beside it, in other processes."""
    server: dict[str, Any] = {"gateway": Address("127.0.0.1", 0)}
    if "node_name" not in settings.server.model_fields_set:
        server["node_name"] = f"{settings.server.node_name[:80]}-{os.getpid()}"
    return settings.model_copy(update={"server": settings.server.model_copy(update=server)})


def _checked_name(what: str, name: str) -> str:
    if not valid_name(name):
        raise Invalid(
            f"{name[:120]!r} is no valid {what} name: 1 to 100 letters, digits and . _ @ -, the first a letter or digit"
        )
    return name


def _sdk() -> Any:
    try:
        import copilot
    except ImportError as error:
        raise ImportError("clients are those of GitHub's SDK: pip install 'aerodrome[sdk]'") from error
    return copilot
