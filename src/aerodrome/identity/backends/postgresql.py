"""API keys in PostgreSQL."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from aerodrome._util.migrations import PostgresSchema
from aerodrome._util.postgres import Postgres
from aerodrome._util.queries import load_queries
from aerodrome.identity.ports import KeyInfo, StoredKey


class PostgresKeyStore:
    """Implements `identity.ports.KeyStore` on a `Postgres` that its maker opens and closes."""

    def __init__(self, database: Postgres) -> None:
        self._database = database
        self._queries = load_queries(__package__, "postgresql_keys.sql")

    @staticmethod
    def schema() -> PostgresSchema:
        return PostgresSchema.load("keys", __package__)

    async def open(self) -> None:
        """See that the tables are there and suit. The database must be open. Raises `ConfigError`."""
        await self.schema().ensure(self._database)

    async def aclose(self) -> None:
        """Nothing to do: the database belongs to whoever opened it."""

    async def insert(self, key: StoredKey) -> bool:
        info = key.info
        values = {
            "id": info.id,
            "tenant": info.tenant,
            "user": info.user,
            "roles": json.dumps(sorted(info.roles)),
            "label": info.label,
            "created_at": info.created_at,
            "digest": key.digest,
            "write": secrets.randbits(62) + 1,
        }
        return (await self._database.execute(self._queries["insert"], values)).count == 1

    async def get(self, key_id: str) -> StoredKey | None:
        row = (await self._database.execute(self._queries["get"], {"id": key_id})).row
        return None if row is None else StoredKey(_info(row[:-1]), row[-1])

    async def list(self, tenant: str | None = None) -> list[KeyInfo]:
        query = self._queries["list" if tenant is None else "list_of"]
        return [_info(row) for row in (await self._database.execute(query, {"tenant": tenant})).rows]

    async def remove(self, key_id: str) -> bool:
        gone = await self._database.execute(self._queries["remove"], {"id": key_id})
        return gone.count == 1 or gone.repeated


def _info(row: Sequence[Any]) -> KeyInfo:
    key_id, tenant, user, roles, label, created_at = row
    return KeyInfo(key_id, tenant, user, frozenset(json.loads(roles)), label, created_at)
