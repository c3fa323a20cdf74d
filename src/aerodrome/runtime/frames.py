"""A TCP connection that carries frames: what every connection of ours has in common, whoever is at the other end.

Both ends of the CLI's protocol wait for delayed ACKs (docs/facts.md, "Wire"), so a frame is sent in one piece, Nagle is
off, and quick ACKs are asked for again after each read and write, because the kernel forgets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine
from typing import Any, Protocol, cast

from aerodrome.telemetry.meter import Traffic
from aerodrome.wire.framing import DEFAULT_MAX_FRAME, FrameDecoder, FramingError

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
#: Seconds for the last words on a connection that we close.
LINGER = 5.0


class FrameOwner(Protocol):
    """Called from the event loop's callbacks: all must be quick."""

    def on_bodies(self, bodies: list[bytes]) -> None:
        """The bodies that arrived in one piece, in order."""
        ...

    def on_closed(self, reason: str) -> None:
        """Called once, also when we have closed the connection ourselves; nothing else is called afterwards."""
        ...

    def on_paused(self, paused: bool) -> None:
        """The other end does not keep up with what is written to it, or does again."""
        ...


class FrameConnection(asyncio.Protocol):
    """Args:
    other: What to call the other end in reasons, such as "the runtime".
    skip: Pass over frames over the limit; the owner gets an `Oversized` for each. Otherwise they end the connection.
    traffic: What is read and written is added to it.
    """

    def __init__(
        self,
        owner: FrameOwner,
        *,
        max_frame: int = DEFAULT_MAX_FRAME,
        other: str = "the other end",
        skip: bool = False,
        traffic: Traffic | None = None,
    ) -> None:
        self._owner = owner
        self._traffic = traffic if traffic is not None else Traffic()
        self._other = other
        self._decoder = FrameDecoder(max_frame, skip=skip)
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._reading = True
        #: Nobody waits for the connection any more that is being made.
        self._given_up = False
        self._queued: list[bytes] = []
        self.paused = False
        #: Pieces that were read, whatever they were of.
        self.received = 0
        self.closed_reason: str | None = None
        #: Set when the transport has let go of the socket.
        self.gone = asyncio.Event()

    async def open(self, host: str, port: int) -> None:
        """Connect. Raises `OSError`, and `OverflowError` for a port that is none."""
        await self._opened(asyncio.get_running_loop().create_connection(lambda: self, host, port))

    async def open_over(self, connection: socket.socket) -> None:
        """Go on with a socket that is connected, and is ours from here on."""
        await self._opened(asyncio.get_running_loop().create_connection(lambda: self, sock=connection), taken=True)

    async def _opened(self, work: Coroutine[Any, Any, Any], *, taken: bool = False) -> None:
        """Args:
        taken: There is a socket already.
        """
        opening = asyncio.ensure_future(work)
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # Cancelled itself, uvloop closes a socket behind the back of its owner, and lets go of a transport without
            # calling `connection_lost`. So what is there already is left to come, and then aborted; a connection that
            # is being made is given up, and not taken when it comes all the same.
            if self._transport is None and not taken:
                self._given_up = True
                opening.cancel()
            opening.add_done_callback(_abort)
            raise

    def hand_over(self, owner: FrameOwner) -> None:
        """Somebody else is to hear of what comes from now on."""
        self._owner = owner

    @property
    def closed(self) -> bool:
        return self.closed_reason is not None

    @property
    def reading(self) -> bool:
        """What the other end sends is read, and not left waiting."""
        return self._reading

    @property
    def connected(self) -> bool:
        """There is, or was, a connection."""
        return self._transport is not None

    @property
    def peer(self) -> str:
        """Who is at the other end, for the log."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return f"{name[0]}:{name[1]}" if name else "?"

    @property
    def buffered(self) -> int:
        """Bytes that were written and wait for the other end."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def write(self, data: bytes) -> None:
        """One or more whole frames, behind those that are queued. Dropped when the connection is closed."""
        self._queued.append(data)
        self.flush()

    def queue(self, frame: bytes) -> None:
        """Write it with the next `flush` or `write`: a system call for each is most of what small frames cost."""
        self._queued.append(frame)

    def flush(self) -> None:
        if not self._queued:
            return
        frames = len(self._queued)
        data = self._queued[0] if frames == 1 else b"".join(self._queued)
        self._queued.clear()
        if self._transport is not None and self.closed_reason is None:
            self._traffic.frames_out += frames
            self._traffic.bytes_out += len(data)
            self._transport.write(data)
            # Who sends is taken for one who converses, and whose ACKs can wait for the next thing it sends: without
            # this one turn in twenty waited 40 ms (measured).
            self._quick_ack()

    def take_frames_of(self, max_frame: int) -> None:
        """From now on the other end may send frames of so many bytes."""
        self._decoder.max_frame = max_frame

    def read_more(self, wanted: bool) -> None:
        """Read from the other end, or leave it waiting."""
        if self._transport is None or self.closed or self._transport.is_closing() or wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def close(self, reason: str) -> None:
        """Close after what is buffered has been sent, or a while later: the other end may never take it."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            asyncio.get_running_loop().call_later(LINGER, self._transport.abort)
        self._lost(reason)

    def abort(self, reason: str) -> None:
        """Cut the connection now."""
        if self._transport is not None:
            self._transport.abort()
        self._lost(reason)

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports implement the interface without being subclasses of it.
        made = cast("asyncio.Transport", transport)
        if self._given_up:
            made.abort()
            return
        self._transport = made
        if self.closed_reason is not None:
            self._transport.abort()
            return
        shown: socket.socket | None = transport.get_extra_info("socket")
        if shown is not None:
            with contextlib.suppress(OSError):  # the peer has closed already; `connection_lost` is about to be called
                # The transport's own stand-in makes a socket object for each option that is set, in uvloop.
                self._socket = socket.socket(shown.family, shown.type, shown.proto, fileno=os.dup(shown.fileno()))
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._quick_ack()

    def data_received(self, data: bytes) -> None:
        self.received += 1
        self._traffic.bytes_in += len(data)
        self._quick_ack()
        try:
            bodies = self._decoder.feed(data)
        except FramingError as error:
            if error.bodies:
                self._owner.on_bodies(error.bodies)
            self.close(f"broken framing from {self._other}: {error}")
            return
        self._traffic.frames_in += len(bodies)
        if bodies and self.closed_reason is None:
            self._owner.on_bodies(bodies)

    def eof_received(self) -> None:
        try:
            self._decoder.eof()
        except FramingError as error:
            self._lost(f"{self._other} closed the connection: {error}")
        else:
            self._lost(f"{self._other} closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost("the connection was lost" + (f": {exc}" if exc else ""))
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.gone.set()

    def pause_writing(self) -> None:
        self.paused = True
        if self.closed_reason is None:
            self._owner.on_paused(True)

    def resume_writing(self) -> None:
        self.paused = False
        if self.closed_reason is None:
            self._owner.on_paused(False)

    # --- inside ---

    def _quick_ack(self) -> None:
        if _QUICKACK is None or self._socket is None:
            return
        try:  # noqa: SIM105 - `suppress` costs more than the call, at each read
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        except OSError:
            pass

    def _lost(self, reason: str) -> None:
        if self.closed_reason is None:
            self.closed_reason = reason
            self._owner.on_closed(reason)


def _abort(opened: asyncio.Future[tuple[asyncio.BaseTransport, Any]]) -> None:
    """Of a connection that nobody waits for any more."""
    if not opened.cancelled() and opened.exception() is None:
        cast("asyncio.Transport", opened.result()[0]).abort()
