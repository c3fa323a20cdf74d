"""What the HTTP front door needs from others, beside `aerodrome.sessions.api.Sessions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from aerodrome.coordination.ports import Node
from aerodrome.model import Principal
from aerodrome.operators.administration import Retirement
from aerodrome.operators.requests import Verb
from aerodrome.runtime.attached.ports import StoredServer


class Authenticator(Protocol):
    async def authenticate(self, key: str) -> Principal:
        """The principal of a bearer credential.

        Raises:
            Unauthenticated: Nobody issued it, or it was revoked.
            StoreUnavailable: It could not be looked up.
        """
        ...


class Metrics(Protocol):
    def allows(self, credential: str) -> bool:
        """Whether this is the token with which the metrics may be read."""
        ...

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics as they stand now, and the media type of that.

        Args:
            accept: The header `Accept` of whoever asks.
        """
        ...


class Readiness(Protocol):
    def ready(self) -> tuple[bool, str]:
        """Whether this node accepts work, and in one sentence why (not).

        Raises:
            Draining: It is about to stop.
        """
        ...


class AttachedServers(Protocol):
    """See `runtime.attached.admin.AttachAdmin`."""

    async def attach(self, server: StoredServer) -> StoredServer:
        """Raises `Invalid` or `Conflict`."""
        ...

    async def detach(self, address: str, tenant: str | None = None) -> None:
        """Raises `NotFound`."""
        ...

    async def undrain(self, address: str) -> None:
        """Raises `Invalid` or `NotFound`."""
        ...

    async def servers(self, tenant: str | None = None) -> list[dict[str, Any]]: ...


class Administration(Protocol):
    """What operators ask for (`aerodrome.operators.administration`, which says what is raised)."""

    async def nodes(self) -> Sequence[dict[str, Any]]: ...

    async def runtimes(self) -> Sequence[dict[str, Any]]: ...

    async def retire(self, runtime_id: str, verb: Verb, *, wait: float | None = None) -> Retirement: ...

    async def drain_node(self, wanted: str) -> Node: ...
