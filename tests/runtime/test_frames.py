"""A connection that carries frames, over real sockets: what is written, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import uvloop

from aerodrome.runtime.frames import FrameConnection
from aerodrome.runtime.ports import connected as connected_socket

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
        await connection.open(*server.sockets[0].getsockname()[:2])
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


@pytest.mark.parametrize("by", ["address", "socket"])
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_who_is_cancelled_while_it_connects_leaves_no_connection(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], by: str
) -> None:
    """In whatever moment that comes: of a connection that is given up when it has just been made, uvloop does not tell
    the protocol that it has ended."""

    async def give_up(address: tuple[str, int], ticks: int) -> bool:
        connection = FrameConnection(_Owner())

        async def connect() -> None:
            if by == "address":
                await connection.open(*address)
            else:
                await connection.open_over(await connected_socket(*address))

        connecting = asyncio.create_task(connect())
        for _ in range(ticks):
            await asyncio.sleep(0)
        done = connecting.done()
        connecting.cancel()
        await asyncio.wait({connecting})
        if connection.connected:
            connection.abort("it is not wanted any more")
            await connection.gone.wait()
        return done

    async def main() -> None:
        served: set[asyncio.Task[None] | None] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            served.add(asyncio.current_task())
            with suppress(ConnectionError):
                await reader.read()
            writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        ticks = 0
        while not await give_up(address, ticks):
            ticks += 1
        # The server has seen the end of each that it has seen come.
        while not served:
            await asyncio.sleep(0)
        await asyncio.gather(*filter(None, served))
        server.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
