"""The events of one session, fanned out to its readers.

Publishing never waits. Each reader has a bounded backlog; one that falls further behind is cut off (`Lagging`) and
can come back with the cursor of the last event it has seen: the latest events are kept here, older ones are in the
stored history.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from aerodrome.events import SessionEvent
from aerodrome.sessions.api import Lagging

#: What an event costs beside its bytes, so that a flood of empty events is bounded as well.
_OVERHEAD = 200


class Channel:
    """One reader's backlog. An asynchronous iterator that ends when the channel is finished."""

    def __init__(self, max_bytes: int, on_close: Callable[[Channel], None] | None = None) -> None:
        self._max_bytes = max_bytes
        self._on_close = on_close
        self._backlog: deque[SessionEvent] = deque()
        self._bytes = 0
        self._ready = asyncio.Event()
        self._finished = False
        self._lagging = False

    def put(self, event: SessionEvent) -> None:
        if self._finished or self._lagging:
            return
        self._bytes += len(event.raw) + _OVERHEAD
        if self._bytes > self._max_bytes:
            self._lagging = True
            self._backlog.clear()
        else:
            self._backlog.append(event)
        self._ready.set()

    def preload(self, events: Iterable[SessionEvent]) -> None:
        """Put events that are there already before everything else; they do not count as lag."""
        self._backlog.extendleft(reversed(list(events)))
        if self._backlog:
            self._ready.set()

    def finish(self) -> None:
        """No more events; the reader still gets what is in the backlog."""
        self._finished = True
        self._ready.set()

    def close(self) -> None:
        """The reader has gone. Safe to call twice."""
        self.finish()
        self._backlog.clear()
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            on_close(self)

    def __aiter__(self) -> AsyncIterator[SessionEvent]:
        return self

    async def __anext__(self) -> SessionEvent:
        while not self._backlog:
            if self._lagging:
                raise Lagging("the reader did not keep up with the session's events")
            if self._finished:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        event = self._backlog.popleft()
        self._bytes = max(0, self._bytes - len(event.raw) - _OVERHEAD)
        return event


class EventHub:
    def __init__(self, *, reader_bytes: int, kept_bytes: int = 512 * 1024) -> None:
        self._reader_bytes = reader_bytes
        self._kept_bytes = kept_bytes
        self._kept: deque[SessionEvent] = deque()
        self._size = 0
        self._last_stored = ""
        self._channels: set[Channel] = set()

    @property
    def has_readers(self) -> bool:
        return bool(self._channels)

    def publish(self, event: SessionEvent) -> SessionEvent:
        """Give the event its cursor, keep it for a while, and hand it to every reader."""
        if event.ephemeral:
            cursor = f"{self._last_stored}~{event.id}"
        else:
            self._last_stored = cursor = event.id
        event = SessionEvent(event.id, event.type, event.raw, event.ephemeral, cursor)
        if not event.is_trace:
            self._keep(event)
        for channel in list(self._channels):
            channel.put(event)
        return event

    def subscribe(self) -> Channel:
        channel = Channel(self._reader_bytes, self._channels.discard)
        self._channels.add(channel)
        return channel

    def kept_after(self, cursor: str) -> list[SessionEvent] | None:
        """The kept events behind this cursor; ``None`` when it is not among them any more."""
        events = list(self._kept)
        for index, event in enumerate(events):
            if event.cursor == cursor or event.id == cursor:
                return events[index + 1 :]
        return None

    def kept(self) -> list[SessionEvent]:
        return list(self._kept)

    def finish(self) -> None:
        """The session is deleted: end every reader's stream."""
        for channel in list(self._channels):
            channel.finish()

    def _keep(self, event: SessionEvent) -> None:
        self._kept.append(event)
        self._size += len(event.raw) + _OVERHEAD
        while self._size > self._kept_bytes:
            self._size -= len(self._kept.popleft().raw) + _OVERHEAD


def stored_part(cursor: str) -> str:
    """The id of the stored event a cursor stands at or behind."""
    return cursor.partition("~")[0]
