"""Names turned into addresses by the system."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

#: Seconds that the system's resolver may take; some wait for half a minute.
TIMEOUT = 10.0


class SystemResolver:
    """Implements `attached.ports.Resolver`."""

    async def resolve(self, host: str) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(TIMEOUT):  # raises a kind of OSError
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return sorted({str(address[0]) for *_, address in found})
