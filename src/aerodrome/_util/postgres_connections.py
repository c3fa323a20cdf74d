"""Connections to a PostgreSQL database: how they are made, cut when nobody answers, and lent out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from aerodrome.errors import ConfigError, StoreUnavailable

#: What a connection lent out is to psycopg: rows are tuples.
Connection = psycopg.AsyncConnection[tuple[Any, ...]]

#: So that a server whose machine is gone, or cut off, is noticed within seconds. What the URL says goes first.
_KEEPALIVES: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "connect_timeout": 5,
    "application_name": "aerodrome",
}


def conninfo_of(url: str) -> str:
    """What libpq is told of the database. Raises `ConfigError`: the URL cannot be understood."""
    try:
        return make_conninfo("", **(_KEEPALIVES | conninfo_to_dict(url)))
    except psycopg.ProgrammingError:
        # libpq's own words may quote the password.
        raise ConfigError(
            "the PostgreSQL URL cannot be understood: postgresql://USER:PASSWORD@HOST:PORT/NAME"
        ) from None


@contextmanager
def cut_after(connection: Connection, seconds: float) -> Iterator[None]:
    """Cut the connection when the block takes longer.

    From below, at the socket: cancelling would first wait for the server to confirm it, which may be stopped.
    """
    timer = asyncio.get_running_loop().call_later(seconds, _cut, connection)
    try:
        yield
    finally:
        timer.cancel()


def _cut(connection: Connection) -> None:
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


class Pool:
    """Connections that are made when needed and kept. Fewer than a hundred, hence no task of its own."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int) -> None:
        self._connect = connect
        self._size = size
        self._room = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self.closed = True

    @asynccontextmanager
    async def lend(self, give_up: float) -> AsyncIterator[Connection]:
        """A connection for the time of the block; it goes back if it is of use still.

        Raises:
            psycopg.Error: A new one cannot be made.
            StoreUnavailable: None becomes free in time, or the database is not open.
        """
        if self.closed:
            raise StoreUnavailable("the PostgreSQL database is not open")
        try:
            async with asyncio.timeout(max(0.001, give_up - monotonic())):
                await self._room.acquire()
        except TimeoutError:
            raise StoreUnavailable(f"all {self._size} connections to PostgreSQL are in use", retry_after=1.0) from None
        try:
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                yield connection
            finally:
                idle = not connection.closed and connection.info.transaction_status is TransactionStatus.IDLE
                if idle and not self.closed:
                    self._idle.append(connection)
                else:
                    await connection.close()
        finally:
            self._room.release()

    async def forget_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()

    async def aclose(self) -> None:
        self.closed = True
        await self.forget_idle()
