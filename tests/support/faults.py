"""A wire between a node and whatever it talks to, which can be made slow, cut, and made to swallow what it is given.

Each is a proxy on real sockets, so that what is tested is what the drivers do with a real connection:

========== ==================================================================================================
`slow`     every piece is passed on so many seconds later
`cut`      the connections there are end with RST, and new ones as soon as they are made
`swallow`  half-open: connections are accepted and stand, nothing that is sent arrives, and nobody is told. Those
           that stood then stay dead for ever, as those do that a router has forgotten
`heal`     new connections are as good as any
========== ==================================================================================================
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from aerodrome._util.tasks import TaskOwner

_PIECE = 1 << 16


@dataclass(eq=False)
class _Link:
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    #: It has lost something, or shall: nothing passes any more, in neither direction.
    dead: bool = False


class Wire:
    """Made by `wire`."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        #: Host and port of the server.
        self.upstream = upstream
        self.port = 0
        #: Connections that were made through it.
        self.connections = 0
        #: Bytes it has swallowed.
        self.swallowed = 0
        self._delay = 0.0
        self._refuse = False
        self._deaf = False
        self._links: set[_Link] = set()
        self._owner = TaskOwner("wire")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def slow(self, seconds: float) -> None:
        self._delay = seconds

    def cut(self) -> None:
        self._refuse = True
        self.reset()

    def reset(self) -> None:
        """End the connections there are with RST; new ones are as good as any."""
        for link in list(self._links):
            _reset(link)

    def swallow(self) -> None:
        self._deaf = True
        for link in self._links:
            link.dead = True

    def heal(self) -> None:
        self._delay, self._refuse, self._deaf = 0.0, False, False

    # --- inside ---

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = _Link([writer], dead=self._deaf)
        if self._refuse or self._owner.closed or not self.upstream[1]:
            _reset(link)
            return
        self._links.add(link)
        self._owner.start(self._serve(link, reader, writer), "link")

    async def aclose(self) -> None:
        await self._owner.aclose()
        for link in self._links:
            for one in link.writers:
                one.transport.abort()
        await asyncio.sleep(0)  # the transports let go of their sockets

    async def _serve(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if link.dead:
                await self._swallow_all(reader)
                return
            try:
                far_reader, far_writer = await asyncio.open_connection(*self.upstream)
            except OSError:
                _reset(link)
                return
            link.writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(link, reader, far_writer))
                group.create_task(self._pump(link, far_reader, writer))
        finally:
            self._links.discard(link)
            for one in link.writers:
                one.transport.abort()

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await pieces.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if link.dead:
                    self.swallowed += len(data)
                elif data:
                    sink.write(data)
                    await sink.drain()
                else:
                    sink.write_eof()
                    return

        async def take() -> None:
            # Pieces and their end, each as late as the wire is slow when it comes.
            while data := await reader.read(_PIECE):
                pieces.put_nowait((loop.time() + self._delay, data))
            pieces.put_nowait((loop.time() + self._delay, b""))

        with suppress(OSError):
            delivering = asyncio.ensure_future(deliver())
            try:
                await take()
                await delivering
            except OSError:
                if not link.dead:
                    _reset(link)
            finally:
                delivering.cancel()

    async def _swallow_all(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await reader.read(_PIECE):
                self.swallowed += len(data)


def _reset(link: _Link) -> None:
    for writer in link.writers:
        with suppress(OSError):
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


@asynccontextmanager
async def wire(host: str = "", port: int = 0) -> AsyncIterator[Wire]:
    """A wire to this server; without one it leads nowhere until `upstream` is set."""
    made = Wire((host, port))
    server = await asyncio.start_server(made.accept, "127.0.0.1", 0)
    async with server:
        made.port = server.sockets[0].getsockname()[1]
        try:
            yield made
        finally:
            server.close()
            await made.aclose()
