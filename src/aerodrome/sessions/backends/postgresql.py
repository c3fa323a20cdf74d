"""The message ledger in PostgreSQL. Every call is one round trip, but for a prompt that was accepted before."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

from aerodrome._util.migrations import PostgresSchema
from aerodrome._util.postgres import Postgres
from aerodrome._util.queries import load_queries
from aerodrome._util.surrogates import to_blob
from aerodrome.errors import Conflict, StoreUnavailable
from aerodrome.model import SessionKey, TurnRow, TurnStatus
from aerodrome.sessions.backends.rows import COLUMNS, row_of, to_json, values_of


class PostgresLedger:
    """Implements `sessions.ports.Ledger` on a `Postgres` that its maker opens and closes."""

    def __init__(self, database: Postgres) -> None:
        self._database = database
        queries = load_queries(__package__, "postgresql_ledger.sql")
        self.queries = {name: query.replace("{columns}", ", ".join(COLUMNS)) for name, query in queries.items()}

    @staticmethod
    def schema() -> PostgresSchema:
        return PostgresSchema.load("ledger", __package__)

    async def open(self) -> None:
        """See that the tables are there and suit. The database must be open. Raises `ConfigError`."""
        await self.schema().ensure(self._database)

    async def aclose(self) -> None:
        """Nothing to do: the database belongs to whoever opened it."""

    async def accept(self, row: TurnRow, *, durable: bool = True) -> TurnRow | None:
        values = dict(zip(COLUMNS, values_of(row), strict=True)) | {"write": _number()}
        # More than once only when the row in the way has gone before it could be looked at.
        for _ in range(3):
            if (await self._database.execute(self.queries["accept"], values)).count == 1:
                return None
            found = await self._database.execute(self.queries["earlier"], values)
            if any(accepted_by == values["write"] for *_, accepted_by in found.rows):
                return None
            earlier = [row_of(columns) for *columns, _ in found.rows]
            known = [e for e in earlier if e.idempotency_key is not None and e.idempotency_key == row.idempotency_key]
            if known:
                return known[0]
            if earlier:
                raise Conflict(f"there is a turn {row.id} in session {row.key} already")
        raise StoreUnavailable(f"the turns of session {row.key} change too fast", retry_after=1.0)

    async def start(self, key: SessionKey, turn_id: str, at: float) -> bool:
        return await self._change("start", key, turn_id, at=at)

    async def note(
        self,
        key: SessionKey,
        turn_id: str,
        *,
        message_id: str | None = None,
        tool_ran: bool | None = None,
        retried: bool | None = None,
    ) -> None:
        if (message_id, tool_ran, retried) != (None, None, None):
            await self._change("note", key, turn_id, message_id=message_id, tool_ran=tool_ran, retried=retried)

    async def finish(
        self,
        key: SessionKey,
        turn_id: str,
        status: TurnStatus,
        at: float,
        *,
        answer: dict[str, Any] | None = None,
        usage: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        message_id: str | None = None,
        free_key: bool = False,
    ) -> bool:
        if not status.is_final:
            raise ValueError(f"{status} does not finish a turn")
        return await self._change(
            "finish",
            key,
            turn_id,
            status=status.value,
            at=at,
            answer=to_json(answer),
            usage=to_json(usage),
            error=to_json(error),
            message_id=message_id,
            free_key=free_key,
            write=_number(),
        )

    async def _change(self, query: str, key: SessionKey, turn_id: str, **parameters: Any) -> bool:
        named = {"tenant": key.tenant, "session": key.id, "id": turn_id, **parameters}
        return (await self._database.execute(self.queries[query], named)).count == 1

    async def get(self, key: SessionKey, turn_id: str) -> TurnRow | None:
        rows = await self._select("get", key, id=turn_id)
        return rows[0] if rows else None

    async def by_idempotency_key(self, key: SessionKey, idempotency_key: str) -> TurnRow | None:
        rows = await self._select("by_idempotency_key", key, idempotency_key=to_blob(idempotency_key))
        return rows[0] if rows else None

    async def unfinished(
        self, key: SessionKey | None = None, limit: int = 1000, *, except_of: Collection[str] = ()
    ) -> list[TurnRow]:
        query = "unfinished" if key is None else "unfinished_of"
        return await self._select(query, key, except_of=list(except_of), limit=limit)

    async def turns(self, key: SessionKey) -> list[TurnRow]:
        return await self._select("turns", key)

    async def _select(self, query: str, key: SessionKey | None, **parameters: Any) -> list[TurnRow]:
        if key is not None:
            parameters |= {"tenant": key.tenant, "session": key.id}
        found = await self._database.execute(self.queries[query], parameters, binary=True)
        return [row_of(values) for values in found.rows]

    async def sessions(self, after: SessionKey | None = None, limit: int = 100) -> list[SessionKey]:
        found = await self._database.execute(
            self.queries["sessions"],
            {"tenant": after.tenant if after else "", "session": after.id if after else "", "limit": limit},
        )
        return [SessionKey(tenant, session) for tenant, session in found.rows]

    async def turn_ids(self, key: SessionKey) -> list[str]:
        found = await self._database.execute(self.queries["turn_ids"], {"tenant": key.tenant, "session": key.id})
        return [turn_id for (turn_id,) in found.rows]

    async def forget(self, key: SessionKey, turn_ids: Collection[str]) -> bool:
        gone = await self._database.execute(
            self.queries["forget"], {"tenant": key.tenant, "session": key.id, "ids": list(turn_ids)}
        )
        return gone.count > 0 or gone.repeated


def _number() -> int:
    return secrets.randbits(62) + 1
