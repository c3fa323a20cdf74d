"""Heartbeats over connections whose other end is gone without a word, to real servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
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
#: Seconds by which a busy machine may be late.
SLACK = 0.4


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
            await heartbeat.beat()
        yield heartbeat, between


async def timed_beat(heartbeat: Heartbeat) -> tuple[float, bool]:
    """Seconds it took, and whether it got through."""
    began = time.monotonic()
    try:
        await heartbeat.beat()
    except StoreUnavailable:
        return time.monotonic() - began, False
    return time.monotonic() - began, True


@pytest.mark.parametrize("store", ["valkey", "postgresql"])
async def test_a_dead_connection_costs_a_heartbeat_and_no_more(tmp_path: Path, store: str) -> None:
    async with beating(tmp_path, store) as (heartbeat, between):
        # Several connections, all of which are dead then.
        await asyncio.gather(*(heartbeat._membership.nodes() for _ in range(3)), heartbeat.beat())
        between.swallow()
        between.heal()
        began = time.monotonic()
        while True:
            took, through = await timed_beat(heartbeat)
            assert took < TTL / 4 + SLACK
            if through:
                break
        assert between.swallowed > 0
        assert time.monotonic() - began < TTL * 2 / 3
        assert heartbeat.may_serve


@pytest.mark.parametrize("store", ["valkey", "postgresql"])
async def test_each_heartbeat_to_a_store_that_swallows_all_has_its_deadline(tmp_path: Path, store: str) -> None:
    async with beating(tmp_path, store) as (heartbeat, between):
        between.swallow()
        for _ in range(4):
            took, through = await timed_beat(heartbeat)
            assert not through
            assert took < TTL / 4 + SLACK
        assert not heartbeat.may_serve
        between.heal()
        await heartbeat.beat()
