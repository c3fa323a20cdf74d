"""Attached servers inside one process: for tests."""

from __future__ import annotations

from aerodrome.model import RuntimeKey
from aerodrome.runtime.attached.ports import StoredServer


class MemoryAttachStore:
    """Implements `attached.ports.AttachStore`."""

    def __init__(self) -> None:
        self._servers: dict[str, StoredServer] = {}
        #: Endpoint -> what it is attached as, whom it serves.
        self._bindings: dict[str, tuple[str, RuntimeKey]] = {}

    async def open(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    async def attach(self, server: StoredServer) -> bool:
        return self._servers.setdefault(server.address, server) is server

    async def detach(self, address: str) -> bool:
        return self._servers.pop(address, None) is not None

    async def attached(self) -> list[StoredServer]:
        return [self._servers[address] for address in sorted(self._servers)]

    async def bind(self, endpoint: str, address: str, key: RuntimeKey) -> RuntimeKey:
        return self._bindings.setdefault(endpoint, (address, key))[1]

    async def bindings(self) -> dict[str, RuntimeKey]:
        return {endpoint: key for endpoint, (_, key) in self._bindings.items()}

    async def unbind(self, address: str) -> int:
        found = [endpoint for endpoint, (of, _) in self._bindings.items() if address in (endpoint, of)]
        for endpoint in found:
            del self._bindings[endpoint]
        return len(found)
