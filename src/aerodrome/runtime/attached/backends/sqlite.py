"""Attached servers in SQLite."""

from __future__ import annotations

import sqlite3

from aerodrome._util.schema import Schema
from aerodrome._util.sqlite import Database
from aerodrome.model import RuntimeKey
from aerodrome.runtime.attached.ports import Binding, StoredServer

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

    async def bind(self, endpoint: str, address: str, key: RuntimeKey) -> Binding:
        def bind(connection: sqlite3.Connection) -> Binding:
            connection.execute(
                "INSERT INTO attached_binding (endpoint, address, tenant, user) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (endpoint) DO NOTHING",
                (endpoint, address, *key),
            )
            row = connection.execute(
                "SELECT tenant, user, release_id FROM attached_binding WHERE endpoint = ?", (endpoint,)
            ).fetchone()
            return Binding(RuntimeKey(*row[:2]), row[2])

        return await self._database.write(bind)

    async def bindings(self) -> dict[str, Binding]:
        def bindings(connection: sqlite3.Connection) -> dict[str, Binding]:
            rows = connection.execute("SELECT endpoint, tenant, user, release_id FROM attached_binding")
            return {endpoint: Binding(RuntimeKey(tenant, user), release) for endpoint, tenant, user, release in rows}

        return await self._database.read(bindings)

    async def release(self, address: str, release: str, tenant: str | None = None) -> int:
        def begin(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "UPDATE attached_binding SET release_id = ?2 WHERE (address = ?1 OR endpoint = ?1)"
                " AND release_id IS NULL AND (?3 IS NULL OR tenant = ?3)",
                (address, release, tenant),
            ).rowcount

        return await self._database.write(begin)

    async def unbind(self, endpoint: str, release: str) -> bool:
        def unbind(connection: sqlite3.Connection) -> bool:
            gone = connection.execute(
                "DELETE FROM attached_binding WHERE endpoint = ? AND release_id = ?", (endpoint, release)
            )
            return gone.rowcount == 1

        return await self._database.write(unbind)

    async def drain(self, endpoint: str, address: str) -> None:
        def drain(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO attached_drain (endpoint, address) VALUES (?, ?)"
                " ON CONFLICT (endpoint) DO UPDATE SET address = excluded.address",
                (endpoint, address),
            )

        await self._database.write(drain)

    async def undrain(self, address: str, *, endpoints: bool = True) -> bool:
        def undrain(connection: sqlite3.Connection) -> bool:
            gone = connection.execute(
                "DELETE FROM attached_drain WHERE address = ?1 OR (?2 AND endpoint = ?1)", (address, endpoints)
            )
            return gone.rowcount > 0

        return await self._database.write(undrain)

    async def drained(self) -> frozenset[str]:
        def drained(connection: sqlite3.Connection) -> frozenset[str]:
            return frozenset(endpoint for (endpoint,) in connection.execute("SELECT endpoint FROM attached_drain"))

        return await self._database.read(drained)
