"""The message ledger inside one process: for tests, and for an embedded fleet that keeps nothing."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from aerodrome.errors import Conflict
from aerodrome.model import SessionKey, TurnRow, TurnStatus


class MemoryLedger:
    """Implements `sessions.ports.Ledger`. No method awaits anything, so each is atomic on the loop."""

    def __init__(self) -> None:
        #: In the order of acceptance.
        self._rows: dict[tuple[SessionKey, str], TurnRow] = {}

    async def open(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    async def accept(self, row: TurnRow, *, durable: bool = True) -> TurnRow | None:
        if row.idempotency_key is not None:
            earlier = await self.by_idempotency_key(row.key, row.idempotency_key)
            if earlier is not None:
                return earlier
        if (row.key, row.id) in self._rows:
            raise Conflict(f"there is a turn {row.id} in session {row.key} already")
        self._rows[row.key, row.id] = copy.deepcopy(row)
        return None

    async def start(self, key: SessionKey, turn_id: str, at: float) -> bool:
        row = self._rows.get((key, turn_id))
        if row is None or row.status.is_final:
            return False
        if row.status is TurnStatus.QUEUED:
            self._rows[key, turn_id] = replace(row, status=TurnStatus.RUNNING, started_at=at)
        return True

    async def note(
        self,
        key: SessionKey,
        turn_id: str,
        *,
        message_id: str | None = None,
        tool_ran: bool | None = None,
        retried: bool | None = None,
    ) -> None:
        row = self._rows.get((key, turn_id))
        if row is None or row.status.is_final:
            return
        changes: dict[str, Any] = {"message_id": message_id, "tool_ran": tool_ran, "retried": retried}
        self._rows[key, turn_id] = replace(row, **{name: value for name, value in changes.items() if value is not None})

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
        row = self._rows.get((key, turn_id))
        if row is None or row.status.is_final:
            return False
        answer, usage, error = copy.deepcopy((answer, usage, error))
        row = replace(row, status=status, ended_at=at, answer=answer, usage=usage, error=error)
        row = replace(row, message_id=message_id or row.message_id)
        self._rows[key, turn_id] = replace(row, idempotency_key=None) if free_key else row
        return True

    async def get(self, key: SessionKey, turn_id: str) -> TurnRow | None:
        return copy.deepcopy(self._rows.get((key, turn_id)))

    async def by_idempotency_key(self, key: SessionKey, idempotency_key: str) -> TurnRow | None:
        rows = (row for row in self._of(key) if row.idempotency_key == idempotency_key)
        return copy.deepcopy(next(rows, None))

    async def unfinished(
        self, key: SessionKey | None = None, limit: int = 1000, *, except_of: Collection[str] = ()
    ) -> list[TurnRow]:
        rows = self._rows.values() if key is None else self._of(key)
        found = [row for row in rows if not row.status.is_final and row.incarnation not in except_of]
        return copy.deepcopy(found[:limit])

    async def turns(self, key: SessionKey) -> list[TurnRow]:
        return copy.deepcopy(list(self._of(key)))

    async def sessions(self, after: SessionKey | None = None, limit: int = 100) -> list[SessionKey]:
        known = sorted({key for key, _ in self._rows if after is None or key > after})
        return known[:limit]

    async def turn_ids(self, key: SessionKey) -> list[str]:
        return [row.id for row in self._of(key)]

    async def forget(self, key: SessionKey, turn_ids: Collection[str]) -> bool:
        gone = [row.id for row in self._of(key) if row.id in turn_ids]
        for turn_id in gone:
            del self._rows[key, turn_id]
        return bool(gone)

    def _of(self, key: SessionKey) -> Iterable[TurnRow]:
        return (row for row in self._rows.values() if row.key == key)
