"""How turns ended, written to the ledger; what the store refuses is kept and written later."""

from __future__ import annotations

import structlog

from aerodrome.errors import AerodromeError
from aerodrome.model import SessionKey, TurnRow
from aerodrome.sessions.ports import Ledger

log = structlog.get_logger(__name__)


class TurnEnds:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        #: Ends that are not recorded yet, by session and turn.
        self._late: dict[SessionKey, dict[str, TurnRow]] = {}

    def later(self, row: TurnRow) -> None:
        """Leave the recording to `retry`; a turn that the ledger does not know stays unknown."""
        self._late.setdefault(row.key, {})[row.id] = row

    async def record(self, row: TurnRow) -> TurnRow:
        """Record the end; returns the turn as it stands in the ledger: whoever finished it first is right.

        A row without an idempotency key frees the one it was accepted with.

        Raises:
            StoreUnavailable: It is not recorded yet; `retry` will.
        """
        try:
            return await self._record(row)
        except BaseException:
            self.later(row)
            raise

    def find(self, key: SessionKey, turn_id: str) -> TurnRow | None:
        """The end of a turn, if it is not recorded yet."""
        return self._late.get(key, {}).get(turn_id)

    async def retry(self) -> list[TurnRow]:
        """Try again to record what is late; returns what was recorded now."""
        recorded: list[TurnRow] = []
        for row in [row for rows in self._late.values() for row in rows.values()]:
            try:
                recorded.append(await self._record(row))
            except AerodromeError as error:
                log.warning("turn.end_not_recorded", session=str(row.key), turn=row.id, reason=error.detail)
                break  # the others will fare no better
            self._discard(row)
        return recorded

    def forget(self, key: SessionKey) -> None:
        """The session is deleted."""
        self._late.pop(key, None)

    async def _record(self, row: TurnRow) -> TurnRow:
        finished = await self._ledger.finish(
            row.key,
            row.id,
            row.status,
            row.ended_at or 0.0,
            answer=row.answer,
            usage=row.usage,
            error=row.error,
            message_id=row.message_id,
            free_key=row.idempotency_key is None,
        )
        if finished:
            return row
        present = await self._ledger.get(row.key, row.id)
        return present if present is not None and present.status.is_final else row

    def _discard(self, row: TurnRow) -> None:
        rows = self._late.get(row.key, {})
        rows.pop(row.id, None)
        if not rows:
            self._late.pop(row.key, None)
