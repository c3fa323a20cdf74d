"""A relay between clients and a server that passes on every byte, and may listen.

It acknowledges at once what it reads, which the other ends wait for before they send the second half of each message
(docs/facts.md, "Wire"): through it, tests of the SDKs take half the time.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aerodrome._util.tasks import TaskOwner

#: (number of the connection from 0, whether from the client to the server, the bytes).
Tap = Callable[[int, bool, bytes], None]

_PIECE = 1 << 16
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class _Relay:
    def __init__(self, upstream: tuple[str, int], make_tap: Callable[[], Tap] | None) -> None:
        self._upstream = upstream
        self._make_tap = make_tap
        self._links = 0
        self._owner = TaskOwner("relay")

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._owner.start(self._relay(self._links, reader, writer), "link")
        self._links += 1

    async def aclose(self) -> None:
        await self._owner.aclose()

    async def _relay(self, link: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._upstream)
        tap = self._make_tap() if self._make_tap else None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(link, True, reader, writer, server_writer, tap))
                group.create_task(self._pump(link, False, server_reader, server_writer, writer, tap))
        finally:
            writer.transport.abort()
            server_writer.transport.abort()

    async def _pump(
        self,
        link: int,
        up: bool,
        reader: asyncio.StreamReader,
        source: asyncio.StreamWriter,
        sink: asyncio.StreamWriter,
        tap: Tap | None,
    ) -> None:
        try:
            acknowledge_quickly(source)
            while data := await reader.read(_PIECE):
                acknowledge_quickly(source)
                if tap is not None:
                    tap(link, up, data)
                sink.write(data)
                await sink.drain()
            sink.write_eof()
        except OSError:
            # One side is gone, and so is the link.
            sink.transport.abort()


def acknowledge_quickly(writer: asyncio.StreamWriter) -> None:
    """Until the kernel forgets, which it does with each piece."""
    if _QUICKACK is not None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)


@asynccontextmanager
async def relaying(host: str, port: int, make_tap: Callable[[], Tap] | None = None) -> AsyncIterator[str]:
    """A relay to this server; gives its own address, "host:port".

    Args:
        make_tap: Called for each connection; the tap it makes hears what passes, before it is passed on.
    """
    relay = _Relay((host, port), make_tap)
    server = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    async with server:
        own_host, own_port = server.sockets[0].getsockname()[:2]
        try:
            yield f"{own_host}:{own_port}"
        finally:
            await relay.aclose()
