"""What a sandboxed runtime may connect to. Pure: a decision on a name and a port, made before anything is looked up.

A runtime in a network of its own reaches nothing but the node's proxy, which asks here. What the operator has named
may be anywhere, on this machine too: the model's address. All else is at most the public internet: never this
machine, never a private or a link-local address, where Aerodrome's own ports, databases, and the identities that
clouds hand out are.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import urlsplit

from aerodrome._util.addresses import OF_THE_PLATFORM

#: Where sessions with GitHub's own models connect to.
GITHUB = ("api.github.com:443", "*.githubcopilot.com:443", "copilot-proxy.githubusercontent.com:443")
_PORTS = {"http": 80, "https": 443}


class Network(StrEnum):
    """What the programs in a sandbox reach, beside the models."""

    #: Nothing.
    NONE = "none"
    #: What the operator's proxy lets them.
    PROXY = "proxy"
    #: The public internet.
    OPEN = "open"


class Verdict(StrEnum):
    REFUSED = "refused"
    #: Connect to it, wherever it is.
    NAMED = "named"
    #: Connect to it if its address is public.
    PUBLIC = "public"
    #: The operator's proxy may decide.
    BY_PROXY = "by_proxy"


class Target(NamedTuple):
    """A host, or ``*.`` and a domain for all hosts below it, and a port."""

    host: str
    port: int

    def covers(self, host: str, port: int) -> bool:
        if port != self.port:
            return False
        return host.endswith(self.host[1:]) if self.host.startswith("*.") else host == self.host


def target(text: str) -> Target:
    """From ``HOST:PORT``. Raises `ValueError`."""
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]").lower()
    if not host or not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) <= 65535:
        raise ValueError('expected HOST:PORT, such as "packages.example:443" or "*.example:443"')
    return Target(host, int(port))


def target_of(url: str) -> Target:
    """Where a URL leads. Raises `ValueError`."""
    parts = urlsplit(url)
    port = parts.port or _PORTS.get(parts.scheme)
    if not parts.hostname or port is None:
        raise ValueError(f"no host or port in {url!r}")
    return Target(parts.hostname.lower(), port)


@dataclass(frozen=True, slots=True)
class Egress:
    network: Network
    named: frozenset[Target] = frozenset()

    def with_named(self, targets: Iterable[Target]) -> Egress:
        return Egress(self.network, self.named | frozenset(targets))

    def decide(self, host: str, port: int) -> Verdict:
        host = host.lower().rstrip(".")
        if any(named.covers(host, port) for named in self.named):
            return Verdict.NAMED
        if self.network is Network.NONE or _is_here(host):
            return Verdict.REFUSED
        return Verdict.PUBLIC if self.network is Network.OPEN else Verdict.BY_PROXY


def is_public(address: str) -> bool:
    """Whether an address, without a name, is one of the public internet."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        # Other ways to write an IPv4 address.
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        # By a relay, whoever runs that: out of use, and public to some releases of Python only.
        if found.sixtofour is not None or found.teredo is not None:
            return False
        if found in _NAT64:
            return is_public(str(ipaddress.IPv4Address(found.packed[-4:])))
        if found not in _GLOBAL_UNICAST:
            return False
    return found.is_global and not found.is_multicast and found not in OF_THE_PLATFORM


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: All that has ever been given out. Outside are old ways to write IPv4 addresses, and of networks without a number.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")


def _is_here(host: str) -> bool:
    """Names and literal addresses of this machine and of private networks, in every way a resolver reads them."""
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        return True
    if host[-1:].isdigit() or host.rpartition(".")[2].startswith("0x"):
        # `127.1`, `0x7f.1` and `2130706433` are addresses, too, of the old notation. Nobody needs it.
        return not is_public(host)
    return ":" in host and not is_public(host)
