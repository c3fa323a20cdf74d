"""The directory in PostgreSQL."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from aerodrome._util.migrations import PostgresSchema
from aerodrome._util.postgres import Postgres, Transaction
from aerodrome._util.queries import load_queries
from aerodrome._util.surrogates import to_blob
from aerodrome.coordination.backends import cursor as cursors
from aerodrome.coordination.backends.rows import COLUMNS, row_of, values_of
from aerodrome.coordination.ports import Page
from aerodrome.errors import StoreUnavailable
from aerodrome.model import LastTurn, Role, SessionKey, SessionRow, SessionState

#: The members come as one JSON object, so that a row is one row.
_MEMBERS = (
    "(SELECT json_object_agg(m.user_name, m.role)::text FROM member AS m"
    " WHERE m.tenant = s.tenant AND m.session = s.id)"
)
_ROW = f"{', '.join(f's.{name}' for name in COLUMNS)}, {_MEMBERS}"
#: Behind the cursor's place. The first term is implied by the second, and is the one an index can be started at.
_AFTER = "s.last_used_at <= %(at)s AND (s.last_used_at < %(at)s OR (s.id, s.tenant) > (%(after_id)s, %(after_tenant)s))"


class PostgresDirectory:
    """Implements `coordination.ports.Directory` on a `Postgres` that its maker opens and closes."""

    def __init__(self, database: Postgres) -> None:
        self._database = database
        queries = load_queries(__package__, "postgresql_directory.sql")
        self.queries = {name: query.replace("{row}", _ROW) for name, query in queries.items()}

    @staticmethod
    def schema() -> PostgresSchema:
        return PostgresSchema.load("directory", __package__)

    async def open(self) -> None:
        """See that the tables are there and suit. The database must be open. Raises `ConfigError`."""
        await self.schema().ensure(self._database)

    async def aclose(self) -> None:
        """Nothing to do: the database belongs to whoever opened it."""

    async def insert(self, row: SessionRow) -> SessionRow | None:
        values = _values(row) | {"write": secrets.randbits(62) + 1}
        # More than once only when the row in the way has gone before it could be looked at.
        for _ in range(3):
            if (await self._database.execute(self.queries["insert"], values)).count == 1:
                return None
            present = (await self._database.execute(self.queries["inserted"], _named(row.key))).row
            if present is not None:
                # A first attempt whose answer was lost may have made it.
                return None if present[-1] == values["write"] else _row(present[:-1])
        raise StoreUnavailable(f"session {row.key} comes and goes too fast", retry_after=1.0)

    async def get(self, key: SessionKey) -> SessionRow | None:
        found = (await self._database.execute(self.queries["get"], _named(key))).row
        return None if found is None else _row(found)

    async def update(
        self,
        key: SessionKey,
        *,
        state: SessionState | None = None,
        title: str | None = None,
        model: str | None = None,
        options: dict[str, Any] | None = None,
        last_used_at: float | None = None,
        last_turn: LastTurn | None = None,
    ) -> bool:
        changes: dict[str, Any] = {
            "state": None if state is None else state.value,
            "title": None if title is None else to_blob(title),
            "model": None if model is None else to_blob(model),
            "options": None if options is None else json.dumps(options),
            "last_used_at": last_used_at,
            "last_turn_id": None if last_turn is None else last_turn.id,
            "last_turn_status": None if last_turn is None else last_turn.status.value,
        }
        if all(value is None for value in changes.values()):
            return await self.get(key) is not None
        changed = await self._database.execute(self.queries["update"], _named(key, **changes))
        return changed.count == 1

    async def set_member(self, key: SessionKey, user: str, role: Role | None) -> SessionRow | None:
        async def set_member(transaction: Transaction) -> tuple[Any, ...] | None:
            if role is None:
                await transaction.execute(self.queries["remove_member"], _named(key, user=user))
            else:
                await transaction.execute(self.queries["set_member"], _named(key, user=user, role=role.value))
            return (await transaction.execute(self.queries["get"], _named(key))).row

        found = await self._database.write(set_member)
        return None if found is None else _row(found)

    async def remove(self, key: SessionKey, created_at: float) -> bool:
        # Members go with it (ON DELETE CASCADE).
        gone = await self._database.execute(self.queries["remove"], _named(key, created_at=created_at))
        return gone.count == 1 or gone.repeated

    async def list(
        self, tenant: str | None, *, user: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page:
        cursors.check_limit(limit)
        query, parameters = self.listing(tenant, user, cursor, limit)
        rows = sorted(
            (_row(found) for found in (await self._database.execute(query, parameters)).rows), key=cursors.rank
        )
        more = cursors.encode(cursors.place_of(rows[limit - 1])) if len(rows) > limit else None
        return Page(rows[:limit], more)

    def listing(
        self, tenant: str | None, user: str | None, cursor: str | None, limit: int
    ) -> tuple[str, dict[str, Any]]:
        """The statement for a page and the row after it, in the listing's order but for the union over a user."""
        parameters: dict[str, Any] = {"tenant": tenant, "user": user, "limit": limit + 1}
        if user is not None:
            name = "list_of_user_anywhere" if tenant is None else "list_of_user"
        else:
            name = "list" if tenant is None else "list_of_tenant"
        if cursor is None:
            return self.queries[name].replace("{after}", "true"), parameters
        place = cursors.decode(cursor)
        parameters |= {"at": place.last_used_at, "after_id": place.id, "after_tenant": place.tenant}
        return self.queries[name].replace("{after}", _AFTER), parameters

    async def unused_since(self, before: float, limit: int = 100, *, skip: int = 0) -> Sequence[SessionRow]:
        cursors.check_limit(limit)
        parameters = {"before": before, "limit": limit, "skip": skip}
        found = await self._database.execute(self.queries["unused_since"], parameters)
        return [_row(values) for values in found.rows]

    async def count(self, tenant: str | None = None) -> int:
        query = self.queries["count" if tenant is None else "count_of_tenant"]
        row = (await self._database.execute(query, {"tenant": tenant})).row
        assert row is not None
        return int(row[0])


def _named(key: SessionKey, **parameters: Any) -> dict[str, Any]:
    return {"tenant": key.tenant, "id": key.id, **parameters}


def _values(row: SessionRow) -> dict[str, Any]:
    return {
        **dict(zip(COLUMNS, values_of(row), strict=True)),
        "model": None if row.model is None else to_blob(row.model),
        "users": list(row.members),
        "roles": [role.value for role in row.members.values()],
    }


def _row(found: Sequence[Any]) -> SessionRow:
    *values, members = found
    return row_of(values, members)
