"""The directory in SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from aerodrome._util.schema import Schema
from aerodrome._util.sqlite import Database
from aerodrome._util.surrogates import to_blob
from aerodrome.coordination.backends import cursor as cursors
from aerodrome.coordination.backends.rows import COLUMNS, row_of, values_of
from aerodrome.coordination.ports import Page
from aerodrome.model import LastTurn, Role, SessionKey, SessionRow, SessionState

#: The members come as one JSON object, so that a row is one row.
_MEMBERS = "(SELECT json_group_object(m.user, m.role) FROM member AS m WHERE m.tenant = s.tenant AND m.session = s.id)"
_SELECTED = f"SELECT {', '.join(f's.{name}' for name in COLUMNS)}, {_MEMBERS}"
_INSERT = (
    f"INSERT INTO session ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
    " ON CONFLICT (tenant, id) DO NOTHING"
)
_SELECT = f"{_SELECTED} FROM session AS s"
_SELECT_SHARED = f"{_SELECTED} FROM member AS mine CROSS JOIN session AS s"


class SqliteDirectory:
    """Implements `coordination.ports.Directory` on a `Database` that its maker opens and closes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self) -> None:
        """Bring the tables up to date. The database must be open."""
        await self._database.write(Schema.load("coordination", __package__).migrate)

    async def aclose(self) -> None:
        """Nothing to do: the database belongs to whoever opened it."""

    async def insert(self, row: SessionRow) -> SessionRow | None:
        values = values_of(row)

        def insert(connection: sqlite3.Connection) -> Sequence[Any] | None:
            added = connection.execute(_INSERT, values)
            if added.rowcount == 0:
                return _select(connection, row.key)
            connection.executemany(
                "INSERT INTO member (tenant, session, user, role) VALUES (?, ?, ?, ?)",
                [(*row.key, user, role) for user, role in row.members.items()],
            )
            return None

        present = await self._database.write(insert)
        return None if present is None else _row(present)

    async def get(self, key: SessionKey) -> SessionRow | None:
        found = await self._database.read(lambda connection: _select(connection, key))
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
            "state = ?": state,
            "title = ?": None if title is None else to_blob(title),
            "model = ?": model,
            "options = ?": None if options is None else json.dumps(options),
            "last_used_at = max(last_used_at, ?)": last_used_at,
            "last_turn_id = ?": None if last_turn is None else last_turn.id,
            "last_turn_status = ?": None if last_turn is None else last_turn.status,
        }
        changes = {column: value for column, value in changes.items() if value is not None}
        if not changes:
            return await self.get(key) is not None

        def update(connection: sqlite3.Connection) -> bool:
            changed = connection.execute(
                f"UPDATE session SET {', '.join(changes)} WHERE tenant = ? AND id = ?", (*changes.values(), *key)
            )
            return changed.rowcount == 1

        lasting = any(value is not None for value in (title, model, options))
        return await self._database.write(update, durable=lasting)

    async def set_member(self, key: SessionKey, user: str, role: Role | None) -> SessionRow | None:
        def set_member(connection: sqlite3.Connection) -> Sequence[Any] | None:
            if role is None:
                connection.execute("DELETE FROM member WHERE tenant = ? AND session = ? AND user = ?", (*key, user))
            else:
                # Only where there is a session: one that is deleted meanwhile must leave no member behind.
                connection.execute(
                    "INSERT OR REPLACE INTO member (tenant, session, user, role)"
                    " SELECT tenant, id, ?, ? FROM session WHERE tenant = ? AND id = ?",
                    (user, role, *key),
                )
            return _select(connection, key)

        found = await self._database.write(set_member)
        return None if found is None else _row(found)

    async def remove(self, key: SessionKey, created_at: float) -> bool:
        def remove(connection: sqlite3.Connection) -> bool:
            removed = connection.execute(
                "DELETE FROM session WHERE tenant = ? AND id = ? AND created_at = ?", (*key, created_at)
            )
            if removed.rowcount == 0:
                return False
            connection.execute("DELETE FROM member WHERE tenant = ? AND session = ?", key)
            return True

        return await self._database.write(remove)

    async def list(
        self, tenant: str | None, *, user: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page:
        cursors.check_limit(limit)
        conditions: dict[str, Sequence[Any]] = {}
        if tenant is not None:
            conditions["s.tenant = ?"] = (tenant,)
        if cursor is not None:
            place = cursors.decode(cursor)
            # The first term is implied by the second, and is the one SQLite can start the index at.
            after = "s.last_used_at <= ? AND (s.last_used_at < ? OR (s.id, s.tenant) > (?, ?))"
            conditions[after] = (place.last_used_at, *place)
        queries = [_listing(_SELECT, conditions, limit + 1)]
        if user is not None:
            # Two listings rather than one that looks at everybody's sessions. What is shared with a user is not many:
            # it is looked up from the members (`CROSS JOIN` keeps that order), and sorted.
            shared = f"{_SELECT_SHARED} ON mine.tenant = s.tenant AND mine.session = s.id"
            queries = [
                _listing(_SELECT, {**conditions, "s.owner = ?": (user,)}, limit + 1),
                _listing(shared, {**conditions, "mine.user = ?": (user,)}, limit + 1),
            ]

        def page(connection: sqlite3.Connection) -> list[Sequence[Any]]:
            return [found for query in queries for found in connection.execute(*query).fetchall()]

        rows = sorted((_row(found) for found in await self._database.read(page)), key=cursors.rank)
        more = cursors.encode(cursors.place_of(rows[limit - 1])) if len(rows) > limit else None
        return Page(rows[:limit], more)

    async def unused_since(self, before: float, limit: int = 100, *, skip: int = 0) -> Sequence[SessionRow]:
        cursors.check_limit(limit)

        def unused(connection: sqlite3.Connection) -> Sequence[Sequence[Any]]:
            return connection.execute(
                f"{_SELECT} WHERE s.last_used_at < ?"
                " ORDER BY s.last_used_at, s.id DESC, s.tenant DESC LIMIT ? OFFSET ?",
                (before, limit, skip),
            ).fetchall()

        return [_row(found) for found in await self._database.read(unused)]

    async def count(self, tenant: str | None = None) -> int:
        def count(connection: sqlite3.Connection) -> int:
            where, parameters = ("", ()) if tenant is None else (" WHERE tenant = ?", (tenant,))
            number: int = connection.execute(f"SELECT count(*) FROM session{where}", parameters).fetchone()[0]
            return number

        return await self._database.read(count)


def _listing(select: str, conditions: Mapping[str, Sequence[Any]], limit: int) -> tuple[str, Sequence[Any]]:
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    parameters = [value for values in conditions.values() for value in values]
    return f"{select}{where} ORDER BY s.last_used_at DESC, s.id, s.tenant LIMIT ?", (*parameters, limit)


def _select(connection: sqlite3.Connection, key: SessionKey) -> Sequence[Any] | None:
    row: Sequence[Any] | None = connection.execute(f"{_SELECT} WHERE s.tenant = ? AND s.id = ?", key).fetchone()
    return row


def _row(found: Sequence[Any]) -> SessionRow:
    *values, members = found
    return row_of(values, members)
