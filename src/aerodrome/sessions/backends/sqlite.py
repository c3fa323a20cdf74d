"""The message ledger in SQLite, in the same file as the session files or in one of its own."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

from aerodrome._util.schema import Schema
from aerodrome._util.sqlite import Database
from aerodrome._util.surrogates import to_blob
from aerodrome.errors import Conflict
from aerodrome.model import SessionKey, TurnRow, TurnStatus
from aerodrome.sessions.backends.rows import COLUMNS, row_of, to_json, values_of

_COLUMNS = ", ".join(COLUMNS)
_MARKS = ", ".join("?" * len(COLUMNS))
_TURN = "tenant = ? AND session = ? AND id = ?"
_IDEMPOTENT = "tenant = ? AND session = ? AND idempotency_key = ?"
#: Spelled as in the partial index, or SQLite would not use it.
_UNFINISHED = "status IN ('queued', 'running')"


class SqliteLedger:
    """Implements `sessions.ports.Ledger` on a `Database` that its maker opens and closes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self) -> None:
        """Bring the tables up to date. The database must be open."""
        await self._database.write(Schema.load("ledger", __package__).migrate)

    async def aclose(self) -> None:
        """Nothing to do: the database belongs to whoever opened it."""

    async def accept(self, row: TurnRow, *, durable: bool = True) -> TurnRow | None:
        values = values_of(row)
        idempotency_key = None if row.idempotency_key is None else to_blob(row.idempotency_key)

        def accept(connection: sqlite3.Connection) -> Sequence[Any] | None:
            if idempotency_key is not None:
                earlier: Sequence[Any] | None = connection.execute(
                    f"SELECT {_COLUMNS} FROM turn WHERE {_IDEMPOTENT}", (*row.key, idempotency_key)
                ).fetchone()
                if earlier is not None:
                    return earlier
            added = connection.execute(
                f"INSERT INTO turn ({_COLUMNS}) VALUES ({_MARKS}) ON CONFLICT (tenant, session, id) DO NOTHING", values
            )
            if added.rowcount != 1:
                raise Conflict(f"there is a turn {row.id} in session {row.key} already")
            return None

        earlier = await self._database.write(accept, durable=durable)
        return None if earlier is None else row_of(earlier)

    async def start(self, key: SessionKey, turn_id: str, at: float) -> bool:
        return await self._update(
            key, turn_id, {"status = ?": TurnStatus.RUNNING, "started_at = coalesce(started_at, ?)": at}
        )

    async def note(
        self,
        key: SessionKey,
        turn_id: str,
        *,
        message_id: str | None = None,
        tool_ran: bool | None = None,
        retried: bool | None = None,
    ) -> None:
        changes = {"message_id = ?": message_id, "tool_ran = ?": tool_ran, "retried = ?": retried}
        changes = {column: value for column, value in changes.items() if value is not None}
        if changes:
            await self._update(key, turn_id, changes)

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
        changes: dict[str, Any] = {
            "status = ?": status,
            "ended_at = ?": at,
            "answer = ?": to_json(answer),
            "usage = ?": to_json(usage),
            "error = ?": to_json(error),
            "message_id = coalesce(?, message_id)": message_id,
        }
        if free_key:
            changes["idempotency_key = ?"] = None
        return await self._update(key, turn_id, changes)

    async def _update(self, key: SessionKey, turn_id: str, changes: dict[str, Any]) -> bool:
        """Change a turn that is not final; one statement, so that two who finish it cannot both be right."""

        def update(connection: sqlite3.Connection) -> bool:
            changed = connection.execute(
                f"UPDATE turn SET {', '.join(changes)} WHERE {_TURN} AND {_UNFINISHED}",
                (*changes.values(), *key, turn_id),
            )
            return changed.rowcount == 1

        return await self._database.write(update)

    async def get(self, key: SessionKey, turn_id: str) -> TurnRow | None:
        rows = await self._select(_TURN, (*key, turn_id))
        return rows[0] if rows else None

    async def by_idempotency_key(self, key: SessionKey, idempotency_key: str) -> TurnRow | None:
        rows = await self._select(_IDEMPOTENT, (*key, to_blob(idempotency_key)))
        return rows[0] if rows else None

    async def unfinished(
        self, key: SessionKey | None = None, limit: int = 1000, *, except_of: Collection[str] = ()
    ) -> list[TurnRow]:
        marks = ", ".join("?" * len(except_of))
        where = f"{_UNFINISHED} AND incarnation NOT IN ({marks})"
        if key is None:
            return await self._select(where, tuple(except_of), limit)
        return await self._select(f"tenant = ? AND session = ? AND {where}", (*key, *except_of), limit)

    async def turns(self, key: SessionKey) -> list[TurnRow]:
        return await self._select("tenant = ? AND session = ?", key)

    async def _select(self, where: str, parameters: Sequence[Any], limit: int = -1) -> list[TurnRow]:
        def select(connection: sqlite3.Connection) -> list[TurnRow]:
            found = connection.execute(
                f"SELECT {_COLUMNS} FROM turn WHERE {where} ORDER BY number LIMIT ?", (*parameters, limit)
            ).fetchall()
            return [row_of(values) for values in found]

        return await self._database.read(select)

    async def sessions(self, after: SessionKey | None = None, limit: int = 100) -> list[SessionKey]:
        def sessions(connection: sqlite3.Connection) -> list[SessionKey]:
            rows = connection.execute(
                "SELECT DISTINCT tenant, session FROM turn WHERE (tenant, session) > (?, ?) ORDER BY 1, 2 LIMIT ?",
                (*(after or ("", "")), limit),
            )
            return [SessionKey(*row) for row in rows]

        return await self._database.read(sessions)

    async def turn_ids(self, key: SessionKey) -> list[str]:
        def turn_ids(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute("SELECT id FROM turn WHERE tenant = ? AND session = ? ORDER BY number", key)
            return [turn_id for (turn_id,) in rows]

        return await self._database.read(turn_ids)

    async def forget(self, key: SessionKey, turn_ids: Collection[str]) -> bool:
        def forget(connection: sqlite3.Connection) -> bool:
            gone = connection.execute(
                "DELETE FROM turn WHERE tenant = ? AND session = ? AND id IN (SELECT value FROM json_each(?))",
                (*key, json.dumps(list(turn_ids))),
            )
            return gone.rowcount > 0

        return await self._database.write(forget)
