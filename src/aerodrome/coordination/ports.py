"""What the rest of Aerodrome needs from a coordination store. Adapters live in `backends/`.

**Leases and epochs.** A lease is the exclusive right of one node incarnation to run a session. It is valid
while that incarnation is alive, which is a matter of the node's one heartbeat, not of the lease: a turn of an
hour needs no renewal, and a thousand sessions cost no more heartbeats than one (traps 6-8). Each acquisition
gets an epoch greater than any before, also when the same node acquires again; the epoch is the fencing token
that the state store checks. The store may lose its memory: the caller passes the floor it knows from the
state store, and the new epoch is above both.

**What may be lost.** Everything in `Coordination` is about the living: a store that has been emptied is filled again
by those who are there. The `Directory` is what a user's sessions are found by, so that it is durable and lies with the
state (ADR 0018).

Races lost are return values. `StoreUnavailable` means that the store could not be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from aerodrome.model import LastTurn, Role, SessionKey, SessionRow, SessionState


@dataclass(frozen=True, slots=True)
class Node:
    """One aerodrome process in one life: a restarted process is another incarnation."""

    name: str
    incarnation: str
    #: ``HOST:PORT`` where other nodes reach its gateway; empty when they cannot.
    address: str = ""
    #: What the node last said of itself with a heartbeat, for operators: `runtimes`, `sessions`, `draining`.
    load: dict[str, Any] = field(default_factory=dict)
    #: What another node proves itself with at this one's gateway. Made for each incarnation; whoever can read the
    #: coordination store is a node.
    peer_token: str = field(default="", repr=False)


class Beat(StrEnum):
    """What the store answers a heartbeat."""

    #: It holds the incarnation for dead or does not know it: join as a new one.
    DEAD = "dead"
    ALIVE = "alive"
    #: Alive, and somebody has asked the node to drain.
    DRAIN = "drain"


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

    async def heartbeat(self, incarnation: str, load: dict[str, Any] | None = None) -> Beat:
        """Prolong it, and replace what the node says of itself if `load` is given."""
        ...

    async def leave(self, incarnation: str) -> None:
        """End it at once; its leases are free."""
        ...

    async def nodes(self) -> list[Node]:
        """The living ones, by name."""
        ...

    async def ask_to_drain(self, incarnation: str) -> bool:
        """Have the incarnation told with its next heartbeat. ``False``: it is not alive."""
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

    async def holders(self, keys: Sequence[SessionKey]) -> Mapping[SessionKey, Lease]:
        """The valid leases of these sessions, in one round trip; sessions that nobody holds are left out."""
        ...

    async def forget(self, lease: Lease) -> bool:
        """Give it back, and remove every trace of the session but a floor for the epochs of later ones: for deletion.

        ``False``: it was no longer ours (nothing is changed).
        """
        ...

    async def clear_dead(self) -> int:
        """Give back what incarnations that are not alive have: their leases, of which the epochs are remembered, and
        their places (`Limits`). Returns how many leases.

        Nothing depends on it: all that is free anyway. It keeps what is stored of the dead from piling up.
        """
        ...


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """A hint to all nodes that something has changed."""

    #: See `sessions.hints` and `identity.keys` for those there are.
    kind: str
    #: What it is about, such as a session's key as text or the id of an API key.
    subject: str
    #: Incarnation of the node that says so; empty when it is none, such as a command.
    node: str = ""


class ClusterEvents(Protocol):
    """Hints only: one that is lost costs latency, never correctness. They arrive at the node that sent them, too."""

    async def publish(self, event: ClusterEvent) -> None:
        """Tell every node. Raises `StoreUnavailable`."""
        ...

    def listen(self, callback: Callable[[ClusterEvent], None]) -> Callable[[], None]:
        """Have `callback` called, on the loop, with each event from now on; returns what ends that."""
        ...


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` admissions in `period` seconds under this name, in bursts of up to `limit`."""

    name: str
    limit: int
    period: float


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `limit` places taken at the same time under this name."""

    name: str
    limit: int


@dataclass(frozen=True, slots=True)
class Admission:
    #: The rate that is used up. Then nothing has been counted, and no place taken.
    exceeded: Rate | None = None
    #: Seconds until that rate admits one more.
    retry_after: float = 0.0
    #: The cap that left no place, if any; the rates have been counted all the same.
    full: Cap | None = None


class Limits(Protocol):
    """Rates and concurrent places that hold over all nodes."""

    async def admit(
        self, place: str, incarnation: str, *, rates: Sequence[Rate] = (), caps: Sequence[Cap] = ()
    ) -> Admission:
        """Count one admission under every rate, and take a place under every cap, atomically and in one round trip.

        A place belongs to a living incarnation: those of the dead count no more. Asking again for a place one has is
        no second place.

        Args:
            place: A name for the place taken, unique to what takes it, such as the id of a turn.
        """
        ...

    async def vacate(self, place: str, incarnation: str) -> None:
        """Give the place back under every cap under which it is this incarnation's. One that was not taken is no error:
        it may be called again until it has got through, while somebody else works on the same turn."""
        ...


class Directory(Protocol):
    """session -> who owns it, who is a member, what it was opened with, where it stands."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    async def insert(self, row: SessionRow) -> SessionRow | None:
        """Add the row, its members too, if the key is free: ``None``. Else nothing is changed and the present row is
        returned."""
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
        """Change the named columns. ``False``: there is no such row. `last_used_at` never goes back.

        Of `state`, `last_used_at` and `last_turn`, which change with every turn, a power failure may take back the last
        moments: nobody is told that they are stored.
        """
        ...

    async def set_member(self, key: SessionKey, user: str, role: Role | None) -> SessionRow | None:
        """Make the user a member in this role, or (`role` is None) no member; returns the row as it is then.

        ``None``: there is no such session. The owner is not a member: see to that before.
        """
        ...

    async def remove(self, key: SessionKey, created_at: float) -> bool:
        """Remove the row that was made at that time, and its members. ``False``: there is none, or another one that was
        opened under the same id since (ADR 0021)."""
        ...

    async def list(
        self, tenant: str | None, *, user: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page:
        """Rows by last use, the latest first. `tenant` ``None``: of all tenants, for operators.

        Args:
            user: Only sessions of which this user is owner or member.

        Raises:
            Invalid: `cursor` was not returned by an earlier call.
        """
        ...

    async def unused_since(self, before: float, limit: int = 100, *, skip: int = 0) -> Sequence[SessionRow]:
        """Rows whose last *use* is before that time, the oldest first (trap 14). Some may be in a turn: see to that
        with their lease.

        Args:
            skip: How many of the oldest to leave out, because they are to stay.
        """
        ...

    async def count(self, tenant: str | None = None) -> int: ...


class Coordination(Membership, Leases, ClusterEvents, Limits, Protocol):
    """The whole port: what an adapter implements."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...
