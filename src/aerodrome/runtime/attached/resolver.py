"""Names turned into addresses by the system."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

#: Seconds that the system's resolver may take; some wait for half a minute.
TIMEOUT = 10.0


class SystemResolver:
    """Implements `attached.ports.Resolver`.

    A name with IPv4 and IPv6 addresses leads to each of its servers twice. One of the families is used: the one that
    the system prefers, and as long as the name has addresses of it the same one, whatever the system prefers later. Two
    endpoints for one process would be two servers, for two users perhaps.
    """

    def __init__(self) -> None:
        self._families: dict[str, int] = {}

    async def resolve(self, host: str) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(TIMEOUT):  # raises a kind of OSError
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        families = [family for family, *_ in found]
        if families and self._families.get(host) not in families:
            self._families[host] = families[0]
        return sorted({str(address[0]) for family, *_, address in found if family == self._families[host]})
