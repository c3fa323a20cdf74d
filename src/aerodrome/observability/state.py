"""How a node stands at one moment: what is looked at when metrics are read, and not told while it happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NodeState:
    version: str
    cli_version: str
    accepting: bool
    draining: bool
    #: Loaded ones, by state.
    sessions: Mapping[str, int] = field(default_factory=dict)
    turns_in_progress: int = 0
    turns_queued: int = 0
    users_active: int = 0
    leases_held: int = 0
    #: By state.
    runtimes: Mapping[str, int] = field(default_factory=dict)
    runtimes_limit: int = 0
    #: By state.
    attached: Mapping[str, int] = field(default_factory=dict)
    places_used: int = 0
    places_limit: int = 0
    #: Resident memory of each, in bytes.
    runtime_memory: tuple[int, ...] = ()
    http_connections: int = 0
    event_streams: int = 0
    gateway_clients: int = 0
    #: Seconds.
    heartbeat_age: float = 0.0
    heartbeat_ttl: float = 0.0
