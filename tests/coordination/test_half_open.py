"""Heartbeats over connections whose other end is gone without a word, to real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aerodrome._util.clock import SystemClock
from aerodrome.app.stores import open_stores
from aerodrome.coordination.heartbeat import Heartbeat
from aerodrome.errors import StoreUnavailable
from support.faults import Wire, wire
from support.host import make_settings
from support.postgres import fresh_schema, shared_server
from support.stores import shared_valkey

TTL = 2.0
#: Seconds, of the clock below, by which a heartbeat may miss its deadline.
SLACK = 0.1
_TICK = 0.02

Clock = Callable[[], float]


@pytest.fixture
async def lived() -> AsyncIterator[Clock]:
    """A clock that stands still while this process does, which is no fault of a heartbeat's."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(_TICK)
            ticks += 1

    ticking = asyncio.create_task(tick())
    yield lambda: ticks * _TICK
    ticking.cancel()
    await asyncio.wait([ticking])


@asynccontextmanager
async def beating(directory: Path, store: str) -> AsyncIterator[tuple[Heartbeat, Wire]]:
    server: Any = shared_valkey() if store == "valkey" else shared_server()
    async with AsyncExitStack() as stack:
        between = await stack.enter_async_context(wire("127.0.0.1", server.port))
        coordination = {
            "url": server.url.replace(str(server.port), str(between.port)),
            "database_schema": fresh_schema(),
            "key_prefix": fresh_schema(),
            "heartbeat": "500ms",
            "ttl": f"{TTL:g}s",
        }
        settings = make_settings(directory, "http://127.0.0.1:9", coordination=coordination)
        stores = await stack.enter_async_context(open_stores(settings))
        # By itself it beats once, and then not before the test is over.
        heartbeat = Heartbeat(stores.coordination, "a", interval=3600, ttl=TTL, clock=SystemClock(), load=dict)
        await heartbeat.start()
        stack.push_async_callback(heartbeat.aclose)
        for _ in range(2):  # the second is behind its own first one
            await beat_until_through(heartbeat)
        yield heartbeat, between


async def timed_beat(heartbeat: Heartbeat, clock: Clock) -> tuple[float, bool]:
    """Seconds it took, and whether it got through."""
    began = clock()
    through = await got_through(heartbeat)
    return clock() - began, through


async def got_through(heartbeat: Heartbeat) -> bool:
    try:
        await heartbeat.beat()
    except StoreUnavailable:
        return False
    return True


async def beat_until_through(heartbeat: Heartbeat) -> None:
    async with asyncio.timeout(30):
        while not await got_through(heartbeat):
            pass


@pytest.mark.parametrize("store", ["valkey", "postgresql"])
async def test_a_dead_connection_costs_a_heartbeat_and_no_more(tmp_path: Path, store: str, lived: Clock) -> None:
    async with beating(tmp_path, store) as (heartbeat, between):
        # Several connections, all of which are dead then.
        await asyncio.gather(*(heartbeat._membership.nodes() for _ in range(3)), beat_until_through(heartbeat))
        between.swallow()
        between.heal()
        began = lived()
        while True:
            took, through = await timed_beat(heartbeat, lived)
            assert took < TTL / 4 + SLACK
            if through:
                break
        assert between.swallowed > 0
        assert lived() - began < TTL * 2 / 3
        assert heartbeat.may_serve


@pytest.mark.parametrize("store", ["valkey", "postgresql"])
async def test_each_heartbeat_to_a_store_that_swallows_all_has_its_deadline(
    tmp_path: Path, store: str, lived: Clock
) -> None:
    async with beating(tmp_path, store) as (heartbeat, between):
        between.swallow()
        for _ in range(4):
            took, through = await timed_beat(heartbeat, lived)
            assert not through
            assert took < TTL / 4 + SLACK
        assert not heartbeat.may_serve
        between.heal()
        await beat_until_through(heartbeat)
