"""What identity needs from a store: the API keys that were issued, each with a digest and never with a secret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """An issued API key, without its secret."""

    id: str
    tenant: str
    user: str
    roles: frozenset[str]
    label: str | None
    #: Unix seconds.
    created_at: float


@dataclass(frozen=True, slots=True)
class StoredKey:
    info: KeyInfo
    #: SHA-256 of the whole key.
    digest: bytes


class KeyStore(Protocol):
    """All methods raise `StoreUnavailable` when the store can not be used."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    async def insert(self, key: StoredKey) -> bool:
        """``False``: the id is taken; nothing is changed."""
        ...

    async def get(self, key_id: str) -> StoredKey | None: ...

    async def list(self, tenant: str | None = None) -> list[KeyInfo]:
        """Keys of a tenant or of all, the oldest first."""
        ...

    async def remove(self, key_id: str) -> bool:
        """``False``: there is no such key."""
        ...
