"""The events of one session, fanned out to its readers.

Publishing never waits. Each reader has a bounded backlog; one that falls further behind is cut off (`Lagging`) and
can come back with the cursor of the last event it has seen: the latest events are kept here, older ones are in the
stored history (`sessions.replay`).
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from aerodrome.errors import AerodromeError
from aerodrome.events import SessionEvent
from aerodrome.sessions.api import Lagging

#: What an event costs beside its bytes, so that a flood of empty events is bounded as well.
_OVERHEAD = 200
#: Marked by the runtime as stored, and stored only when it has changed since the last time (measured). A cursor must
#: not stand at an event that cannot be found again.
_SELDOM_STORED = "system.message"
#: How many beginnings of turns are remembered. One is enough, but a prompt that steers looks like one.
_ANCHORS = 16


class Channel:
    """One reader's backlog. An asynchronous iterator that ends when the channel is finished.

    Args:
        reader: Whose it is, for `cut`; ``None`` for whom it is never cut off.
    """

    def __init__(
        self, max_bytes: int, on_close: Callable[[Channel], None] | None = None, *, reader: str | None = None
    ) -> None:
        self.reader = reader
        self._max_bytes = max_bytes
        self._on_close = on_close
        self._backlog: deque[SessionEvent] = deque()
        self._bytes = 0
        #: How many at the head of the backlog were put there by `preload`.
        self._preloaded = 0
        self._ready = asyncio.Event()
        self._finished = self._closed = False
        self._finished_with: AerodromeError | None = None
        self._lagging = False
        self._error: Exception | None = None
        self._left_out: frozenset[str] = frozenset()
        #: See `sessions.api.EventStream`.
        self.position = ""

    @property
    def backlog(self) -> Sequence[SessionEvent]:
        """What has come in and was not read yet."""
        return tuple(self._backlog)

    def put(self, event: SessionEvent) -> None:
        """Calls nobody: the channels that it is put into are the same afterwards."""
        if self._finished or self._lagging or self._error is not None or event.id in self._left_out:
            return
        self._bytes += size_of(event)
        if self._bytes > self._max_bytes:
            self._lagging = True
            self._backlog.clear()
        else:
            self._backlog.append(event)
        self._ready.set()

    def leave_out(self, event_ids: frozenset[str]) -> None:
        """The reader has had these elsewhere: not again. To be called before `preload`."""
        self._left_out = event_ids
        self._backlog = deque(event for event in self._backlog if event.id not in event_ids)
        self._bytes = sum(map(size_of, self._backlog))

    def preload(self, events: Sequence[SessionEvent]) -> None:
        """Put events that are there already before everything else; they do not count as lag. No events may come any
        more by now: they still come first."""
        if self._closed or self._lagging or self._error is not None:
            return
        self._backlog.extendleft(reversed(events))
        self._preloaded += len(events)
        if self._backlog:
            self._ready.set()

    def cut_off(self) -> None:
        """The reader has fallen behind where the events come from."""
        self._lagging = True
        self._backlog.clear()
        self._ready.set()

    def finish(self, error: AerodromeError | None = None) -> None:
        """No more events; the reader still gets what is in the backlog, and then the error, if there is one."""
        if not self._finished:
            self._finished_with = error
        self._finished = True
        self._ready.set()

    def cut(self, error: Exception) -> None:
        """The reader gets the error now, and nothing of what it has not read yet."""
        self._error = error
        self._backlog.clear()
        self._preloaded = 0
        self._ready.set()

    def close(self) -> None:
        """The reader has gone. Safe to call twice."""
        self.finish()
        self._closed = True
        self._backlog.clear()
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            on_close(self)

    def __aiter__(self) -> AsyncIterator[SessionEvent]:
        return self

    async def __anext__(self) -> SessionEvent:
        while not self._backlog:
            if self._error is not None:
                raise copy.copy(self._error)
            if self._lagging:
                raise Lagging("the reader did not keep up with the session's events")
            if self._finished_with is not None:
                raise copy.copy(self._finished_with)
            if self._finished:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        event = self._backlog.popleft()
        if self._preloaded:
            self._preloaded -= 1
        else:
            self._bytes -= size_of(event)
        return event


class EventHub:
    """Args:
    reader_bytes: How far a reader may be behind.
    kept_bytes: How much of the latest events is kept for readers that come back.
    """

    def __init__(self, *, reader_bytes: int, kept_bytes: int = 256 * 1024) -> None:
        self._reader_bytes = reader_bytes
        #: Id of the last stored event that was published here, or with which the history ended when we began; empty
        #: as long as we know of none. What stands behind it in the history has not been published yet.
        self.position = ""
        #: Where `position` stood before each of the latest prompts: what is cut off a history is its last turn, of
        #: which more may have been told than is kept here.
        self._anchors: deque[str] = deque(maxlen=_ANCHORS)
        self._kept_bytes = kept_bytes
        self._kept: deque[SessionEvent] = deque()
        self._size = 0
        self._channels: set[Channel] = set()

    @property
    def has_readers(self) -> bool:
        return bool(self._channels)

    @property
    def latest(self) -> str:
        """The cursor behind which the next event comes; empty as long as we know of none."""
        return self._kept[-1].cursor if self._kept else self.position

    def publish(self, event: SessionEvent) -> SessionEvent:
        """Give the event its cursor, keep it for a while, and hand it to every reader."""
        trace = event.is_trace
        if trace and event.ephemeral and self.latest:
            cursor = self.latest  # by its own it would not be found again
        elif event.ephemeral or event.type == _SELDOM_STORED:
            cursor = f"{self.position}~{event.id}"
        else:
            if event.type == "user.message" and self.position:
                self._anchors.append(self.position)
            cursor = self.position = event.id
        # Not `dataclasses.replace`: this is done for every event of every session.
        event = SessionEvent(event.id, event.type, event.raw, event.ephemeral, cursor)
        if not trace:
            self._keep(event)
        for channel in self._channels:
            channel.put(event)
        return event

    @property
    def readers(self) -> set[str]:
        """Those of whom it was said who they are."""
        return {channel.reader for channel in self._channels if channel.reader is not None}

    def subscribe(self, reader: str | None = None) -> Channel:
        """Args:
        reader: Whose subscription it is, so that `expel` ends it.
        """
        channel = Channel(self._reader_bytes, self._channels.discard, reader=reader)
        channel.position = self.position
        self._channels.add(channel)
        return channel

    def expel(self, reader: str, error: Exception) -> None:
        """This reader may not read any more."""
        for channel in list(self._channels):
            if channel.reader == reader:
                self._channels.discard(channel)
                channel.cut(error)

    def kept(self) -> list[SessionEvent]:
        return list(self._kept)

    @property
    def anchors(self) -> Sequence[str]:
        """Ids of stored events that were told before prompts, the latest first."""
        return tuple(reversed(self._anchors))

    def finish(self, error: AerodromeError | None = None) -> None:
        """The session is deleted, or (with an error that says so) has left this node: end every reader's stream."""
        for channel in list(self._channels):
            channel.finish(error)

    def _keep(self, event: SessionEvent) -> None:
        self._kept.append(event)
        self._size += size_of(event)
        while self._size > self._kept_bytes:
            self._size -= size_of(self._kept.popleft())


def size_of(event: SessionEvent) -> int:
    """What an event costs to keep, in bytes."""
    return len(event.raw) + _OVERHEAD
