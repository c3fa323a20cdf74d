"""A connection that carries frames, over real sockets: what is written, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aerodrome.runtime.frames import FrameConnection

pytestmark = pytest.mark.timeout(60)


class _Owner:
    """A `FrameOwner` that has nothing to say."""

    def on_bodies(self, bodies: list[bytes]) -> None:
        pass

    def on_closed(self, reason: str) -> None:
        pass

    def on_paused(self, paused: bool) -> None:
        pass


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[FrameConnection, asyncio.StreamReader]]:
    """A connection and what the other end reads from it."""
    arrived: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    arrived = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda reader, writer: arrived.set_result((reader, writer)), "127.0.0.1", 0)
    async with server:
        connection = FrameConnection(_Owner())
        await asyncio.get_running_loop().create_connection(lambda: connection, *server.sockets[0].getsockname()[:2])
        reader, writer = await arrived
        try:
            yield connection, reader
        finally:
            connection.abort("the test is over")
            await connection.gone.wait()
            writer.transport.abort()


async def test_queued_frames_leave_with_the_next_flush_or_write_in_order() -> None:
    async with connected() as (connection, reader):
        connection.queue(b"one ")
        connection.queue(b"two ")
        connection.flush()
        connection.flush()
        connection.queue(b"three ")
        connection.write(b"four")
        assert await reader.readexactly(18) == b"one two three four"


async def test_what_is_queued_when_the_connection_goes_is_dropped() -> None:
    async with connected() as (connection, reader):
        connection.queue(b"late")
        connection.close("enough")
        connection.flush()
        connection.queue(b"later")
        connection.flush()
        assert await reader.read() == b""
