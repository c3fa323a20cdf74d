"""Which of the servers of one key gets a session."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from aerodrome.errors import Capacity
from aerodrome.model import PlacementStrategy
from aerodrome.placement.choose import Candidate, placement
from aerodrome.placement.outliers import OutlierOptions, Standing
from aerodrome.runtime.attached.runtime import AttachedOptions, AttachedRuntime
from aerodrome.runtime.attached.server import AttachedServer
from aerodrome.runtime.attached.standings import Standings


@dataclass(frozen=True, slots=True)
class AttachedPoolOptions:
    """Times in seconds."""

    server: AttachedOptions = field(default_factory=AttachedOptions)
    #: Resident sessions a server, where its entry says nothing else.
    max_sessions: int = 50
    capacity_timeout: float = 30.0
    #: Requests for a place that wait, of one tenant and of one user.
    max_waiting_per_tenant: int = 10_000
    max_waiting_per_user: int = 1_000
    #: Between two looks at the store and at the names.
    refresh: float = 5.0
    drain_timeout: float = 60.0
    placement: PlacementStrategy = PlacementStrategy.LEAST_LOADED
    outliers: OutlierOptions = field(default_factory=OutlierOptions)


class Places:
    def __init__(self, options: AttachedPoolOptions, standings: Standings) -> None:
        self._options = options
        self._standings = standings
        self._placement = placement(options.placement)

    def find(
        self,
        servers: Sequence[AttachedServer],
        session_id: str | None,
        user: str | None,
        besides: Collection[str] = (),
        *,
        alone: bool,
    ) -> AttachedRuntime | None:
        """One of these connected servers that has room; it counts as given to it.

        Args:
            besides: Names of those that are passed over, unless there are no others.
        """
        usable: dict[str, AttachedServer] = {}
        candidates = []
        for server in servers:
            runtime = server.runtime
            if runtime is None or runtime.lost.is_set() or session_id in runtime.letting_go:
                continue
            if runtime.alone or (alone and runtime.reserved) or not self._standings.admits(server):
                continue
            usable[server.name] = server
            candidates.append(Candidate(server.name, runtime.reserved, self._capacity(server), server.entry.weight))
        others = [candidate for candidate in candidates if candidate.id not in besides]
        chosen = self._placement.choose(others or candidates, user)
        if chosen is None:
            return None
        self._standings.placed(usable[chosen])
        return usable[chosen].runtime

    def any(self, servers: Sequence[AttachedServer]) -> bool:
        """Whether any of these connected servers has room."""
        return any(
            server.runtime is not None
            and server.runtime.reserved < self._capacity(server)
            and self._standings.standing(server) is not Standing.EJECTED
            for server in servers
        )

    def full(self, servers: Sequence[AttachedServer], retry_after: float) -> Capacity:
        """What somebody is told who has waited for these connected servers in vain."""
        ejected = [server for server in servers if self._standings.standing(server) is Standing.EJECTED]
        besides = "; ".join(f"{s.name} is ejected for a while: {self._standings.reason(s)}" for s in ejected)
        waited = f"the attached servers are full, and stayed so for {self._options.capacity_timeout:g} s"
        return Capacity(waited + (f" ({besides})" if besides else ""), retry_after=retry_after)

    def _capacity(self, server: AttachedServer) -> int:
        return server.entry.max_sessions or self._options.max_sessions
