"""Attached servers in PostgreSQL."""

from __future__ import annotations

import secrets
from dataclasses import asdict

from aerodrome._util.migrations import PostgresSchema
from aerodrome._util.postgres import Postgres
from aerodrome._util.queries import load_queries
from aerodrome.model import RuntimeKey
from aerodrome.runtime.attached.ports import Binding, StoredServer


class PostgresAttachStore:
    """Implements `attached.ports.AttachStore` on a `Postgres` that its maker opens and closes."""

    def __init__(self, database: Postgres) -> None:
        self._database = database
        self._queries = load_queries(__package__, "postgresql_attached.sql")

    @staticmethod
    def schema() -> PostgresSchema:
        return PostgresSchema.load("attached", __package__)

    async def open(self) -> None:
        """See that the tables are there and suit. The database must be open. Raises `ConfigError`."""
        await self.schema().ensure(self._database)

    async def aclose(self) -> None:
        """Nothing to do: the database belongs to whoever opened it."""

    async def attach(self, server: StoredServer) -> bool:
        values = {**asdict(server), "write": secrets.randbits(62) + 1}
        return (await self._database.execute(self._queries["attach"], values)).count == 1

    async def detach(self, address: str) -> bool:
        gone = await self._database.execute(self._queries["detach"], {"address": address})
        return gone.count == 1 or gone.repeated

    async def attached(self) -> list[StoredServer]:
        return [StoredServer(*row) for row in (await self._database.execute(self._queries["attached"], {})).rows]

    async def bind(self, endpoint: str, address: str, key: RuntimeKey) -> Binding:
        values = {"endpoint": endpoint, "address": address, "tenant": key.tenant, "user": key.user}
        row = (await self._database.execute(self._queries["bind"], values)).row
        assert row is not None
        return Binding(RuntimeKey(*row[:2]), row[2])

    async def bindings(self) -> dict[str, Binding]:
        rows = (await self._database.execute(self._queries["bindings"], {})).rows
        return {endpoint: Binding(RuntimeKey(tenant, user), release) for endpoint, tenant, user, release in rows}

    async def release(self, address: str, release: str, tenant: str | None = None) -> int:
        values = {"address": address, "release": release, "tenant": tenant}
        return (await self._database.execute(self._queries["release"], values)).count

    async def unbind(self, endpoint: str, release: str) -> bool:
        gone = await self._database.execute(self._queries["unbind"], {"endpoint": endpoint, "release": release})
        return gone.count == 1 or gone.repeated

    async def drain(self, endpoint: str, address: str) -> None:
        await self._database.execute(self._queries["drain"], {"endpoint": endpoint, "address": address})

    async def undrain(self, address: str, *, endpoints: bool = True) -> bool:
        values = {"address": address, "endpoints": endpoints}
        gone = await self._database.execute(self._queries["undrain"], values)
        return gone.count > 0 or gone.repeated

    async def drained(self) -> frozenset[str]:
        return frozenset(row[0] for row in (await self._database.execute(self._queries["drained"], {})).rows)
