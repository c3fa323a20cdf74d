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
    #: Unix seconds; those of the settings were there first.
    attached_at: float = field(default=0.0, compare=False)

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
    #: Endpoints that several entries lead to, with those that get nothing.
    unused: dict[str, tuple[AttachEntry, ...]]


def plan(
    entries: Iterable[AttachEntry], addresses: Mapping[str, Iterable[str]], bindings: Mapping[str, RuntimeKey]
) -> Plan:
    """The servers of these entries.

    One endpoint is one server, whatever names lead to it. With two entries for it, of two tenants perhaps, that one
    counts which is for whom the server serves already: who attaches somebody's server by another name must not take it
    over. Otherwise the one that was there first.

    Args:
        addresses: Host -> the IP addresses that it leads to.
        bindings: Endpoint -> whom it serves.
    """
    found: dict[str, list[AttachEntry]] = {}
    for entry in entries:
        for endpoint in dict.fromkeys(address_text(address, entry.port) for address in addresses.get(entry.host, ())):
            if entry not in (known := found.setdefault(endpoint, [])):
                known.append(entry)

    def rank(endpoint: str, entry: AttachEntry) -> tuple[bool, float]:
        owner = bindings.get(endpoint)
        return owner is not None and not entry.may_serve(owner), entry.attached_at

    servers, unused = dict[str, AttachEntry](), dict[str, tuple[AttachEntry, ...]]()
    for endpoint, known in found.items():
        servers[endpoint], *others = sorted(known, key=lambda entry: rank(endpoint, entry))
        if others:
            unused[endpoint] = tuple(others)
    return Plan(servers, unused)
