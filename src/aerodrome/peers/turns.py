"""A prompt that another node works on (`sessions.api.Turn`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aerodrome.errors import AerodromeError, NotFound, StoreUnavailable
from aerodrome.model import SessionKey, TurnRow
from aerodrome.peers import shapes
from aerodrome.peers.link import PeerLink, PeerStream
from aerodrome.sessions.hub import Channel

#: Seconds between two looks at the ledger for the end of a turn whose node has gone.
_LOOK = 0.25

ReadTurn = Callable[[SessionKey, str], Awaitable[TurnRow | None]]


class RemoteTurn:
    """Made before it is sent, so that nothing of it is missed.

    When the other node is lost, the outcome is what the ledger says in the end: that node's own, if it lives, or that
    the turn was interrupted.

    Args:
        read: Reads a turn in the ledger.
        reader_bytes: How far a reader of its events may be behind.
    on_over: Called when its caller has its outcome, or has gone.
    """

    def __init__(
        self,
        link: PeerLink,
        read: ReadTurn,
        *,
        reader_bytes: int,
        on_over: Callable[[RemoteTurn], None] = lambda _: None,
    ) -> None:
        self.stream = PeerStream(link, on_told=self._on_told, on_ended=self._on_ended)
        self._link = link
        self._read = read
        self._reader_bytes = reader_bytes
        self._row: TurnRow | None = None
        self._channel: Channel | None = None
        self._asked_for_events = False
        self._result: asyncio.Future[TurnRow | None] = asyncio.get_running_loop().create_future()
        self._result.add_done_callback(lambda result: result.cancelled() or result.exception())
        self._on_over = on_over

    @property
    def row(self) -> TurnRow:
        assert self._row is not None
        return self._row

    def accepted(self, row: TurnRow) -> None:
        """The other node has it in hand."""
        if self._row is None:
            self._row = row

    async def wait(self, reader: str | None = None) -> TurnRow:
        # Who waits the other node knows.
        self._want_events(False)
        try:
            row = await asyncio.shield(self._result)
            return row if row is not None else await self._look_up()
        finally:
            self._on_over(self)

    async def _look_up(self) -> TurnRow:
        """Its node has gone: whoever notices first records that the turn was interrupted (`sessions.recovery`)."""
        while True:
            try:
                found = await self._read(self.row.key, self.row.id)
            except StoreUnavailable:
                found = self.row
            if found is None:
                raise NotFound("the session has been deleted")
            if found.status.is_final:
                self._row = found
                return found
            await asyncio.sleep(_LOOK)

    def events(self, reader: str | None = None) -> Channel:
        channel = Channel(self._reader_bytes, lambda _: None)
        if self._result.done() or self._asked_for_events:
            channel.finish()
        else:
            self._channel = channel
            self._want_events(True)
        return channel

    def abandon(self) -> None:
        self.stream.say(shapes.ABANDON)
        self._on_over(self)

    def _want_events(self, wanted: bool) -> None:
        """The other node keeps them back until it knows."""
        if not self._asked_for_events:
            self._asked_for_events = True
            self._link.tell(shapes.FOLLOW, {"stream": self.stream.id, "events": wanted})

    def _on_told(self, event: shapes.EventOnWire) -> None:
        if self._channel is not None:
            self._channel.put(shapes.event_of(event))

    def _on_ended(self, ended: shapes.Ended | None) -> None:
        if self._channel is not None:
            if ended is not None and ended.lagging:
                self._channel.cut_off()
            self._channel.finish()
        if self._result.done():
            return
        if ended is None:
            self._result.set_result(None)
        elif ended.row is not None:
            self._row = shapes.turn_row_of(ended.row)
            self._result.set_result(self._row)
        else:
            self._result.set_exception(self._error(ended))

    def _error(self, ended: shapes.Ended) -> AerodromeError:
        return shapes.error_of(ended.error or {})
