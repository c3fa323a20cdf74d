"""A client that does not take what is there for it: how long it may, and that it is cut off.

As long as it does not, its runtimes are not read for it.
"""

from __future__ import annotations

import asyncio

import structlog

from aerodrome.errors import Capacity
from aerodrome.gateway.limits import GatewayLimits
from aerodrome.runtime.frames import FrameConnection

log = structlog.get_logger(__name__)

#: Bytes a second. A client that takes less of what waits for it is cut off.
_LEAST_RATE = 64 * 1024


class Slowness:
    """Of the client at the other end of a connection."""

    def __init__(self, connection: FrameConnection, limits: GatewayLimits) -> None:
        self._connection = connection
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None

    def paused(self, paused: bool) -> None:
        """It does not keep up with what is written to it, or does again."""
        if not paused:
            self.forget()
        elif self._timer is None:
            self._watch(self._connection.buffered)

    def look(self) -> None:
        """Something was written to it."""
        if self._connection.paused and self._connection.buffered > self._limits.client_buffer:
            self._cut_off()

    def forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self, waiting: int) -> None:
        """Look again in a while whether it has taken anything of what waits for it."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.write_timeout, self._still_slow, waiting)

    def _still_slow(self, waited: int) -> None:
        waiting = self._connection.buffered
        if waited - waiting >= _LEAST_RATE * self._limits.write_timeout:
            self._watch(waiting)  # slow, but it reads
        else:
            self._cut_off()

    def _cut_off(self) -> None:
        self.forget()
        if self._connection.closed:
            return
        log.warning("gateway.client_too_slow", peer=self._connection.peer, buffered=self._connection.buffered)
        # It will not read this before what waits for it, if it ever does; whoever looks at the connection sees why.
        error = Capacity(f"this client did not take what was sent to it for {self._limits.write_timeout:g} s")
        self._connection.abort(error.detail)
