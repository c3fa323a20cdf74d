"""A reader's subscription that follows its session from node to node (`sessions.api.EventStream`).

Wherever the session runs, its events are taken from there, behind the cursor of the last one that the reader has. The
switch loses nothing because subscriptions begin at a cursor, and repeats nothing because what was told is remembered
for a while.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import structlog

from aerodrome.errors import (
    Capacity,
    Draining,
    RuntimeUnavailable,
    SessionBusy,
    StoreUnavailable,
)
from aerodrome.events import SessionEvent
from aerodrome.sessions.api import EventStream

log = structlog.get_logger(__name__)

_REMEMBERED = 2048
#: Seconds between two tries to find the session again.
_RETRY = 0.2
#: What passes by itself when a node has just gone.
_PASSING = (SessionBusy, RuntimeUnavailable, StoreUnavailable, Capacity)


class Source(Protocol):
    """A subscription at one node."""

    #: Where it is: the incarnation.
    where: str

    @property
    def events(self) -> EventStream: ...

    @property
    def broken(self) -> bool:
        """It has ended although the session has not."""
        ...


class FollowingStream:
    """Args:
    begin: Subscribes where the session runs now, behind a cursor.
    on_close: Called once.
    """

    def __init__(
        self,
        begin: Callable[[str | None], Awaitable[Source]],
        *,
        source: Source,
        cursor: str | None,
        on_close: Callable[[FollowingStream], None],
    ) -> None:
        self._begin = begin
        self._source = source
        self._cursor = cursor
        self._on_close: Callable[[FollowingStream], None] | None = on_close
        self._told: set[str] = set()
        self._order: deque[str] = deque()
        self._moved = False
        #: Where the session was loaded latest, as far as we were told while we were looking for it.
        self._heard: str | None = None
        self._looking = False
        self._closed = False

    @property
    def position(self) -> str:
        """See `sessions.api.EventStream`."""
        return self._cursor or self._source.events.position

    @position.setter
    def position(self, cursor: str) -> None:
        self._cursor = cursor

    def runs_at(self, incarnation: str) -> None:
        """The session was loaded by this node."""
        if self._looking:
            self._heard = incarnation
        elif incarnation != self._source.where and not self._moved:
            self._moved = True
            # Ends the iteration over what the source still has.
            self._source.events.close()

    def close(self) -> None:
        self._closed = True
        self._source.events.close()
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            on_close(self)

    async def __aiter__(self) -> AsyncIterator[SessionEvent]:
        while True:
            async for event in self._source.events:
                if self._note(event):
                    yield event
            if self._closed or not (self._moved or self._source.broken):
                return
            self._moved = False
            if not await self._switch():
                return

    async def _switch(self) -> bool:
        """``False``: the reader has gone. Raises what will not pass by itself, such as `NotFound`."""
        self._looking = True
        try:
            while not self._closed:
                self._heard = None
                try:
                    self._source = await self._begin(self.position or None)
                except Draining:
                    raise
                except _PASSING as error:
                    log.debug("peers.not_followed", reason=error.detail)
                    await asyncio.sleep(_RETRY)
                    continue
                if self._closed:
                    self._source.events.close()
                elif self._heard in (None, self._source.where):
                    return True
                else:
                    self._source.events.close()  # it has gone on, while we found it here
            return False
        finally:
            self._looking = False

    def _note(self, event: SessionEvent) -> bool:
        if event.id in self._told:
            return False
        self._told.add(event.id)
        self._order.append(event.id)
        if len(self._order) > _REMEMBERED:
            self._told.discard(self._order.popleft())
        self._cursor = event.cursor or self._cursor
        return True
