"""An accepted prompt on its way: the handle the front doors hold (`sessions.api.Turn`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aerodrome.errors import AerodromeError
from aerodrome.events import SessionEvent
from aerodrome.model import TurnRow
from aerodrome.sessions.hub import Channel
from aerodrome.sessions.tracker import TurnTracker


class TurnRun:
    """A turn from its admission to its end.

    The row changes as the turn goes on; the result is set once. A run may be awaited by several callers (a repeated
    idempotency key joins the first).
    """

    def __init__(self, row: TurnRow, *, reader_bytes: int, on_abandon: Callable[[TurnRun], None] | None = None) -> None:
        self._row = row
        self._reader_bytes = reader_bytes
        self._on_abandon = on_abandon
        self._channels: set[Channel] = set()
        loop = asyncio.get_running_loop()
        self._result: asyncio.Future[TurnRow] = loop.create_future()
        # An error nobody waits for any more (the client has gone) is no news.
        self._result.add_done_callback(lambda result: result.cancelled() or result.exception())
        #: True once the ledger has it, False when it could not be recorded and must not be sent.
        self.recorded: asyncio.Future[bool] = loop.create_future()
        self.tracker = TurnTracker()
        #: Somebody asked for the end of this turn.
        self.abort_requested = False

    @property
    def id(self) -> str:
        return self._row.id

    @property
    def row(self) -> TurnRow:
        return self._row

    @row.setter
    def row(self, row: TurnRow) -> None:
        self._row = row

    @property
    def ended(self) -> bool:
        return self._result.done()

    async def wait(self) -> TurnRow:
        # `shield`: the turn belongs to nobody's connection.
        return await asyncio.shield(self._result)

    def events(self) -> Channel:
        channel = Channel(self._reader_bytes, self._channels.discard)
        if self.ended:
            channel.finish()
        else:
            self._channels.add(channel)
        return channel

    def abandon(self) -> None:
        if self._on_abandon is not None and not self.ended:
            self._on_abandon(self)

    # --- for the session ---

    def publish(self, event: SessionEvent) -> None:
        for channel in list(self._channels):
            channel.put(event)

    def resolve(self, row: TurnRow) -> None:
        assert row.status.is_final, row.status
        self._row = row
        if not self._result.done():
            self._result.set_result(row)
        self._finish_channels()

    def fail(self, error: AerodromeError) -> None:
        """The turn's end could not be recorded: who waits for it gets the error."""
        if not self._result.done():
            self._result.set_exception(error)
        self._finish_channels()

    def _finish_channels(self) -> None:
        for channel in list(self._channels):
            channel.finish()


def error_of(error: AerodromeError) -> dict[str, Any]:
    """What the ledger keeps of an error."""
    kept: dict[str, Any] = {"code": error.code, "detail": error.detail}
    if error.retry_after is not None:
        kept["retry_after"] = error.retry_after
    return kept
