"""Connections on which nothing is asked: they are bounded in number, and cost nobody who asks for something."""

from __future__ import annotations

import gc

import pytest

from aerodrome.http.limits import HttpLimits
from aerodrome.http.protocol import GuardedProtocol
from support.http_front import EVENTS, MESSAGES, Front, RawClient, request
from support.scripted_sessions import event
from support.waiting import until

ASK = request("GET", MESSAGES)
BAD_KEY = request("GET", MESSAGES, key="aero_nobodys")


@pytest.fixture
def limits() -> HttpLimits:
    return HttpLimits(max_silent=3)


async def stranger(front: Front) -> RawClient:
    """A connection that the server knows of, and that says nothing."""
    before = front.server.connections
    client = await front.raw()
    await until(lambda: front.server.connections > before)
    return client


async def test_of_too_many_silent_connections_the_one_that_was_silent_for_longest_is_cut(front: Front) -> None:
    first, second, third = [await stranger(front) for _ in range(3)]
    await front.raw()
    assert await first.is_closed()
    for client in (second, third):
        await client.send(ASK)
        assert (await client.response())[0] == 200


async def test_who_asks_for_something_is_silent_anew_with_the_answer(front: Front) -> None:
    clients = [await front.raw(ASK) for _ in range(3)]
    for client in clients:
        assert (await client.response())[0] == 200
    kept, longest, _ = clients
    await kept.send(ASK)
    assert (await kept.response())[0] == 200
    await front.raw()
    assert await longest.is_closed()
    await kept.send(ASK)
    assert (await kept.response())[0] == 200


async def test_who_is_being_answered_is_not_counted(front: Front) -> None:
    readers = [await front.raw(request("GET", EVENTS)) for _ in range(4)]
    for reader in readers:
        assert (await reader.head())[0] == 200
    first, *_ = [await stranger(front) for _ in range(3)]
    await front.raw()
    assert await first.is_closed()
    for reader, stream in zip(readers, front.sessions.streams, strict=True):
        stream.put(event(1))
        assert (await reader.event())[0] == "e1"


async def test_who_was_refused_is_counted(front: Front) -> None:
    refused = await front.raw(BAD_KEY)
    assert (await refused.response())[0] == 401
    for _ in range(3):
        await front.raw()
    assert await refused.is_closed()


async def test_who_has_gone_is_forgotten(front: Front) -> None:
    for client in [await stranger(front) for _ in range(3)]:
        client.abort()
    await until(lambda: not _connections())


def _connections() -> list[object]:
    gc.collect()
    return [each for each in gc.get_objects() if issubclass(type(each), GuardedProtocol)]
