"""Bodies of a client that take too long to be read in the event loop: they are read in a thread, and what comes behind
them waits for them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from aerodrome.gateway.bodies import read
from aerodrome.wire import envelope

if TYPE_CHECKING:
    from aerodrome.gateway.client import GatewayClient

#: Bytes from which on a body is read in a thread.
_LARGE = 256 * 1024


class LargeBodies:
    """Those of one client. As long as there are any it is not read (`reading`)."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client
        self._unread: deque[bytes] = deque()
        self.reading = False

    def takes(self, body: bytes) -> bool:
        """Whether it is to be read here, now or behind those that are."""
        if not self.reading and len(body) <= _LARGE:
            return False
        self._unread.append(body)
        if not self.reading:
            self.reading = self._client.start(self._read_all(), "read") is not None
            self._client.regulate()
        return True

    async def _read_all(self) -> None:
        client = self._client
        try:
            while self._unread and not client.gone:
                await self._read(self._unread.popleft())
        except Exception:
            client.drop("a message could not be handled")  # as the event loop does with what fails there
            raise
        finally:
            self._unread.clear()
            self.reading = False
            client.regulate()

    async def _read(self, body: bytes) -> None:
        client = self._client
        try:
            incoming = await asyncio.to_thread(read, body) if len(body) > _LARGE else read(body)
        except envelope.EnvelopeError as error:
            client.run(client.router.unreadable(error))
        else:
            client.run(client.router.take(incoming))
