"""uvicorn's HTTP/1.1 connection, with an end for peers that stall.

uvicorn bounds what it buffers, but waits for a silent peer for ever: one that opened a connection and never
finishes its request's head, one that has bytes to fetch and takes none, one whose body was refused and that goes
on sending it. Each holds a task, a subscription and two buffers. Here the transport is cut; for the
application that is a client that went away.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextvars import Context
from typing import Any, ClassVar, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from aerodrome.http.encoding import encode
from aerodrome.http.limits import HttpLimits
from aerodrome.http.problems import MEDIA_TYPE, problem

#: What uvicorn says of its own errors. Its warnings are of what strangers send, who would fill the log with them.
_log_of_errors = logging.getLogger("aerodrome.http.uvicorn")
_log_of_errors.setLevel(logging.ERROR)


def protocol_class(limits: HttpLimits) -> type[GuardedProtocol]:
    """The class with these limits; uvicorn wants a class it can call itself."""
    return type("HttpProtocol", (GuardedProtocol,), {"limits": limits, "silent": {}})


class GatheringTransport:
    """Writes what is written in one go as one piece: uvicorn writes the head of a response and its body one by one, and
    each is a system call here and a wake-up at the peer.

    A stand-in for the transport, which has everything else.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + sum(map(len, self._pieces))

    def _flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        if data and not self._transport.is_closing():  # uvloop raises on one that is closed
            self._transport.write(data)


class GuardedProtocol(H11Protocol):
    limits: ClassVar[HttpLimits] = HttpLimits()
    #: Those on which no request is being answered, of one server. Who has been for longest comes first.
    silent: ClassVar[dict[GuardedProtocol, None]] = {}

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = _log_of_errors
        self.timeout_keep_alive = self.limits.keep_alive  # type: ignore[assignment]  # seconds of any kind
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # Only of `write` uvicorn needs another behaviour than the transport's.
        super().connection_made(cast("asyncio.Transport", GatheringTransport(transport, self.loop)))
        # A peer whose machine or network vanished acknowledges nothing; the kernel's own patience with
        # bytes on the way is a quarter of an hour.
        sock = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and sock.family in (socket.AF_INET, socket.AF_INET6):
            milliseconds = int(self.limits.write_timeout * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._expect_head()
        self._fall_silent()

    def connection_lost(self, exc: Exception | None) -> None:
        self.silent.pop(self, None)
        self._stop_read_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    # Reading: the head of a request, and the rest of a body whose request is answered already. Both get the time once
    # and not with every byte, or they could be sent for ever, the head by whoever has no key at all. A body that
    # somebody waits for is timed by the middleware, which can say so in an answer.

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering():
            self.silent.pop(self, None)
        if self.conn.their_state is h11.IDLE:
            self._expect_head()
        elif not self._body_is_unwanted():
            self._stop_read_timer()

    def handle_events(self) -> None:
        # A request that was sent behind another one is begun by the end of that one, in its task. It is none of its
        # business who that one's caller was, and where in which trace.
        Context().run(super().handle_events)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_answering() and not self.transport.is_closing():
            self._fall_silent()
        if self._body_is_unwanted():
            self._stop_read_timer()
            self._read_timer = self.loop.call_later(self.limits.read_timeout, self.transport.abort)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _fall_silent(self) -> None:
        self.silent[self] = None
        if len(self.silent) > self.limits.max_silent:
            longest = next(iter(self.silent))
            del self.silent[longest]
            longest.transport.close()  # what it has not fetched yet of its last answer is not lost

    def _body_is_unwanted(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(self.limits.read_timeout, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP at all is answered as everything else is: with a problem document."""
        body = encode(problem("invalid", "this is not a valid HTTP/1.1 request"))
        headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
        try:
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            # An answer to an earlier request is on its way; it can not be taken back.
            pass
        self.transport.close()

    # Writing: the transport says when its buffer is full. From then on it must shrink from one look to the
    # next; a slow peer is served, one that has stopped is not.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_buffer(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def _watch_buffer(self, size: int) -> None:
        self._write_timer = self.loop.call_later(self.limits.write_timeout, self._look_at_buffer, size)

    def _look_at_buffer(self, before: int) -> None:
        size = self.transport.get_write_buffer_size()
        if size >= before:
            self.transport.abort()
        else:
            self._watch_buffer(size)

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
