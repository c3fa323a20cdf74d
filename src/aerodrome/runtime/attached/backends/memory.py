"""Attached servers inside one process: for tests."""

from __future__ import annotations

from dataclasses import replace

from aerodrome.model import RuntimeKey
from aerodrome.runtime.attached.ports import Binding, StoredServer


class MemoryAttachStore:
    """Implements `attached.ports.AttachStore`."""

    def __init__(self) -> None:
        self._servers: dict[str, StoredServer] = {}
        #: Endpoint -> what it is attached as, whom it serves.
        self._bindings: dict[str, tuple[str, Binding]] = {}
        #: Endpoint -> what it was attached as.
        self._drained: dict[str, str] = {}

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

    async def bind(self, endpoint: str, address: str, key: RuntimeKey) -> Binding:
        return self._bindings.setdefault(endpoint, (address, Binding(key)))[1]

    async def bindings(self) -> dict[str, Binding]:
        return {endpoint: binding for endpoint, (_, binding) in self._bindings.items()}

    async def release(self, address: str, release: str, tenant: str | None = None) -> int:
        found = [
            endpoint
            for endpoint, (of, binding) in self._bindings.items()
            if address in (endpoint, of) and binding.release is None and tenant in (None, binding.key.tenant)
        ]
        for endpoint in found:
            of, binding = self._bindings[endpoint]
            self._bindings[endpoint] = of, replace(binding, release=release)
        return len(found)

    async def unbind(self, endpoint: str, release: str) -> bool:
        if endpoint not in self._bindings or self._bindings[endpoint][1].release != release:
            return False
        del self._bindings[endpoint]
        return True

    async def drain(self, endpoint: str, address: str) -> None:
        self._drained[endpoint] = address

    async def undrain(self, address: str, *, endpoints: bool = True) -> bool:
        found = [
            endpoint for endpoint, of in self._drained.items() if address == of or (endpoints and address == endpoint)
        ]
        for endpoint in found:
            del self._drained[endpoint]
        return bool(found)

    async def drained(self) -> frozenset[str]:
        return frozenset(self._drained)
