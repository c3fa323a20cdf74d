"""The directory inside one process, for tests."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from aerodrome.coordination.backends import cursor as cursors
from aerodrome.coordination.ports import Page
from aerodrome.model import LastTurn, Role, SessionKey, SessionRow, SessionState


class MemoryDirectory:
    """Implements `coordination.ports.Directory`. No method awaits anything, so each is atomic on the loop."""

    def __init__(self) -> None:
        self._rows: dict[SessionKey, SessionRow] = {}

    async def open(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    async def insert(self, row: SessionRow) -> SessionRow | None:
        if (present := self._rows.get(row.key)) is not None:
            return copy.deepcopy(present)
        self._rows[row.key] = copy.deepcopy(row)
        return None

    async def get(self, key: SessionKey) -> SessionRow | None:
        return copy.deepcopy(self._rows.get(key))

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
        if (row := self._rows.get(key)) is None:
            return False
        changes: dict[str, Any] = {
            "state": state,
            "title": title,
            "model": model,
            "options": copy.deepcopy(options),
            "last_used_at": None if last_used_at is None else max(last_used_at, row.last_used_at),
            "last_turn": last_turn,
        }
        self._rows[key] = replace(row, **{name: value for name, value in changes.items() if value is not None})
        return True

    async def set_member(self, key: SessionKey, user: str, role: Role | None) -> SessionRow | None:
        if (row := self._rows.get(key)) is None:
            return None
        members = {name: known for name, known in row.members.items() if name != user}
        if role is not None:
            members[user] = role
        self._rows[key] = replace(row, members=dict(sorted(members.items())))
        return copy.deepcopy(self._rows[key])

    async def remove(self, key: SessionKey, created_at: float) -> bool:
        row = self._rows.get(key)
        if row is None or row.created_at != created_at:
            return False
        del self._rows[key]
        return True

    async def list(
        self, tenant: str | None, *, user: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page:
        cursors.check_limit(limit)
        rows = self._of(tenant)
        if user is not None:
            rows = (row for row in rows if row.owner == user or user in row.members)
        if cursor is not None:
            start = cursors.decode(cursor).rank
            rows = (row for row in rows if cursors.rank(row) > start)
        found = sorted(rows, key=cursors.rank)
        page = found[:limit]
        more = cursors.encode(cursors.place_of(page[-1])) if len(found) > limit else None
        return Page(copy.deepcopy(page), more)

    async def unused_since(self, before: float, limit: int = 100, *, skip: int = 0) -> Sequence[SessionRow]:
        cursors.check_limit(limit)
        rows = (row for row in self._rows.values() if row.last_used_at < before)
        found = sorted(rows, key=cursors.rank, reverse=True)
        return copy.deepcopy(found[skip : skip + limit])

    async def count(self, tenant: str | None = None) -> int:
        return sum(1 for _ in self._of(tenant))

    def _of(self, tenant: str | None) -> Iterable[SessionRow]:
        return (row for row in self._rows.values() if tenant is None or row.key.tenant == tenant)
