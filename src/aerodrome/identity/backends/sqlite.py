"""API keys in SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from aerodrome._util.schema import Schema
from aerodrome._util.sqlite import Database
from aerodrome.identity.ports import KeyInfo, StoredKey

_COLUMNS = "id, tenant, user, roles, label, created_at"


class SqliteKeyStore:
    """Implements `identity.ports.KeyStore` on a `Database` that its maker opens and closes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self) -> None:
        """Bring the tables up to date. The database must be open."""
        await self._database.write(Schema.load("keys", __package__).migrate)

    async def aclose(self) -> None:
        """Nothing to do: the database belongs to whoever opened it."""

    async def insert(self, key: StoredKey) -> bool:
        info = key.info
        roles = json.dumps(sorted(info.roles))
        values = (info.id, info.tenant, info.user, roles, info.label, info.created_at, key.digest)

        def insert(connection: sqlite3.Connection) -> bool:
            added = connection.execute(
                f"INSERT INTO api_key ({_COLUMNS}, digest) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                values,
            )
            return added.rowcount == 1

        return await self._database.write(insert)

    async def get(self, key_id: str) -> StoredKey | None:
        def get(connection: sqlite3.Connection) -> StoredKey | None:
            row = connection.execute(f"SELECT {_COLUMNS}, digest FROM api_key WHERE id = ?", (key_id,)).fetchone()
            return None if row is None else StoredKey(_info(row[:-1]), row[-1])

        return await self._database.read(get)

    async def list(self, tenant: str | None = None) -> list[KeyInfo]:
        where, parameters = ("", ()) if tenant is None else (" WHERE tenant = ?", (tenant,))

        def select(connection: sqlite3.Connection) -> Sequence[Sequence[Any]]:
            return connection.execute(
                f"SELECT {_COLUMNS} FROM api_key{where} ORDER BY created_at, id", parameters
            ).fetchall()

        return [_info(row) for row in await self._database.read(select)]

    async def remove(self, key_id: str) -> bool:
        def remove(connection: sqlite3.Connection) -> bool:
            return connection.execute("DELETE FROM api_key WHERE id = ?", (key_id,)).rowcount == 1

        return await self._database.write(remove)


def _info(row: Sequence[Any]) -> KeyInfo:
    key_id, tenant, user, roles, label, created_at = row
    return KeyInfo(key_id, tenant, user, frozenset(json.loads(roles)), label, created_at)
