"""What every store of API keys does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from aerodrome.identity.backends.memory import MemoryKeyStore
from aerodrome.identity.backends.postgresql import PostgresKeyStore
from aerodrome.identity.backends.sqlite import SqliteKeyStore
from aerodrome.identity.ports import KeyInfo, KeyStore, StoredKey
from support.databases import database
from support.postgres import fresh_schema, postgres


class Pair(NamedTuple):
    a: KeyStore
    b: KeyStore


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    if request.param == "memory":
        shared = MemoryKeyStore()
        await shared.open()
        yield Pair(shared, shared)
        await shared.aclose()
        return
    if request.param == "postgresql":
        schema = fresh_schema()
        async with postgres(schema) as one, postgres(schema) as two:
            both = Pair(PostgresKeyStore(one), PostgresKeyStore(two))
            await both.a.open()
            await both.b.open()
            yield both
        return
    async with database(tmp_path / "k.db") as first, database(tmp_path / "k.db") as second:
        a, b = SqliteKeyStore(first), SqliteKeyStore(second)
        await a.open()
        await b.open()
        yield Pair(a, b)
        await a.aclose()
        await b.aclose()


def stored(id_: str, tenant: str = "acme", created_at: float = 1.0) -> StoredKey:
    info = KeyInfo(id_, tenant, "alice", frozenset({"admin", "auditor"}), "the \u00e9 label", created_at)
    return StoredKey(info, bytes(range(32)))


async def test_a_key_is_read_again_as_it_was(pair: Pair) -> None:
    plain = StoredKey(KeyInfo("k-2", "acme", "bob", frozenset(), None, 2.0), b"digest")
    assert await pair.a.insert(stored("k-1"))
    assert await pair.a.insert(plain)
    assert await pair.b.get("k-1") == stored("k-1")
    assert await pair.b.get("k-2") == plain
    assert await pair.b.get("k-3") is None


async def test_an_id_is_used_once(pair: Pair) -> None:
    assert await pair.a.insert(stored("k-1"))
    assert not await pair.b.insert(stored("k-1", tenant="beta"))
    results = await asyncio.gather(*(store.insert(stored("k-2")) for store in (pair.a, pair.b) * 3))
    assert results.count(True) == 1
    assert await pair.a.get("k-1") == stored("k-1")


async def test_listings_are_by_age(pair: Pair) -> None:
    for key in (stored("c", created_at=2.0), stored("b", "beta", 1.0), stored("a", created_at=3.0)):
        await pair.a.insert(key)
    assert [info.id for info in await pair.b.list()] == ["b", "c", "a"]
    assert await pair.b.list("acme") == [stored("c", created_at=2.0).info, stored("a", created_at=3.0).info]
    assert await pair.b.list("nobody") == []


async def test_a_removed_key_is_gone(pair: Pair) -> None:
    await pair.a.insert(stored("k-1"))
    assert await pair.b.remove("k-1")
    assert not await pair.a.remove("k-1")
    assert await pair.a.get("k-1") is None
    assert await pair.a.list() == []
