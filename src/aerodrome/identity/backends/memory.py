"""API keys inside one process: for tests, and for an embedded fleet that keeps nothing."""

from __future__ import annotations

from aerodrome.identity.ports import KeyInfo, StoredKey


class MemoryKeyStore:
    """Implements `identity.ports.KeyStore`."""

    def __init__(self) -> None:
        self._keys: dict[str, StoredKey] = {}

    async def open(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    async def insert(self, key: StoredKey) -> bool:
        return self._keys.setdefault(key.info.id, key) is key

    async def get(self, key_id: str) -> StoredKey | None:
        return self._keys.get(key_id)

    async def list(self, tenant: str | None = None) -> list[KeyInfo]:
        infos = (key.info for key in self._keys.values())
        return sorted(
            (info for info in infos if tenant is None or info.tenant == tenant),
            key=lambda info: (info.created_at, info.id),
        )

    async def remove(self, key_id: str) -> bool:
        return self._keys.pop(key_id, None) is not None
