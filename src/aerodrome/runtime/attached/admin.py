"""Attaching and detaching servers while the fleet runs."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from aerodrome._util.clock import Clock
from aerodrome.coordination.ports import ClusterEvent, ClusterEvents
from aerodrome.errors import Conflict, Invalid, NotFound, StoreUnavailable
from aerodrome.runtime.attached.entry import AttachEntry, address_text
from aerodrome.runtime.attached.ports import AttachStore, Resolver, StoredServer
from aerodrome.runtime.attached.roster import entry_of

#: Kind of the event that tells nodes to look at the list again; one that misses it looks soon by itself.
ATTACHED = "attached"
_ATTACHED = "{} is attached already; detach it first"
_HOST = re.compile(r"[A-Za-z0-9:._-]{1,253}")


class AttachAdmin:
    """Args:
    tokens: Names of the tokens that a server may be attached with; ``None`` says nothing of them here.
    on_volume: Whether sessions lie where attached servers can reach them.
    resolver: Finds out which servers are attached already, by other names.
    entries: The servers of the settings.
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
        resolver: Resolver,
        entries: Callable[[], Sequence[AttachEntry]],
        rows: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        self._store = store
        self._events = events
        self._tokens = tokens
        self._on_volume = on_volume
        self._clock = clock
        self._resolver = resolver
        self._entries = entries
        self._rows = rows

    async def attach(self, server: StoredServer) -> StoredServer:
        """Have all nodes use the server, for its tenant alone.

        Raises:
            Invalid: The address or the token is none, or sessions do not lie on a volume.
            Conflict: The address is attached already, or all that it leads to, by another name or for others.
        """
        if not self._on_volume:
            raise Invalid('attached servers need state.url = "volume:/PATH"')
        known = self._tokens()
        if server.token is not None and known is not None and server.token not in known:
            raise Invalid(f"runtime.attach_tokens has no token {server.token!r}")
        server = replace(server, address=normal_address(server.address), attached_at=self._clock.time())
        if server.address in {known.address for known in await self._store.attached()}:
            raise Conflict(_ATTACHED.format(server.address))
        await self._refuse_known(server)
        if not await self._store.attach(server):
            raise Conflict(_ATTACHED.format(server.address))
        await self._announce(server.address)
        return server

    async def _refuse_known(self, server: StoredServer) -> None:
        """Two who do this at once, or names that change later, are seen to by `entry.plan`."""
        new = entry_of(server)
        others = [*self._entries(), *map(entry_of, await self._store.attached())]
        others = [entry for entry in others if entry.port == new.port]
        hosts = {entry.host for entry in [new, *others]}
        addresses = dict(zip(hosts, await asyncio.gather(*map(self._addresses_of, hosts)), strict=True))
        bindings = await self._store.bindings()

        def endpoints(entry: AttachEntry) -> list[str]:
            return list(dict.fromkeys(address_text(address, entry.port) for address in addresses[entry.host]))

        refusals = []
        for endpoint in endpoints(new):
            bound = bindings.get(endpoint)
            known = next((entry for entry in others if endpoint in endpoints(entry)), None)
            if bound is not None and bound.release is None and not new.may_serve(bound.key):
                refusals.append(
                    f"{endpoint} serves another organisation; detach {endpoint} there, and restart it before it serves "
                    "another one"
                )
            elif known is not None and known.tenant in (None, new.tenant):
                refusals.append(f"{endpoint} is attached already as {known.address}; detach that first")
            elif known is not None:
                refusals.append(f"{endpoint} is attached for another organisation; it has to be detached there first")
            else:
                return  # a server that can be used; what is said of the others is in the list
        if refusals:
            raise Conflict("; ".join(refusals))

    async def _addresses_of(self, host: str) -> Sequence[str]:
        try:
            return await self._resolver.resolve(host)
        except OSError:
            return ()  # to be found out by whoever uses it

    async def detach(self, address: str, tenant: str | None = None) -> None:
        """Have all nodes drain the server, and then forget whom it has served. A server of the settings stays in use,
        and is anybody's again.

        Args:
            tenant: Only if it is this tenant's.

        Raises:
            NotFound: It is not attached, or not this tenant's.
        """
        address = normal_address(address)
        stored = {server.address: server.tenant for server in await self._store.attached()}
        owner = stored.get(address)
        detached = owner is not None and tenant in (None, owner) and await self._store.detach(address)
        # It may lead to a server that others have attached by another name, and that serves those.
        whose = tenant if tenant is not None else owner
        if not await self._store.release(address, secrets.token_hex(8), whose) and not detached:
            raise NotFound(f"no server {address} is attached")
        if tenant is None or detached:
            # By the endpoint it might be what others have attached by another name.
            await self._store.undrain(address, endpoints=tenant is None)
        await self._announce(address)

    async def undrain(self, address: str) -> None:
        """Have all nodes use a server again that was drained. Raises `NotFound`: it is not drained."""
        address = normal_address(address)
        if not await self._store.undrain(address):
            raise NotFound(f"no server {address} is drained")
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
