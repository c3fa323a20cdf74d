"""What is attached, as it is written down, and the servers that come of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from aerodrome.model import RuntimeKey


@dataclass(frozen=True, slots=True)
class AttachEntry:
    """A line of `runtime.attach`, or a server that was attached at run time."""

    host: str
    port: int
    #: Its connection token.
    token: str = field(default="", repr=False)
    weight: float = 1.0
    #: Whose it is; ``None``: the first tenant's that needs it.
    tenant: str | None = None
    #: ``None``: as many as any runtime.
    max_sessions: int | None = None
    #: Working directory of its sessions, on the server's machine.
    workspace: str = "/tmp"  # noqa: S108 - not ours

    @property
    def address(self) -> str:
        """As it is named to people: `cli-1:4321`."""
        return address_text(self.host, self.port)

    def same_server(self, other: AttachEntry) -> bool:
        """Whether the difference is one that sessions on the server need not notice."""
        return (self.token, self.tenant, self.workspace) == (other.token, other.tenant, other.workspace)

    def may_serve(self, key: RuntimeKey) -> bool:
        return self.tenant in (None, key.tenant)


def address_text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Endpoint (an IP address and a port) -> what it is attached as."""

    servers: dict[str, AttachEntry]
    #: Endpoints that two entries lead to, with the entry that comes second and gets nothing.
    conflicts: dict[str, AttachEntry]


def plan(entries: Iterable[AttachEntry], addresses: Mapping[str, Iterable[str]]) -> Plan:
    """The servers of these entries.

    One endpoint is one server, whatever names lead to it: with two entries for it, of two tenants perhaps, the first
    counts.

    Args:
        addresses: Host -> the IP addresses that it leads to.
    """
    servers: dict[str, AttachEntry] = {}
    conflicts: dict[str, AttachEntry] = {}
    for entry in entries:
        for address in addresses.get(entry.host, ()):
            endpoint = address_text(address, entry.port)
            if endpoint in servers and servers[endpoint] != entry:
                conflicts[endpoint] = entry
            else:
                servers[endpoint] = entry
    return Plan(servers, conflicts)
