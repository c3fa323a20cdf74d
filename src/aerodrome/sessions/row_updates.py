"""Keeps one session's row in the directory up to date, behind what happens."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from aerodrome.errors import AerodromeError
from aerodrome.model import LastTurn, SessionRow, SessionState
from aerodrome.sessions.context import SessionContext

log = structlog.get_logger(__name__)


#: Seconds that a change waits for others: most turns are shorter, and their start is then written with their end.
GATHER = 0.2


class RowUpdates:
    """Writes changes one after the other, those that have gathered meanwhile as one.

    Nothing is decided on these columns, so nobody waits for a write. One that the store refuses is kept and goes with
    the next change, or with `flush`.
    """

    def __init__(self, context: SessionContext, row: SessionRow) -> None:
        #: The row as it will be stored.
        self.row = row
        self._context = context
        self._pending: dict[str, Any] = {}
        self._writing: asyncio.Task[Any] | None = None
        self._closed = False
        #: What is pending shall not wait for more.
        self._hurry = asyncio.Event()

    @property
    def pending(self) -> bool:
        return bool(self._pending) or (self._writing is not None and not self._writing.done())

    def note(
        self,
        *,
        state: SessionState | None = None,
        last_used_at: float | None = None,
        last_turn: LastTurn | None = None,
        title: str | None = None,
        model: str | None = None,
    ) -> None:
        values = {
            "state": state,
            "last_used_at": last_used_at,
            "last_turn": last_turn,
            "title": title,
            "model": model,
        }
        changes: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        self.row = replace(self.row, **changes)
        self._pending.update(changes)
        if last_turn is not None:
            self._hurry.set()
        self._write_soon()

    async def choose_title(self, title: str) -> None:
        """Somebody has chosen the title, and is about to store it: no other one is written any more."""
        self.row = replace(self.row, title=title)
        await self.flush()  # one may be on its way
        self._pending.pop("title", None)

    async def flush(self) -> None:
        """Write what is pending, as far as the store allows."""
        self._hurry.set()
        self._write_soon()
        if self._writing is not None:
            await asyncio.wait({self._writing})

    def close(self) -> None:
        """The row is about to be deleted, and its id may be used again: no more writes."""
        self._closed = True
        self._pending.clear()
        self._hurry.set()

    def _write_soon(self) -> None:
        if self._pending and not self._closed and (self._writing is None or self._writing.done()):
            self._writing = self._context.later(self._write(), "update row")

    async def _write(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER):
                await self._hurry.wait()
        while self._pending:
            self._hurry.clear()
            changes, self._pending = self._pending, {}
            try:
                await self._context.directory.update(self.row.key, **changes)
            except AerodromeError as error:
                log.warning("session.row_not_updated", session=str(self.row.key), reason=error.detail)
                if not self._closed:
                    self._pending = {**changes, **self._pending}
                return
