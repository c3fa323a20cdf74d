"""Bounds on what one native client may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    #: Connections at the same time, of those who have said who they are.
    max_clients: int = 10_000
    #: Of one user of one tenant.
    max_clients_per_user: int = 1_000
    #: Connections of those who have not; past it the one that has been silent longest goes.
    max_strangers: int = 256
    #: Bytes of one frame, in both directions.
    max_frame: int = 64 * 1024 * 1024
    #: Bytes of one frame, and of all unanswered requests together, of a client that has not said who it is.
    stranger_frame: int = 64 * 1024
    #: Requests of one client that are not answered yet, and their bytes.
    max_requests: int = 1_000
    request_bytes: int = 96 * 1024 * 1024
    #: Seconds in which a new connection must have authenticated.
    connect_timeout: float = 30.0
    #: Seconds in which a client that has something to fetch must take it; until then nothing more is read for it.
    write_timeout: float = 30.0
    #: Bytes that may wait for one client; past it the connection is cut at once.
    client_buffer: int = 96 * 1024 * 1024
    #: Seconds between two looks at whether the credentials of the connected are still good.
    recheck: float = 10.0
