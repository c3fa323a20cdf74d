"""A prompt that another node works on (`sessions.api.Turn`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from aerodrome.errors import AerodromeError, NotFound, StoreUnavailable
from aerodrome.model import SessionKey, TurnRow
from aerodrome.peers import shapes
from aerodrome.peers.events import FollowingStream, Source
from aerodrome.peers.link import PeerLink, PeerStream
from aerodrome.peers.there import There
from aerodrome.sessions.api import EventStream
from aerodrome.sessions.hub import Channel

#: Seconds between two looks at the ledger for the end of a turn whose node has gone.
_LOOK = 0.25

ReadTurn = Callable[[SessionKey, str], Awaitable[TurnRow | None]]


class Rejoin(Protocol):
    """Finds what is left to be told of a turn whose link was lost, behind a cursor (``None``: all of it)."""

    async def __call__(self, turn: TurnRow, after: str | None) -> Source: ...


class _Linked:
    """The events as they come by the link (`peers.events.Source`)."""

    def __init__(self, where: str, events: Channel) -> None:
        self.where = where
        self.events = events
        self.broken = False

    def lose(self) -> None:
        self.broken = True
        self.events.finish()


class RemoteTurn:
    """Made before it is sent, so that nothing of it is missed.

    When the other node is lost, or the link to it, the outcome is what the ledger says in the end: that node's own, if
    it lives, or that the turn was interrupted. Its events go on from wherever they are to be had.

    Args:
        read: Reads a turn in the ledger.
        rejoin: Where they are to be had then.
        reader_bytes: How far a reader of its events may be behind.
    on_over: Called when its caller has its outcome, or has gone.
    """

    def __init__(
        self,
        link: PeerLink,
        read: ReadTurn,
        rejoin: Rejoin,
        *,
        reader_bytes: int,
        on_over: Callable[[RemoteTurn], None] = lambda _: None,
    ) -> None:
        self.stream = PeerStream(link, on_told=self._on_told, on_ended=self._on_ended)
        self._link = link
        self._read = read
        self._rejoin = rejoin
        self._reader_bytes = reader_bytes
        self._row: TurnRow | None = None
        self._events: _Linked | None = None
        #: Where its events are told since the link was lost.
        self._again: Source | None = None
        self._asked_for_events = False
        self._lost = False
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

    def events(self, reader: str | None = None) -> EventStream:
        source = _Linked(self._link.node.incarnation, Channel(self._reader_bytes))
        if self._asked_for_events or (self._result.done() and not self._lost):
            source.events.finish()
        elif self._lost:
            source.lose()
        else:
            self._events = source
            self._want_events(True)
        return FollowingStream(self._go_on, source=source, cursor=None, on_close=lambda _: None)

    async def _go_on(self, cursor: str | None) -> Source:
        self._again = await self._rejoin(self.row, cursor)
        return self._again

    def abandon(self) -> None:
        if isinstance(self._again, There):
            self._again.abandon()
        else:
            self.stream.say(shapes.ABANDON)
        self._on_over(self)

    def _want_events(self, wanted: bool) -> None:
        """The other node keeps them back until it knows."""
        if not self._asked_for_events:
            self._asked_for_events = True
            self._link.tell(shapes.FOLLOW, {"stream": self.stream.id, "events": wanted})

    def _on_told(self, event: shapes.EventOnWire) -> None:
        if self._events is not None:
            self._events.events.put(shapes.event_of(event))

    def _on_ended(self, ended: shapes.Ended | None) -> None:
        self._lost = ended is None
        if self._events is not None:
            if ended is None:
                self._events.lose()
            elif ended.lagging:
                self._events.events.cut_off()
            self._events.events.finish()
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
