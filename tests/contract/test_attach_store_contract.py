"""What every store of attached servers does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from aerodrome.model import RuntimeKey
from aerodrome.runtime.attached.backends.memory import MemoryAttachStore
from aerodrome.runtime.attached.backends.postgresql import PostgresAttachStore
from aerodrome.runtime.attached.backends.sqlite import SqliteAttachStore
from aerodrome.runtime.attached.ports import AttachStore, Binding, StoredServer
from support.databases import database
from support.postgres import fresh_schema, postgres

ACME, ALICE = RuntimeKey("acme", None), RuntimeKey("acme", "alice")


class Pair(NamedTuple):
    a: AttachStore
    b: AttachStore


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    if request.param == "memory":
        shared = MemoryAttachStore()
        await shared.open()
        yield Pair(shared, shared)
        await shared.aclose()
    elif request.param == "postgresql":
        schema = fresh_schema()
        async with postgres(schema) as one, postgres(schema) as two:
            both = Pair(PostgresAttachStore(one), PostgresAttachStore(two))
            await both.a.open()
            await both.b.open()
            yield both
    else:
        async with database(tmp_path / "a.db") as first, database(tmp_path / "a.db") as second:
            pair = Pair(SqliteAttachStore(first), SqliteAttachStore(second))
            await pair.a.open()
            await pair.b.open()
            yield pair


def server(address: str = "cli-1:4321", tenant: str = "acme") -> StoredServer:
    return StoredServer(address, tenant, "blue", 2.5, 7, "/work", 12.25, "alice")


async def test_a_server_is_read_again_as_it_was(pair: Pair) -> None:
    plain = StoredServer("cli-0:4321", "acme")
    assert await pair.a.attach(server())
    assert await pair.a.attach(plain)
    assert await pair.b.attached() == [plain, server()]


async def test_an_address_is_attached_once(pair: Pair) -> None:
    results = await asyncio.gather(
        *(store.attach(server(tenant=f"tenant-{number}")) for number, store in enumerate((pair.a, pair.b) * 3))
    )
    assert results.count(True) == 1
    (found,) = await pair.b.attached()
    assert found.tenant == f"tenant-{results.index(True)}"


async def test_a_detached_server_is_gone(pair: Pair) -> None:
    await pair.a.attach(server())
    assert await pair.b.detach("cli-1:4321")
    assert not await pair.a.detach("cli-1:4321")
    assert await pair.a.attached() == []


async def test_a_server_is_bound_to_the_first_and_stays_so(pair: Pair) -> None:
    keys = [RuntimeKey(f"tenant-{number}", None) for number in range(6)]
    bound = await asyncio.gather(
        *(store.bind("10.0.0.1:1", "cli-1:1", key) for key, store in zip(keys, (pair.a, pair.b) * 3, strict=True))
    )
    assert len(set(bound)) == 1
    assert await pair.b.bind("10.0.0.1:1", "cli-1:1", ALICE) == bound[0]
    assert await pair.a.bindings() == {"10.0.0.1:1": bound[0]}


async def test_a_user_and_a_tenant_are_not_the_same(pair: Pair) -> None:
    assert await pair.a.bind("10.0.0.1:1", "cli-1:1", ALICE) == Binding(ALICE)
    assert await pair.b.bind("10.0.0.1:1", "cli-1:1", ACME) == Binding(ALICE)
    assert await pair.b.bind("10.0.0.2:1", "cli-2:1", ACME) == Binding(ACME)
    assert await pair.a.bindings() == {"10.0.0.1:1": Binding(ALICE), "10.0.0.2:1": Binding(ACME)}


async def test_bindings_are_released_by_name_and_by_endpoint(pair: Pair) -> None:
    for number in (1, 2, 3):
        await pair.a.bind(f"10.0.0.{number}:1", "cli:1" if number < 3 else "other:1", ACME)
    assert await pair.b.release("cli:1", "r1") == 2
    assert await pair.b.release("cli:1", "r2") == 0
    assert await pair.a.release("10.0.0.3:1", "r3") == 1
    found = {endpoint: binding.release for endpoint, binding in (await pair.a.bindings()).items()}
    assert found == {"10.0.0.1:1": "r1", "10.0.0.2:1": "r1", "10.0.0.3:1": "r3"}


async def test_what_is_released_is_nobody_elses_until_it_is_unbound(pair: Pair) -> None:
    await pair.a.bind("10.0.0.1:1", "cli:1", ALICE)
    await pair.b.release("cli:1", "r1")
    assert await pair.a.bind("10.0.0.1:1", "cli:1", ACME) == Binding(ALICE, "r1")
    assert not await pair.a.unbind("10.0.0.1:1", "r2")
    assert not await pair.a.unbind("10.0.0.2:1", "r1")
    assert await pair.b.unbind("10.0.0.1:1", "r1")
    assert not await pair.b.unbind("10.0.0.1:1", "r1")
    assert await pair.a.bind("10.0.0.1:1", "cli:1", ACME) == Binding(ACME)
    assert not await pair.b.unbind("10.0.0.1:1", "r1"), "it serves somebody again"


async def test_only_what_serves_the_tenant_is_released_for_it(pair: Pair) -> None:
    await pair.a.bind("10.0.0.1:1", "cli:1", ACME)
    await pair.a.bind("10.0.0.2:1", "cli:1", RuntimeKey("globex", None))
    assert await pair.b.release("10.0.0.1:1", "r0", "globex") == 0
    assert await pair.b.release("cli:1", "r1", "globex") == 1
    assert await pair.a.bindings() == {
        "10.0.0.1:1": Binding(ACME),
        "10.0.0.2:1": Binding(RuntimeKey("globex", None), "r1"),
    }


async def test_a_server_is_drained_until_it_is_undrained(pair: Pair) -> None:
    assert await pair.a.drained() == frozenset()
    for number in (1, 2, 3):
        await pair.a.drain(f"10.0.0.{number}:1", "cli:1" if number < 3 else "other:1")
    await pair.b.drain("10.0.0.1:1", "cli:1")
    assert await pair.b.drained() == {"10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"}
    assert not await pair.b.undrain("10.0.0.3:1", endpoints=False)
    assert await pair.b.undrain("10.0.0.3:1")
    assert await pair.b.undrain("cli:1", endpoints=False)
    assert not await pair.b.undrain("cli:1")
    assert await pair.a.drained() == frozenset()
