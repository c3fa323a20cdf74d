"""One HTTP/1.1 connection of the model server: h11 for the protocol, asyncio for the bytes.

What a response writes is collected and leaves in one segment at the next `flush`: header and body written apart
would wait for the client's delayed ACK. The connection goes on reading while a response is made, because that is
how a client that went away is noticed; its response is then cancelled.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

import h11

from aerodrome._util.tasks import TaskOwner

#: Largest request body, in bytes.
MAX_BODY = 64 * 1024 * 1024
# Bytes collected before a response is flushed by itself.
_FLUSH_AT = 64 * 1024
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    method: str
    #: Without the query.
    path: str
    #: Names in lower case; of a repeated one the last.
    headers: dict[str, str]
    body: bytes


Handler = Callable[[HttpRequest, "Connection"], Awaitable[None]]


class Connection(asyncio.Protocol):
    """Requests in, one response at a time out: `handler` calls `respond`, or `start`, `send` and `finish`."""

    def __init__(self, handler: Handler, tasks: TaskOwner, live: set[Connection]) -> None:
        self._handler = handler
        self._tasks = tasks
        self._live = live
        self._h11 = h11.Connection(h11.SERVER)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._out = bytearray()
        self._response: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        #: Done when the socket is closed.
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked by class: uvloop's transports are no asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._live.add(self)

    def data_received(self, data: bytes) -> None:
        if _QUICKACK is not None:
            # The kernel resets it; without it a client that sends header and body apart waits 40 ms for our ACK.
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        self._h11.receive_data(data)
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        self._live.discard(self)
        self._writable.set()
        if self._response is not None:
            self._response.cancel()
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # What a handler calls.

    async def respond(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, kind: str = "application/json"
    ) -> None:
        """A whole response."""
        self.start(status, {"content-type": kind, "content-length": str(len(body)), **(headers or {})})
        await self.send(body)
        await self.finish()

    def start(self, status: int, headers: dict[str, str]) -> None:
        """The header; without a `content-length` the body is chunked."""
        self._collect(h11.Response(status_code=status, headers=list(headers.items())))

    async def send(self, data: bytes) -> None:
        """More of the body, which may stay here until `flush` or `finish`."""
        self._collect(h11.Data(data=data))
        if len(self._out) >= _FLUSH_AT:
            await self.flush()

    async def flush(self) -> None:
        """Write what is collected, and wait while the client reads too slowly."""
        if self._out:
            self._transport.write(bytes(self._out))
            self._out.clear()
        await self._writable.wait()

    async def finish(self) -> None:
        self._collect(h11.EndOfMessage())
        await self.flush()

    async def drop(self) -> None:
        """Close in the middle of the response, after what was sent so far."""
        await self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    # Between the two.

    def _collect(self, event: h11.Event) -> None:
        self._out += self._h11.send(event) or b""

    def _advance(self) -> None:
        try:
            while self._step(self._h11.next_event()):
                pass
        except h11.RemoteProtocolError:
            # Not HTTP: there is no request to answer.
            self._transport.close()

    def _step(self, event: h11.Event | type[h11.NEED_DATA | h11.PAUSED]) -> bool:
        """Take one event; whether there may be more to take now."""
        if isinstance(event, h11.Request):
            self._head = event
            self._body.clear()
            return True
        if isinstance(event, h11.Data):
            self._body += event.data
            if len(self._body) <= MAX_BODY:
                return True
            self._transport.close()
        elif isinstance(event, h11.EndOfMessage):
            self._response = self._tasks.start(self._answer(self._request()), name="response")
        elif isinstance(event, h11.ConnectionClosed):
            self._transport.close()
        # The response runs, or more bytes are needed; a pipelined request waits in h11 until the cycle ends.
        return False

    def _request(self) -> HttpRequest:
        assert self._head is not None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._head.headers}
        path = self._head.target.decode("latin-1").partition("?")[0]
        return HttpRequest(self._head.method.decode("latin-1"), path, headers, bytes(self._body))

    async def _answer(self, request: HttpRequest) -> None:
        try:
            await self._handler(request, self)
        finally:
            self._response = None
            if self._h11.our_state is h11.DONE and not self._transport.is_closing():
                self._h11.start_next_cycle()
                self._advance()
            else:
                # Closed by agreement, dropped, or the handler failed in the middle.
                self._transport.close()
