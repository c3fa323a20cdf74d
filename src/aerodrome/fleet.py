"""A node inside a Python program, and official Copilot clients for its users.

The clients are the SDK's own and go by the native gateway, so that what holds for a client of a server holds for them:
who they are, what they may do, what survives. Only the way in is the program's own: the gateway listens on loopback, on
a port that the system chooses, and the credentials are in the memory of this process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Literal, Self
from weakref import WeakSet

import structlog

from aerodrome.app import Node
from aerodrome.config import Settings, load_settings, settings_of
from aerodrome.config.types import Address
from aerodrome.errors import Invalid
from aerodrome.http.objects import session_object
from aerodrome.identity.ephemeral import EphemeralCredentials
from aerodrome.model import Principal, valid_name
from aerodrome.observability.logging import log_to_the_application

if TYPE_CHECKING:
    from copilot import CopilotClient

log = structlog.get_logger(__name__)

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
        self._node = Node(self.settings, http=http, authenticator=self._credentials)
        # Weak: a program may stop its clients by itself, and make one for each request.
        self._clients: WeakSet[CopilotClient] = WeakSet()
        self._stack = AsyncExitStack()
        self._running = False

    async def __aenter__(self) -> Self:
        """Start. Raises what a node may raise at its start: `ConfigError`, `RuntimeUnavailable`, `StoreUnavailable`."""
        log_to_the_application()
        await self._stack.enter_async_context(self._node)
        self._stack.push_async_callback(self._stop_clients)
        self._running = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running = False
        await self._stack.aclose()

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
            mode: The SDK's own. What a session may do is decided by the host and is the same in both; `empty` also
                makes the SDK ask for `available_tools` in each session.
            options: For `CopilotClient`, all but `connection`.

        Raises:
            ImportError: The SDK is not installed.
            Invalid: User or tenant is no valid name.
        """
        copilot = _sdk()
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
        host, port = self._started().gateway_address
        return str(Address(host, port))

    @property
    def http_url(self) -> str:
        """Where the HTTP API is: ``http://HOST:PORT``. Raises `RuntimeError` without ``http=True``."""
        if not self._http:
            raise RuntimeError("the HTTP API is not served: make the fleet with http=True")
        host, port = self._started().http_address
        return f"http://{Address(host, port)}"

    async def sessions(self, tenant: str | None = None) -> list[dict[str, Any]]:
        """The stored sessions of one tenant, or of all, the last used first; the objects are those of the HTTP API.

        For the program itself, which may see everybody's. Users see theirs with their client.
        """
        directory = self._started().stores.coordination
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = await directory.list(tenant, cursor=cursor, limit=200)
            found += [session_object(row) for row in page.rows]
            if (cursor := page.next) is None:
                return found

    def runtimes(self) -> list[dict[str, Any]]:
        """The Copilot CLI processes: `{id, pid, state, tenant, user, sessions, turns, rss_bytes, started_at}`."""
        return [runtime.describe() for runtime in self._started().pool.runtimes]

    def _started(self) -> Node:
        if not self._running:
            raise RuntimeError("the fleet does not run: use `async with Fleet() as fleet`")
        return self._node

    async def _stop_clients(self) -> None:
        for client in list(self._clients):
            await _stop(client)


async def _stop(client: CopilotClient) -> None:
    """Cut its connection. The gateway sees to the rest, while the SDK's `stop` would hold the event loop for a second
    waiting for a thread of its own; with many clients that is long enough for the node to miss its heartbeats.
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
