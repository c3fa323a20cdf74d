"""What attached servers need from others: names turned into addresses, and a memory that all nodes share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aerodrome.model import RuntimeKey


@dataclass(frozen=True, slots=True)
class StoredServer:
    """A server that was attached at run time."""

    #: `HOST:PORT`; there is one of each.
    address: str
    tenant: str
    #: Name of its token in `runtime.attach_tokens`; the token itself is stored nowhere.
    token: str | None = None
    weight: float = 1.0
    max_sessions: int | None = None
    workspace: str | None = None
    #: Unix seconds.
    attached_at: float = 0.0
    attached_by: str = ""


@dataclass(frozen=True, slots=True)
class Binding:
    """Whom a server serves."""

    key: RuntimeKey
    #: Identifies the detaching that is under way: nobody gets sessions on the server any more, and it is nobody else's
    #: as long as any node holds something in it.
    release: str | None = None


class AttachStore(Protocol):
    """Servers attached at run time, and whom each server serves. All methods raise `StoreUnavailable`."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    async def attach(self, server: StoredServer) -> bool:
        """``False``: this address is attached already; nothing is changed."""
        ...

    async def detach(self, address: str) -> bool:
        """``False``: it was not attached."""
        ...

    async def attached(self) -> list[StoredServer]:
        """By address."""
        ...

    async def bind(self, endpoint: str, address: str, key: RuntimeKey) -> Binding:
        """Give the server to whom it is for from now on, unless it is somebody's already. Returns whose it is.

        Args:
            endpoint: Its IP address and port: what is bound is the process that listens there.
            address: What it is attached as.
        """
        ...

    async def bindings(self) -> dict[str, Binding]:
        """Endpoint -> whom it serves."""
        ...

    async def release(self, address: str, release: str, tenant: str | None = None) -> int:
        """Begin to forget whom the servers of this address, or of this endpoint, serve. Returns for how many this is
        new.

        Args:
            release: Chosen by the caller, and not used before.
            tenant: Only those that serve this tenant.
        """
        ...

    async def unbind(self, endpoint: str, release: str) -> bool:
        """Forget whom the server has served, after no node holds anything in it. ``False``: this release is over."""
        ...

    async def drain(self, endpoint: str, address: str) -> None:
        """No node shall put sessions on the server from now on. Arguments as of `bind`."""
        ...

    async def undrain(self, address: str, *, endpoints: bool = True) -> bool:
        """The servers of this address, or of this endpoint, are used again. ``False``: none was drained.

        Args:
            endpoints: ``False``: only those that were attached by this address.
        """
        ...

    async def drained(self) -> frozenset[str]:
        """Endpoints."""
        ...


class Fleet(Protocol):
    """What this node knows of the others."""

    async def has_let_go(self, endpoint: str, release: str) -> bool:
        """Whether all living nodes, this one among them, have said that they hold nothing in the server since this
        release began. Raises `StoreUnavailable`."""
        ...

    async def has_drained(self, endpoint: str) -> bool:
        """Whether all living nodes have said that they know that the server is drained, and have no sessions on it.
        Raises `StoreUnavailable`."""
        ...


class Resolver(Protocol):
    async def resolve(self, host: str) -> Sequence[str]:
        """The IP addresses of a name, or the address itself.

        Raises:
            OSError: It cannot be resolved now.
        """
        ...
