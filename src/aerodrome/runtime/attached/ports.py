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

    async def bind(self, endpoint: str, address: str, key: RuntimeKey) -> RuntimeKey:
        """Give the server to whom it is for from now on, unless it is somebody's already. Returns whose it is.

        Args:
            endpoint: Its IP address and port: what is bound is the process that listens there.
            address: What it is attached as.
        """
        ...

    async def bindings(self) -> dict[str, RuntimeKey]:
        """Endpoint -> whom it serves."""
        ...

    async def unbind(self, address: str) -> int:
        """Forget whom the servers of this address, or of this endpoint, served. Returns how many there were."""
        ...


class Resolver(Protocol):
    async def resolve(self, host: str) -> Sequence[str]:
        """The IP addresses of a name, or the address itself.

        Raises:
            OSError: It cannot be resolved now.
        """
        ...
