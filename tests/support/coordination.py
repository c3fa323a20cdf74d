"""Coordination stores for the contract suites: each as two nodes see it, and with a clock that tests can move."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from aerodrome._util.clock import ManualClock
from aerodrome._util.redis_url import RedisUrl
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.backends.sqlite import SqliteCoordination
from aerodrome.coordination.ports import Coordination, Lease, Node
from aerodrome.model import SessionKey
from support.databases import database

#: Seconds. The clock of a server goes on by itself: half of it is time enough for any test on any machine.
TTL = 60.0
#: Seconds. Nothing here is about a server that is slow.
_PATIENT = 60.0


class Pair(NamedTuple):
    """In the worst case two processes."""

    a: Coordination
    b: Coordination
    #: Moves the clock of the store. That of a server goes on by itself meanwhile.
    clock: ManualClock

    @property
    def nodes(self) -> tuple[Coordination, Coordination]:
        return self.a, self.b


def redis_pair(url: str, clock: ManualClock) -> tuple[Coordination, Coordination]:
    from aerodrome.coordination.backends.redis import RedisCoordination

    prefix, start = f"test-{secrets.token_hex(6)}", clock.now
    patient: dict[str, Any] = {"timeout": _PATIENT, "patience": _PATIENT}
    a, b = (
        RedisCoordination(RedisUrl.parse(url), prefix=prefix, offset=lambda: clock.now - start, **patient)
        for _ in range(2)
    )
    return a, b


@asynccontextmanager
async def opened(kind: str, directory: Path) -> AsyncIterator[Pair]:
    clock = ManualClock()
    if kind == "memory":
        shared = MemoryCoordination(clock)
        await shared.open()
        yield Pair(shared, shared, clock)
        await shared.aclose()
    elif kind == "sqlite":
        async with database(directory / "c.db") as first, database(directory / "c.db") as second:
            a, b = SqliteCoordination(first, clock=clock), SqliteCoordination(second, clock=clock)
            async with _both(a, b):
                yield Pair(a, b, clock)
    elif kind == "valkey":
        from support.stores import shared_valkey

        pair = redis_pair(shared_valkey().url, clock)
        async with _both(*pair):
            yield Pair(*pair, clock)
    elif kind == "postgresql":
        from aerodrome.coordination.backends.postgresql import PostgresCoordination
        from support.postgres import fresh_schema, postgres

        schema, start = fresh_schema(), clock.now
        patient: dict[str, Any] = {"deadline": _PATIENT, "statement_timeout": _PATIENT, "lock_timeout": _PATIENT}
        async with postgres(schema, **patient) as first_pool, postgres(schema, **patient) as second_pool:
            pools = (first_pool, second_pool)
            c, d = (
                PostgresCoordination(pool, offset=lambda: clock.now - start, beat_deadline=_PATIENT) for pool in pools
            )
            async with _both(c, d):
                yield Pair(c, d, clock)


@asynccontextmanager
async def _both(a: Coordination, b: Coordination) -> AsyncIterator[None]:
    await a.open()
    await b.open()
    yield
    await a.aclose()
    await b.aclose()


async def join_both(pair: Pair) -> None:
    await pair.a.join(Node("a", "a-1"), TTL)
    await pair.b.join(Node("b", "b-1"), TTL)


async def taken(store: Coordination, key: SessionKey, incarnation: str, *, floor: int = 0) -> Lease:
    lease = await store.acquire(key, incarnation, floor=floor)
    assert lease is not None
    return lease
