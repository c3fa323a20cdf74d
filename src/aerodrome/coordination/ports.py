"""What the rest of Aerodrome needs from a coordination store. Adapters live in `backends/`.

**Leases and epochs.** A lease is the exclusive right of one node incarnation to run a session. It is valid
while that incarnation is alive, which is a matter of the node's one heartbeat, not of the lease: a turn of an
hour needs no renewal, and a thousand sessions cost no more heartbeats than one (traps 6-8). Each acquisition
gets an epoch greater than any before, also when the same node acquires again; the epoch is the fencing token
that the state store checks. The store may lose its memory: the caller passes the floor it knows from the
state store, and the new epoch is above both.

Races lost are return values. `StoreUnavailable` means that the store could not be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aerodrome.model import LastTurn, SessionKey, SessionRow, SessionState


@dataclass(frozen=True, slots=True)
class Node:
    """One aerodrome process in one life: a restarted process is another incarnation."""

    name: str
    incarnation: str
    address: str = ""
    #: What the node last said of itself with a heartbeat, for operators: `runtimes`, `sessions`, `draining`.
    load: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lease:
    key: SessionKey
    incarnation: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing: `next` is the cursor of the following page, ``None`` at the end."""

    rows: list[SessionRow]
    next: str | None


class Membership(Protocol):
    async def join(self, node: Node, ttl: float) -> None:
        """Make the incarnation alive. `ttl`: seconds without a heartbeat after which it is dead."""
        ...

    async def heartbeat(self, incarnation: str, load: dict[str, Any] | None = None) -> bool:
        """Prolong it, and replace what the node says of itself if `load` is given.

        ``False``: the store holds it for dead or does not know it; join as a new incarnation.
        """
        ...

    async def leave(self, incarnation: str) -> None:
        """End it at once; its leases are free."""
        ...

    async def nodes(self) -> list[Node]:
        """The living ones, by name."""
        ...


class Leases(Protocol):
    async def acquire(self, key: SessionKey, incarnation: str, *, floor: int = 0) -> Lease | None:
        """Take the lease if it is free, its holder is dead, or we hold it already (then with a new epoch).

        Args:
            floor: The highest epoch the state store has seen for this session.

        Returns:
            The lease, its epoch greater than every earlier one and than `floor`; ``None`` while another
            living incarnation holds it, or when `incarnation` itself is not alive.
        """
        ...

    async def release(self, lease: Lease) -> bool:
        """Give it back; the epoch is remembered. ``False``: it was no longer ours (nothing is changed)."""
        ...

    async def holder(self, key: SessionKey) -> Lease | None:
        """The valid lease of this session, if any."""
        ...

    async def forget(self, key: SessionKey) -> None:
        """Remove every trace of the session, for deletion."""
        ...


class Directory(Protocol):
    """session -> who owns it, what it was opened with, where it stands. Read on every access."""

    async def insert(self, row: SessionRow) -> SessionRow | None:
        """Add the row if the key is free: ``None``. Else nothing is changed and the present row is returned."""
        ...

    async def get(self, key: SessionKey) -> SessionRow | None: ...

    async def update(
        self,
        key: SessionKey,
        *,
        state: SessionState | None = None,
        title: str | None = None,
        model: str | None = None,
        options: dict[str, Any] | None = None,
        last_used_at: float | None = None,
        last_turn: LastTurn | None = None,
    ) -> bool:
        """Change the named columns. ``False``: there is no such row. `last_used_at` never goes back."""
        ...

    async def remove(self, key: SessionKey) -> bool: ...

    async def list(
        self, tenant: str | None, *, owner: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page:
        """Rows by last use, the latest first. `tenant` ``None``: of all tenants, for operators.

        Raises:
            Invalid: `cursor` was not returned by an earlier call.
        """
        ...

    async def unused_since(self, before: float, limit: int = 100) -> Sequence[SessionRow]:
        """Rows whose last *use* is before that time and that are in no turn, the oldest first (trap 14).

        In a turn: its state is `running`, and a living node holds its lease; a crashed one leaves the state behind.
        """
        ...

    async def count(self, tenant: str | None = None) -> int: ...


class Coordination(Membership, Leases, Directory, Protocol):
    """The whole port: what an adapter implements."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...
