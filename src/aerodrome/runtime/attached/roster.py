"""Which servers are attached, by the settings and at run time, and where their names lead."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence

import structlog

from aerodrome.runtime.attached.entry import AttachEntry, Plan, plan
from aerodrome.runtime.attached.ports import AttachStore, Binding, Resolver, StoredServer

log = structlog.get_logger(__name__)

#: Name of the token for servers that name none.
DEFAULT_TOKEN = "default"  # noqa: S105 - a name


class Roster:
    """Args:
    entries: From the settings.
    tokens: By name, for servers that are attached at run time.
    """

    def __init__(
        self, store: AttachStore, resolver: Resolver, entries: Sequence[AttachEntry], tokens: Mapping[str, str]
    ) -> None:
        self._store = store
        self._resolver = resolver
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._seen: list[AttachEntry] = []
        self._told: frozenset[tuple[str, str]] = frozenset()
        self.reload(entries, tokens)

    def reload(self, entries: Sequence[AttachEntry], tokens: Mapping[str, str]) -> None:
        """The settings have changed. Counts with the next look."""
        self._entries, self._tokens = list(entries), dict(tokens)

    @property
    def tokens(self) -> Collection[str]:
        """Names of the tokens that there are."""
        return self._tokens.keys()

    async def look(self) -> None:
        """Look again at the store and at the names. Raises `StoreUnavailable`, and what was known stays so."""
        entries = [*self._entries, *(self._entry_of(server) for server in await self._store.attached())]
        await self._resolve({entry.host for entry in entries})
        self._seen = entries

    def plan(self, bindings: Mapping[str, Binding]) -> Plan:
        """The servers, as they were when they were looked at, but for those that are being released."""
        owners = {endpoint: binding.key for endpoint, binding in bindings.items() if binding.release is None}
        found = plan(self._seen, self._addresses, owners)
        unused = {(endpoint, entry.address) for endpoint, entries in found.unused.items() for entry in entries}
        for endpoint, address in sorted(unused - self._told):
            log.warning("runtime.attached_twice", server=endpoint, ignored=address)
        self._told = frozenset(unused)
        released = bindings.keys() - owners.keys()
        return Plan({name: entry for name, entry in found.servers.items() if name not in released}, found.unused)

    def _entry_of(self, server: StoredServer) -> AttachEntry:
        return entry_of(server, self._tokens.get(server.token or DEFAULT_TOKEN, ""))

    async def _resolve(self, hosts: set[str]) -> None:
        async def resolve(host: str) -> tuple[str, tuple[str, ...]]:
            try:
                found = tuple(await self._resolver.resolve(host))
            except OSError as error:
                log.warning("runtime.attached_unresolved", host=host, reason=str(error) or type(error).__name__)
                found = ()
            # A resolver that is away, or knows nothing for a moment, takes no server from its sessions.
            return host, found or self._addresses.get(host, ())

        self._addresses = dict(await asyncio.gather(*map(resolve, sorted(hosts))))


def entry_of(server: StoredServer, token: str = "") -> AttachEntry:
    """The entry of a server that was attached at run time."""
    host, _, port = server.address.rpartition(":")
    given = {"workspace": server.workspace} if server.workspace else {}
    return AttachEntry(
        host.strip("[]"),
        int(port),
        token=token,
        weight=server.weight,
        tenant=server.tenant,
        max_sessions=server.max_sessions,
        attached_at=server.attached_at,
        **given,
    )
