"""Bounds on what one native client may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    #: Connections at the same time.
    max_clients: int = 10_000
    #: Bytes of one frame, in both directions.
    max_frame: int = 64 * 1024 * 1024
    #: Requests of one client that are not answered yet.
    max_requests: int = 1_000
    #: Seconds in which a new connection must have authenticated.
    connect_timeout: float = 30.0
    #: Seconds in which a client that has something to fetch must take it; until then nothing more is read for it.
    write_timeout: float = 30.0
    #: Bytes that may wait for one client; past it the connection is cut at once.
    client_buffer: int = 96 * 1024 * 1024
    #: Seconds between two looks at whether the credentials of the connected are still good.
    recheck: float = 10.0
