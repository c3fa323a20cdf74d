"""Attached servers in SQLite."""

from __future__ import annotations

import sqlite3

from aerodrome._util.schema import Schema
from aerodrome._util.sqlite import Database
from aerodrome.model import RuntimeKey
from aerodrome.runtime.attached.ports import StoredServer

_COLUMNS = "address, tenant, token, weight, max_sessions, workspace, attached_at, attached_by"


class SqliteAttachStore:
    """Implements `attached.ports.AttachStore` on a `Database` that its maker opens and closes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self) -> None:
        """Bring the tables up to date. The database must be open."""
        await self._database.write(Schema.load("attached", __package__).migrate)

    async def aclose(self) -> None:
        """Nothing to do: the database belongs to whoever opened it."""

    async def attach(self, server: StoredServer) -> bool:
        values = tuple(getattr(server, name) for name in _COLUMNS.split(", "))

        def attach(connection: sqlite3.Connection) -> bool:
            added = connection.execute(
                f"INSERT INTO attached_server ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (address) DO NOTHING",
                values,
            )
            return added.rowcount == 1

        return await self._database.write(attach)

    async def detach(self, address: str) -> bool:
        def detach(connection: sqlite3.Connection) -> bool:
            return connection.execute("DELETE FROM attached_server WHERE address = ?", (address,)).rowcount == 1

        return await self._database.write(detach)

    async def attached(self) -> list[StoredServer]:
        def attached(connection: sqlite3.Connection) -> list[StoredServer]:
            return [
                StoredServer(*row)
                for row in connection.execute(f"SELECT {_COLUMNS} FROM attached_server ORDER BY address")
            ]

        return await self._database.read(attached)

    async def bind(self, endpoint: str, address: str, key: RuntimeKey) -> RuntimeKey:
        def bind(connection: sqlite3.Connection) -> RuntimeKey:
            connection.execute(
                "INSERT INTO attached_binding (endpoint, address, tenant, user) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (endpoint) DO NOTHING",
                (endpoint, address, *key),
            )
            row = connection.execute("SELECT tenant, user FROM attached_binding WHERE endpoint = ?", (endpoint,))
            return RuntimeKey(*row.fetchone())

        return await self._database.write(bind)

    async def bindings(self) -> dict[str, RuntimeKey]:
        def bindings(connection: sqlite3.Connection) -> dict[str, RuntimeKey]:
            rows = connection.execute("SELECT endpoint, tenant, user FROM attached_binding")
            return {endpoint: RuntimeKey(tenant, user) for endpoint, tenant, user in rows}

        return await self._database.read(bindings)

    async def unbind(self, address: str) -> int:
        def unbind(connection: sqlite3.Connection) -> int:
            gone = connection.execute("DELETE FROM attached_binding WHERE address = ?1 OR endpoint = ?1", (address,))
            return gone.rowcount

        return await self._database.write(unbind)
