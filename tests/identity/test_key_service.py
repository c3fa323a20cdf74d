"""API keys: what is issued is accepted, nothing else is, and a revoked key stops working in time."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome._util.clock import ManualClock
from aerodrome.errors import Invalid, StoreUnavailable, Unauthenticated
from aerodrome.identity.backends.memory import MemoryKeyStore
from aerodrome.identity.backends.sqlite import SqliteKeyStore
from aerodrome.identity.keys import KeyService
from aerodrome.identity.ports import KeyInfo, KeyStore, StoredKey
from aerodrome.model import Principal
from support.databases import database


class CountingStore(MemoryKeyStore):
    """A key store that counts its reads and can be held up in the middle of one."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self.answer.set()

    async def get(self, key_id: str) -> StoredKey | None:
        self.reads += 1
        found = await super().get(key_id)
        self.asked.set()
        await self.answer.wait()
        return found


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def keys(store: CountingStore, clock: ManualClock) -> KeyService:
    return KeyService(store, clock=clock, cache_ttl=5.0)


async def test_a_revocation_is_announced_and_heard_of(store: CountingStore, clock: ManualClock) -> None:
    there = KeyService(store, clock=clock, cache_ttl=3600.0)

    async def announce(key_id: str) -> None:
        there.forget(key_id)

    here = KeyService(store, clock=clock, announce=announce)
    info, key = await here.create("acme", "alice")
    assert (await there.authenticate(key)).user == "alice"
    assert await here.revoke(info.id)
    with pytest.raises(Unauthenticated):
        await there.authenticate(key)


async def test_a_revocation_that_cannot_be_announced_is_one_all_the_same(
    store: CountingStore, clock: ManualClock
) -> None:
    async def announce(key_id: str) -> None:
        raise StoreUnavailable("away")

    here = KeyService(store, clock=clock, announce=announce)
    info, key = await here.create("acme", "alice")
    await here.authenticate(key)
    assert await here.revoke(info.id)
    with pytest.raises(Unauthenticated):
        await here.authenticate(key)


async def test_a_key_proves_its_principal(keys: KeyService, clock: ManualClock) -> None:
    info, key = await keys.create("acme", "alice@example.com", ["admin"], label="laptop")
    assert info == KeyInfo(info.id, "acme", "alice@example.com", frozenset({"admin"}), "laptop", clock.time())
    assert re.fullmatch(r"aero_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}", key)
    assert key.startswith(f"aero_{info.id}_")
    principal = await keys.authenticate(key)
    assert principal == Principal("acme", "alice@example.com", frozenset({"admin"}), info.id)
    assert principal.is_admin
    assert await keys.list() == await keys.list("acme") == [info]
    assert await keys.list("beta") == []


async def test_keys_are_not_repeated(keys: KeyService) -> None:
    issued = [await keys.create("acme", "alice") for _ in range(50)]
    assert len({key for _, key in issued}) == len({info.id for info, _ in issued}) == 50


async def test_the_secret_is_stored_nowhere(tmp_path: Path) -> None:
    async with database(tmp_path / "k.db") as db:
        store = SqliteKeyStore(db)
        await store.open()
        info, key = await KeyService(store).create("acme", "alice")
        secret = key.rpartition("_")[2]
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert info.id.encode() in stored
    assert secret.encode() not in stored


async def test_a_wrong_secret_is_refused_however_close(keys: KeyService) -> None:
    _, key = await keys.create("acme", "alice")
    _, other = await keys.create("acme", "bob")
    last = "a" if key[-1] != "a" else "b"
    wrong = [key[:-1] + last, key[:18] + other[18:], key.swapcase(), key[:-1], key + "a", key + "\n", " " + key]
    for _ in range(2):  # before and after the right one is known
        for candidate in wrong:
            with pytest.raises(Unauthenticated):
                await keys.authenticate(candidate)
        await keys.authenticate(key)


@given(st.text(st.characters(exclude_categories=()), max_size=100) | st.text("aero_Zz09", min_size=61, max_size=61))
def test_garbage_is_refused(garbage: str) -> None:
    with pytest.raises(Unauthenticated):
        asyncio.run(KeyService(MemoryKeyStore()).authenticate(garbage))


async def test_malformed_keys_cost_no_read_and_no_time(keys: KeyService, store: CountingStore) -> None:
    started = time.thread_time()
    for garbage in ("", "aero_", "x" * 1_000_000, "aero_" * 200_000, "\u0661" * 61, "\ud800" * 61, "\0" * 61):
        with pytest.raises(Unauthenticated):
            await keys.authenticate(garbage)
    # A millisecond or two.
    assert time.thread_time() - started < 0.5
    assert store.reads == 0


@pytest.mark.parametrize(
    ("tenant", "user", "roles", "label"),
    [
        ("", "alice", [], None),
        ("../etc", "alice", [], None),
        ("acme", "a b", [], None),
        ("acme", "\u0430lice", [], None),
        ("acme", "x" * 101, [], None),
        ("acme", "x" * 1_000_000, [], None),
        ("acme", "alice\n", [], None),
        ("acme", "alice", ["admin", "bad role"], None),
        ("acme", "alice", [], ""),
        ("acme", "alice", [], "x" * 201),
        ("acme", "alice", [], "two\nlines"),
        ("acme", "alice", [], "\ud800"),
    ],
)
async def test_bad_names_are_refused(
    keys: KeyService, tenant: str, user: str, roles: list[str], label: str | None
) -> None:
    with pytest.raises(Invalid) as caught:
        await keys.create(tenant, user, roles, label)
    assert len(caught.value.detail) < 500
    assert await keys.list() == []


async def test_on_the_hot_path_the_store_is_asked_once_in_a_while(
    keys: KeyService, store: CountingStore, clock: ManualClock
) -> None:
    _, key = await keys.create("acme", "alice")
    for _ in range(100):
        await keys.authenticate(key)
    assert store.reads == 1
    clock.advance(5.0)
    await keys.authenticate(key)
    await keys.authenticate(key)
    assert store.reads == 2


async def test_revoked_here_a_key_stops_working_at_once(keys: KeyService) -> None:
    info, key = await keys.create("acme", "alice")
    await keys.authenticate(key)
    assert await keys.revoke(info.id)
    with pytest.raises(Unauthenticated):
        await keys.authenticate(key)
    assert not await keys.revoke(info.id)
    assert not await keys.revoke("no such key")


async def test_revoked_by_another_process_it_stops_within_the_time_to_live(tmp_path: Path) -> None:
    clock = ManualClock()
    async with database(tmp_path / "k.db") as first, database(tmp_path / "k.db") as second:
        here: KeyStore = SqliteKeyStore(first)
        there: KeyStore = SqliteKeyStore(second)
        await here.open()
        await there.open()
        keys = KeyService(here, clock=clock, cache_ttl=5.0)
        info, key = await KeyService(there, clock=clock).create("acme", "alice")
        await keys.authenticate(key)
        await KeyService(there, clock=clock).revoke(info.id)
        clock.advance(5.0)
        with pytest.raises(Unauthenticated):
            await keys.authenticate(key)


async def test_a_revocation_during_a_read_is_not_undone_by_its_answer(keys: KeyService, store: CountingStore) -> None:
    """Nor does a stream begin with it, for which whoever ends those of a revoked key would have come too early."""
    info, key = await keys.create("acme", "alice")
    store.answer.clear()
    reading = asyncio.create_task(keys.authenticate(key))
    await store.asked.wait()
    await keys.revoke(info.id)
    store.answer.set()
    with pytest.raises(Unauthenticated):
        await reading
    with pytest.raises(Unauthenticated):
        await keys.authenticate(key)


async def test_the_time_to_live_counts_from_the_question(
    keys: KeyService, store: CountingStore, clock: ManualClock
) -> None:
    _, key = await keys.create("acme", "alice")
    store.answer.clear()
    reading = asyncio.create_task(keys.authenticate(key))
    await store.asked.wait()
    clock.advance(5.0)  # the store takes its time
    store.answer.set()
    await reading
    await keys.authenticate(key)
    assert store.reads == 2


async def test_the_memory_for_keys_is_bounded(store: CountingStore, clock: ManualClock) -> None:
    keys = KeyService(store, clock=clock, cache_size=2)
    issued = [(await keys.create("acme", "alice"))[1] for _ in range(3)]
    for key in issued:
        await keys.authenticate(key)
    assert store.reads == 3
    await keys.authenticate(issued[2])
    await keys.authenticate(issued[1])
    assert store.reads == 3
    await keys.authenticate(issued[0])
    assert store.reads == 4


async def test_a_store_that_is_away_is_not_a_wrong_key(tmp_path: Path) -> None:
    db = database(tmp_path / "k.db")
    await db.open()
    store = SqliteKeyStore(db)
    await store.open()
    keys = KeyService(store)
    _, key = await keys.create("acme", "alice")
    await db.aclose()
    with pytest.raises(StoreUnavailable):
        await keys.authenticate(key)
