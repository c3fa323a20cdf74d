"""Whether the node at the other end of a connection is still there.

A connection whose other end has gone without a word, such as with its machine or behind a router that has forgotten it,
stands for ever. So the end that has made it asks (`ping`) in regular intervals, and both take silence for the end:
the one of the answers, the other of the questions. Who waits for something is then told, and makes a new connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aerodrome.runtime.frames import FrameConnection

#: Looks in which nothing was heard, until the connection is given up: looks and not seconds, because after a pause of
#: this process there is more to be read than has been.
_SILENT_LOOKS = 2


class Liveness:
    """Watches a connection until it is closed.

    Args:
        silence: Seconds of silence after which the other end is held for gone, and up to half as many more.
        ask: Sends something that is answered; without it the other end asks.
    """

    def __init__(self, connection: FrameConnection, silence: float, ask: Callable[[], None] | None = None) -> None:
        self._connection = connection
        self._every = silence / _SILENT_LOOKS
        self._ask = ask
        self._heard = connection.received
        self._silent = 0
        self._watch()

    def _watch(self) -> None:
        asyncio.get_running_loop().call_later(self._every, self._look)

    def _look(self) -> None:
        connection = self._connection
        if connection.closed:
            return
        if connection.received != self._heard or not connection.reading:
            # What we do not read we cannot hear.
            self._heard, self._silent = connection.received, 0
        else:
            self._silent += 1
        if self._silent >= _SILENT_LOOKS:
            connection.abort("the other node has not been heard of for too long")
            return
        if self._ask is not None:
            self._ask()
        self._watch()
