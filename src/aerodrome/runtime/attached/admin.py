"""Attaching and detaching servers while the fleet runs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from aerodrome._util.clock import Clock
from aerodrome.coordination.ports import ClusterEvent, ClusterEvents
from aerodrome.errors import Conflict, Invalid, NotFound, StoreUnavailable
from aerodrome.runtime.attached.entry import address_text
from aerodrome.runtime.attached.ports import AttachStore, StoredServer

#: Kind of the event that tells nodes to look at the list again; one that misses it looks soon by itself.
ATTACHED = "attached"
_HOST = re.compile(r"[A-Za-z0-9:._-]{1,253}")


class AttachAdmin:
    """Args:
    tokens: Names of the tokens that a server may be attached with; ``None`` says nothing of them here.
    on_volume: Whether sessions lie where attached servers can reach them.
    rows: How the servers stand, as this node sees them.
    """

    def __init__(
        self,
        store: AttachStore,
        events: ClusterEvents,
        *,
        tokens: Callable[[], Collection[str] | None],
        on_volume: bool,
        clock: Clock,
        rows: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        self._store = store
        self._events = events
        self._tokens = tokens
        self._on_volume = on_volume
        self._clock = clock
        self._rows = rows

    async def attach(self, server: StoredServer) -> StoredServer:
        """Have all nodes use the server, for its tenant alone.

        Raises:
            Invalid: The address or the token is none, or sessions do not lie on a volume.
            Conflict: The address is attached already.
        """
        if not self._on_volume:
            raise Invalid('attached servers need state.url = "volume:/PATH"')
        known = self._tokens()
        if server.token is not None and known is not None and server.token not in known:
            raise Invalid(f"runtime.attach_tokens has no token {server.token!r}")
        server = replace(server, address=normal_address(server.address), attached_at=self._clock.time())
        if not await self._store.attach(server):
            raise Conflict(f"{server.address} is attached already; detach it first")
        await self._announce(server.address)
        return server

    async def detach(self, address: str, tenant: str | None = None) -> None:
        """Have all nodes drain the server, and forget whom it has served. A server of the settings stays in use, and is
        anybody's again.

        Args:
            tenant: Only if it is this tenant's.

        Raises:
            NotFound: It is not attached, or not this tenant's.
        """
        address = normal_address(address)
        stored = {server.address: server.tenant for server in await self._store.attached()}
        bound = (await self._store.bindings()).get(address)
        owner = stored.get(address) or (bound.tenant if bound is not None else None)
        if tenant is not None and owner != tenant:
            raise NotFound(f"no server {address} is attached")
        detached = await self._store.detach(address)
        if not await self._store.unbind(address) and not detached:
            raise NotFound(f"no server {address} is attached")
        await self._announce(address)

    async def servers(self, tenant: str | None = None) -> list[dict[str, Any]]:
        """How the servers stand here, each with whether it was attached at run time."""
        stored = {server.address for server in await self._store.attached()}
        return [
            {**row, "attached_at_run_time": row["address"] in stored}
            for row in self._rows()
            if tenant is None or row["tenant"] == tenant
        ]

    async def _announce(self, address: str) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self._events.publish(ClusterEvent(ATTACHED, address))


def normal_address(text: str) -> str:
    """One spelling for each address. Raises `Invalid`."""
    host, colon, port = text.strip().rpartition(":")
    host = host.strip("[]")
    if not colon or not _HOST.fullmatch(host) or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise Invalid('expected HOST:PORT, such as "cli-1:4321" or "[fd00::1]:4321"')
    return address_text(host.lower(), int(port))
