"""Server-sent events: the wire format, and the response that streams them.

Two tasks serve a reader. One takes events from the subscription and formats them into the `Outbox`; the other
sends what has gathered there, as one chunk. Events that are there already thus cost one write together, and
a reader that does not keep up stops its own subscription from being read, which is bounded and cuts it off
(`Lagging`); nobody else waits. That a reader takes nothing at all is for `protocol.py` to notice.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from fastapi import Response
from starlette.types import Receive, Scope, Send

from aerodrome.errors import AerodromeError
from aerodrome.events import SessionEvent
from aerodrome.http.encoding import encode
from aerodrome.http.limits import HttpLimits
from aerodrome.http.problems import internal_problem, problem, problem_of
from aerodrome.http.shutdown import Signal
from aerodrome.sessions.api import EventStream, Lagging
from aerodrome.wire.envelope import is_json

log = structlog.get_logger(__name__)

MEDIA_TYPE = "text/event-stream"
_HEADERS = {
    "Cache-Control": "no-store",
    # nginx would gather a whole buffer of events before it passes the first one on.
    "X-Accel-Buffering": "no",
}
_HEARTBEAT = b":\n\n"
#: As numbers: bytes are searched for a number in half the time.
_LF, _CR = b"\n\r"
#: Seconds between two chunks to one reader. A chunk costs as much as dozens of events, and a fast model's answer comes
#: in hundreds; a reader sees no difference, and an event that comes alone is not delayed.
PACE = 0.02


def event_frame(event: SessionEvent) -> bytes:
    """The event with its envelope's own bytes as data."""
    raw = event.raw
    if _LF in raw or _CR in raw:
        # Between two tokens, the only place where JSON has them, a space means the same.
        raw = raw.replace(b"\n", b" ").replace(b"\r", b" ")
    cursor = event.cursor or event.id
    head = f"id: {cursor}\nevent: {event.type}\ndata: "
    if head.count("\n") > 2 or "\r" in head or "\0" in head:
        head = f"id: {_field(cursor)}\nevent: {_field(event.type)}\ndata: "
    return b"%b%b\n\n" % (head.encode("utf-8", "replace"), raw)


def frame(event: str, value: Any) -> bytes:
    """An event of our own. It has no id: a reader that resumes does so from the last event of the session."""
    return b"event: %b\ndata: %b\n\n" % (event.encode("ascii"), encode(value))


def _field(text: str) -> str:
    # A line break would start a field of the runtime's choosing; browsers ignore an id with a NUL.
    return "".join(text.replace("\0", "\n").split())


class Outbox:
    """Formatted events on their way to one reader."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._frames: list[bytes] = []
        self._size = 0
        self._closed = False
        self._room: asyncio.Future[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._pace: asyncio.Future[None] | None = None
        #: When the last chunk was taken, on the loop's clock.
        self._taken_at = -math.inf

    @property
    def is_empty(self) -> bool:
        return not self._frames

    @property
    def is_full(self) -> bool:
        return self._size >= self._limit and not self._closed

    async def put(self, data: bytes) -> None:
        """Add a frame; waits while there is more than the limit. Does not give way to others otherwise."""
        if self.is_full:
            await self.room()
        self.add(data)

    async def room(self) -> None:
        """Wait until there is less than the limit."""
        while self.is_full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def add(self, data: bytes) -> None:
        """Add a frame whatever the limit, for the few that are ours."""
        if not self._closed:
            self._frames.append(data)
            self._size += len(data)
            _wake(self._ready)
            if self._size >= self._limit:
                _wake(self._pace)

    def close(self) -> None:
        """No more frames: `take` returns what is there, then nothing."""
        self._closed = True
        _wake(self._ready)
        _wake(self._pace)
        _wake(self._room)

    def discard(self) -> None:
        """Close, and forget what is there: nobody will fetch it."""
        self._frames.clear()
        self.close()

    async def take(self) -> bytes:
        """Everything that waits, as one chunk; empty at the end. At most one chunk each `PACE`, unless it is full."""
        loop = asyncio.get_running_loop()
        while not self._frames and not self._closed:
            self._ready = loop.create_future()
            await self._ready
        early = self._taken_at + PACE - loop.time()
        if early > 0 and self._size < self._limit and not self._closed:
            self._pace = loop.create_future()
            timer = loop.call_later(early, _wake, self._pace)
            try:
                await self._pace
            finally:
                timer.cancel()
        self._taken_at = loop.time()
        chunk = b"".join(self._frames)
        self._frames.clear()
        self._size = 0
        _wake(self._room)
        return chunk


async def relay(
    events: EventStream, outbox: Outbox, *, trace: bool, on_event: Callable[[SessionEvent], None] = lambda _: None
) -> None:
    """Everything of a subscription until it ends; raises what it raises.

    Args:
        on_event: Called with each event that has been dealt with.
    """
    async for event in events:
        if not event.is_trace or (trace and is_json(event.raw)):
            if outbox.is_full:  # not `put`, which would be a coroutine for each
                await outbox.room()
            outbox.add(event_frame(event))
        on_event(event)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class SseResponse(Response):
    """A stream that ends when `produce` returns, the reader goes, or the server stops.

    Args:
        produce: Puts frames into the outbox. What it raises is told to the reader as event `error`.
        on_close: Called once at the end, whatever the end was.
        on_disconnect: Called before `on_close` if the reader went first.
        stop: Ends the stream, with the frame that `farewell` returns.
        limits: Of these `heartbeat` and `stream_buffer`.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        produce: Callable[[Outbox], Awaitable[None]],
        *,
        on_close: Callable[[], None],
        on_disconnect: Callable[[], None] = lambda: None,
        stop: Signal,
        farewell: Callable[[], bytes],
        limits: HttpLimits,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._produce = produce
        self._on_close = on_close
        self._on_disconnect = on_disconnect
        self._stop = stop
        self._farewell = farewell
        self._heartbeat = limits.heartbeat
        self._outbox = Outbox(limits.stream_buffer)
        self._filling: asyncio.Task[None] | None = None
        self._disconnected = False
        self._complete = False

    def end(self, last: bytes) -> None:
        """End the stream with this frame."""
        if self._filling is not None:
            self._filling.cancel()
        self._outbox.add(last)
        self._outbox.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._filling = fill = asyncio.create_task(self._fill(), name="http:sse-fill")
        watch = asyncio.create_task(self._watch(receive), name="http:sse-watch")
        unsubscribe = self._stop.subscribe(lambda: self.end(self._farewell()))
        timer = _Timer(self._heartbeat, self._beat)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while chunk := await self._outbox.take():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            self._complete = True
            if not self._disconnected:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            unsubscribe()
            timer.cancel()
            fill.cancel()
            watch.cancel()
            await asyncio.gather(fill, watch, return_exceptions=True)
            if self._disconnected:
                self._on_disconnect()
            self._on_close()

    async def _fill(self) -> None:
        outbox = self._outbox
        try:
            await self._produce(outbox)
        except Lagging:
            document = problem("capacity", "this reader is too slow; resume GET .../events with Last-Event-ID")
            outbox.add(frame("error", document))
        except AerodromeError as error:
            outbox.add(frame("error", problem_of(error)))
        except Exception:
            log.exception("http.stream_failed")
            outbox.add(frame("error", internal_problem()))
        outbox.close()

    async def _watch(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except AerodromeError as error:
            # The request's own body, which nobody asked for, is too large or stalls.
            self._outbox.add(frame("error", problem_of(error)))
            self._outbox.close()
            return
        # The server says "disconnect" of a response that is complete, too.
        if not self._complete:
            self._disconnected = True
            self._outbox.discard()

    def _beat(self) -> None:
        # A reader that has something to fetch needs no sign of life, and would only gather them.
        if self._outbox.is_empty:
            self._outbox.add(_HEARTBEAT)


class _Timer:
    """Calls back every so many seconds. A timer, not a task: thousands of idle streams have one each."""

    def __init__(self, interval: float, callback: Callable[[], None]) -> None:
        self._interval = interval
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(interval, self._fire)

    def _fire(self) -> None:
        self._handle = self._loop.call_later(self._interval, self._fire)
        self._callback()

    def cancel(self) -> None:
        self._handle.cancel()
