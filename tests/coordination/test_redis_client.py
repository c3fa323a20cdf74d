"""Errors that come past the Redis driver, and how it logs in."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import uvloop
from redis import Redis

from aerodrome._util.redis_url import RedisUrl
from aerodrome.coordination.backends.redis_client import RedisClient, is_closed_connection, trouble_of
from support.stores import valkey


async def _write_to_a_closed_connection() -> RuntimeError:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.transport.abort()
        await asyncio.wait_for(writer.wait_closed(), 10)
        with pytest.raises(RuntimeError) as caught:
            writer.writelines([b"x"])
        return caught.value


def test_a_write_to_a_connection_that_has_closed_is_an_outage_also_on_uvloop() -> None:
    error = uvloop.run(_write_to_a_closed_connection())
    assert is_closed_connection(error)
    assert trouble_of(error).passing


async def test_such_a_call_is_tried_again_and_a_bug_is_not() -> None:
    client = RedisClient(RedisUrl.parse("redis://127.0.0.1:1"), timeout=5, patience=5)
    failures = [RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")]

    async def call(_: object) -> int:
        if failures:
            raise failures.pop()
        return 7

    assert await client._call(call) == 7
    failures.append(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        await client._call(call)
    await client.aclose()


async def test_user_and_password_of_a_connection_are_of_the_same_moment() -> None:
    with valkey() as server, Redis(port=server.port) as admin:
        for user in ("one", "two"):
            admin.acl_setuser(user, enabled=True, passwords=[f"+{user}-password"], categories=["+@all"])
        # As if the secret changed whenever it has been looked at.
        addresses = itertools.cycle(
            f"redis://{user}:{user}-password@127.0.0.1:{server.port}" for user in ("one", "two")
        )
        first = RedisUrl.parse(next(addresses))
        client = RedisClient(first, current=lambda: RedisUrl.parse(next(addresses)))
        await client.open()
        await client.aclose()
