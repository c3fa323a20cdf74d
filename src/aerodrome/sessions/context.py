"""What every session of a node shares: its stores, its runtimes, its rules."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aerodrome._util.clock import Clock
from aerodrome._util.patience import Patience
from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.ports import Directory, Lease, Leases, Membership
from aerodrome.errors import AerodromeError, StoreUnavailable
from aerodrome.events import SessionEvent, host_event
from aerodrome.model import Isolation, OnBusy, RuntimeKey, SessionKey, SessionRow
from aerodrome.policy.session_params import Credentials, ToolPolicy
from aerodrome.runtime.ports import Runtimes
from aerodrome.sessions.admission import TurnAdmission
from aerodrome.sessions.ports import Ledger
from aerodrome.sessions.quarantine import Suspicions
from aerodrome.sessions.residents import Residents
from aerodrome.sessions.returns import give_back
from aerodrome.statestore.ports import SessionFileStore, SharedVolume
from aerodrome.telemetry import SILENT, Telemetry


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Times in seconds."""

    idle_timeout: float = 1800.0
    ttl: float = 30 * 86400.0
    on_busy: OnBusy = OnBusy.ENQUEUE
    #: Abort the turn of a caller that has gone away.
    cancel_on_disconnect: bool = False
    #: How long a permission or user-input request stays open before it gets the safe default.
    request_timeout: float = 900.0
    #: Prompts waiting in one session.
    max_queued: int = 100
    turn_timeout: float = 3600.0
    #: How long the runtime may take to end an aborted turn before the session is taken from it.
    abort_timeout: float = 10.0
    max_prompt: int = 6 << 20
    #: Characters of stored history from which on a session's readers are warned, and from which on it is not loaded.
    large_history: int = 8 << 20
    max_history: int = 48 << 20
    #: Bytes a reader of events may be behind.
    reader_bytes: int = 4 << 20
    default_isolation: Isolation = Isolation.TENANT
    isolation: dict[str, Isolation] = field(default_factory=dict)
    tools: ToolPolicy = field(default_factory=ToolPolicy)

    def isolation_of(self, tenant: str) -> Isolation:
        return self.isolation.get(tenant, self.default_isolation)


@dataclass(frozen=True, slots=True)
class SessionContext:
    options: SessionOptions
    directory: Directory
    leases: Leases
    membership: Membership
    ledger: Ledger
    files: SessionFileStore
    pool: Runtimes
    clock: Clock
    #: By tenant.
    credentials: Callable[[str], Credentials]
    #: The incarnation this node lives in now.
    incarnation: Callable[[], str]
    #: Whether its leases hold for certain.
    may_serve: Callable[[], bool]
    tasks: TaskOwner
    admission: TurnAdmission
    #: The places of loaded sessions.
    residents: Residents = field(default_factory=Residents)
    suspicions: Suspicions = field(default_factory=Suspicions)
    #: With the coordination store, and with the state store; what of theirs is not patient by itself asks these.
    patience: Patience = field(default_factory=lambda: Patience(0.0))
    state_patience: Patience = field(default_factory=lambda: Patience(0.0))
    #: Whether no other node lives that could run a session of ours.
    alone: Callable[[], bool] = lambda: True
    #: Whether a node that is not among the living has gone for certain. Not so for a while after this one has joined:
    #: the store may have lost its memory, and the others are about to say that they live.
    settled: Callable[[], bool] = lambda: True
    #: Set when the files lie where Copilot CLI servers write them themselves, and may leave them torn.
    volume: SharedVolume | None = None
    #: Gives other nodes a hint about a session (`sessions.hints`).
    announce: Callable[[str, SessionKey], None] = lambda kind, key: None
    telemetry: Telemetry = SILENT

    #: Called when this node has deleted a session.
    deleted: Callable[[SessionRow], None] = lambda row: None

    async def serving(self) -> None:
        """Wait until this node's leases hold for certain.

        Raises:
            StoreUnavailable: They did not within the patience.
        """
        await self.patience(self._check_serving)

    async def _check_serving(self) -> None:
        if not self.may_serve():
            raise StoreUnavailable("this node cannot reach its coordination store", retry_after=1.0)

    def host_event(self, event_type: str, data: dict[str, Any]) -> SessionEvent:
        now = datetime.fromtimestamp(self.clock.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return host_event(event_type, data, event_id=str(uuid.uuid4()), timestamp=now)

    def later(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any] | None:
        """Bookkeeping that nobody waits for. ``None``: the node has stopped, and with it the bookkeeping."""
        return self.tasks.start_if_open(work, name, expected=AerodromeError)

    def release_lease(self, lease: Lease) -> None:
        """In the background, however long the store is away."""
        ours = lambda: lease.incarnation == self.incarnation()  # noqa: E731
        self.later(give_back(lambda: self.leases.release(lease), ours), "release lease")


def runtime_key(row: SessionRow) -> RuntimeKey:
    return RuntimeKey(row.key.tenant, row.owner if row.isolation is Isolation.USER else None)
