"""What every coordination adapter does. `pair` is the store as two nodes see it, in the worst case two processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aerodrome._util.clock import ManualClock
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.backends.sqlite import SqliteCoordination, read_boot_id
from aerodrome.coordination.ports import Coordination, Lease, Node
from aerodrome.errors import Invalid
from aerodrome.model import Isolation, LastTurn, SessionKey, SessionKind, SessionRow, SessionState, TurnStatus
from support.databases import database, query_plan

TTL = 5.0
KEY = SessionKey("acme", "chat")
OTHER = SessionKey("acme", "other")


class Pair(NamedTuple):
    a: Coordination
    b: Coordination
    clock: ManualClock


@pytest.fixture(params=["memory", "sqlite"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    clock = ManualClock()
    if request.param == "memory":
        shared = MemoryCoordination(clock)
        await shared.open()
        yield Pair(shared, shared, clock)
        await shared.aclose()
        return
    async with database(tmp_path / "c.db") as first, database(tmp_path / "c.db") as second:
        a, b = SqliteCoordination(first, clock=clock), SqliteCoordination(second, clock=clock)
        await a.open()
        await b.open()
        yield Pair(a, b, clock)
        await a.aclose()
        await b.aclose()


async def join_both(pair: Pair) -> None:
    await pair.a.join(Node("a", "a-1"), TTL)
    await pair.b.join(Node("b", "b-1"), TTL)


async def taken(store: Coordination, key: SessionKey, incarnation: str, *, floor: int = 0) -> Lease:
    lease = await store.acquire(key, incarnation, floor=floor)
    assert lease is not None
    return lease


# Membership


async def test_nodes_are_the_living_ones_by_name(pair: Pair) -> None:
    assert await pair.a.nodes() == []
    await pair.b.join(Node("b", "b-1", "127.0.0.1:2", {"runtimes": 1}), TTL)
    await pair.a.join(Node("a", "a-1", "127.0.0.1:1"), TTL)
    expected = [Node("a", "a-1", "127.0.0.1:1"), Node("b", "b-1", "127.0.0.1:2", {"runtimes": 1})]
    assert await pair.a.nodes() == await pair.b.nodes() == expected
    assert await pair.b.heartbeat("b-1", {"draining": True})
    assert await pair.b.heartbeat("b-1")
    assert (await pair.a.nodes())[1].load == {"draining": True}
    await pair.b.leave("b-1")
    await pair.b.leave("b-1")
    assert [node.name for node in await pair.a.nodes()] == ["a"]


async def test_a_heartbeat_prolongs_a_life_and_never_revives_one(pair: Pair) -> None:
    await pair.a.join(Node("a", "a-1"), TTL)
    for _ in range(5):
        pair.clock.advance(TTL * 0.9)
        assert await pair.a.heartbeat("a-1")
    pair.clock.advance(TTL)
    assert not await pair.a.heartbeat("a-1")
    assert await pair.b.nodes() == []
    assert not await pair.a.heartbeat("a-1", {"late": True})
    assert await pair.b.nodes() == []
    assert not await pair.a.heartbeat("unknown")


# Leases


async def test_a_lease_is_exclusive_while_its_holder_lives(pair: Pair) -> None:
    await join_both(pair)
    lease = await pair.a.acquire(KEY, "a-1")
    assert lease == Lease(KEY, "a-1", 1)
    assert await pair.b.acquire(KEY, "b-1") is None
    assert await pair.b.acquire(OTHER, "b-1") == Lease(OTHER, "b-1", 1)
    assert await pair.b.holder(KEY) == lease
    assert await pair.b.acquire(KEY, "a-1") == Lease(KEY, "a-1", 2)  # the same holder: a new epoch


async def test_only_a_living_incarnation_acquires(pair: Pair) -> None:
    assert await pair.a.acquire(KEY, "a-1") is None
    await pair.a.join(Node("a", "a-1"), TTL)
    pair.clock.advance(TTL)
    assert await pair.a.acquire(KEY, "a-1") is None
    assert await pair.a.holder(KEY) is None


async def test_a_released_lease_is_free_and_its_epoch_remembered(pair: Pair) -> None:
    await join_both(pair)
    lease = await taken(pair.a, KEY, "a-1")
    assert await pair.a.release(lease)
    assert await pair.b.holder(KEY) is None
    assert not await pair.a.release(lease)
    assert await taken(pair.b, KEY, "b-1") == Lease(KEY, "b-1", 2)


async def test_whoever_leaves_frees_its_leases(pair: Pair) -> None:
    await join_both(pair)
    await taken(pair.a, KEY, "a-1")
    await pair.a.leave("a-1")
    assert await pair.b.holder(KEY) is None
    assert (await taken(pair.b, KEY, "b-1")).epoch == 2


async def test_trap_06_a_lease_lasts_as_long_as_its_holder_not_as_a_timer(pair: Pair) -> None:
    await join_both(pair)
    lease = await taken(pair.a, KEY, "a-1")
    for _ in range(600):  # ten minutes: one heartbeat a second, nothing that names the lease
        pair.clock.advance(1)
        assert await pair.a.heartbeat("a-1")
        assert await pair.b.heartbeat("b-1")
    assert await pair.b.acquire(KEY, "b-1") is None
    assert await pair.b.holder(KEY) == lease


async def test_trap_07_release_is_an_atomic_compare_and_never_frees_the_next_holders_lease(pair: Pair) -> None:
    await join_both(pair)
    stale = await taken(pair.a, KEY, "a-1")
    pair.clock.advance(TTL - 1)
    assert await pair.b.heartbeat("b-1")
    pair.clock.advance(1)  # a is paused past its expiry
    current = await taken(pair.b, KEY, "b-1")
    assert current.epoch > stale.epoch
    assert not await pair.a.release(stale)
    assert await pair.b.holder(KEY) == current
    # The same incarnation with a new epoch: the release of an earlier activation must not end the later one.
    again = await taken(pair.b, KEY, "b-1")
    assert not await pair.b.release(current)
    assert await pair.b.holder(KEY) == again


async def test_epochs_never_go_back(pair: Pair) -> None:
    await join_both(pair)
    assert (await taken(pair.a, KEY, "a-1", floor=41)).epoch == 42
    assert (await taken(pair.a, KEY, "a-1", floor=7)).epoch == 43
    await pair.a.forget(KEY)
    assert await pair.b.holder(KEY) is None
    # Deleted and made again: still above what a paused node may hold of the first one, with and without a floor.
    assert (await taken(pair.b, KEY, "b-1")).epoch == 44
    await pair.b.forget(KEY)
    await pair.b.forget(KEY)
    assert (await taken(pair.a, KEY, "a-1", floor=100)).epoch == 101
    assert (await taken(pair.a, OTHER, "a-1")).epoch > 44


async def test_of_many_who_acquire_at_once_one_wins(pair: Pair) -> None:
    await join_both(pair)
    results = await asyncio.gather(
        *(store.acquire(KEY, incarnation) for store, incarnation in ((pair.a, "a-1"), (pair.b, "b-1")) * 10)
    )
    leases = [lease for lease in results if lease is not None]
    assert len({lease.incarnation for lease in leases}) == 1
    assert sorted(lease.epoch for lease in leases) == list(range(1, 11))


async def test_leases_are_kept_by_tenant(pair: Pair) -> None:
    await join_both(pair)
    await taken(pair.a, KEY, "a-1")
    assert await pair.b.acquire(SessionKey("other", KEY.id), "b-1") is not None


# Directory


def row(id_: str = "chat", tenant: str = "acme", **columns: Any) -> SessionRow:
    return replace(SessionRow(SessionKey(tenant, id_), "alice", created_at=1.5, last_used_at=2.5), **columns)


FULL = row(
    kind=SessionKind.EPHEMERAL,
    isolation=Isolation.USER,
    state=SessionState.RESIDENT,
    model="gpt-4.1",
    title="Überschrift \ud83d \U0001f600 '; DROP TABLE session; --",
    options={"tools": ["view"], "system_message": "\ud800 \0 ok"},
    last_turn=LastTurn("t-1", TurnStatus.INTERRUPTED),
)


async def test_insert_is_first_come_first_served(pair: Pair) -> None:
    assert await pair.a.insert(FULL) is None
    assert await pair.b.insert(row(owner="mallory")) == FULL
    assert await pair.b.get(KEY) == FULL
    assert await pair.b.get(SessionKey("other", "chat")) is None
    results = await asyncio.gather(*(store.insert(row("new")) for store in (pair.a, pair.b) * 5))
    assert results.count(None) == 1


async def test_rows_are_values(pair: Pair) -> None:
    options = {"tools": ["view"]}
    await pair.a.insert(row(options=options))
    options["tools"].append("shell")
    found = await pair.a.get(KEY)
    assert found is not None
    found.options["tools"].append("shell")
    assert await pair.b.get(KEY) == row(options={"tools": ["view"]})


async def test_update_changes_what_it_names(pair: Pair) -> None:
    assert not await pair.a.update(KEY, title="x")
    assert not await pair.a.update(KEY)
    await pair.a.insert(FULL)
    assert await pair.b.update(KEY)
    assert await pair.b.get(KEY) == FULL
    turn = LastTurn("t-2", TurnStatus.RUNNING)
    changes: dict[str, Any] = {
        "state": SessionState.RUNNING,
        "title": "",
        "model": "m",
        "options": {},
        "last_turn": turn,
    }
    assert await pair.b.update(KEY, last_used_at=9.25, **changes)
    assert await pair.a.get(KEY) == replace(FULL, last_used_at=9.25, **changes)


async def test_last_use_never_goes_back(pair: Pair) -> None:
    await pair.a.insert(row(last_used_at=10.0))
    await asyncio.gather(*(store.update(KEY, last_used_at=at) for at in (12.0, 15.0, 11.0) for store in pair[:2]))
    found = await pair.a.get(KEY)
    assert found is not None
    assert found.last_used_at == 15.0


async def test_remove(pair: Pair) -> None:
    await pair.a.insert(FULL)
    assert not await pair.b.remove(SessionKey("other", "chat"))
    assert await pair.b.remove(KEY)
    assert not await pair.a.remove(KEY)
    assert await pair.a.get(KEY) is None
    assert await pair.a.insert(row()) is None


async def pages(store: Coordination, tenant: str | None, *, owner: str | None = None, limit: int) -> list[list[str]]:
    found, cursor = [], None
    while True:
        page = await store.list(tenant, owner=owner, cursor=cursor, limit=limit)
        found.append([f"{row.key.tenant}/{row.key.id}" for row in page.rows])
        if (cursor := page.next) is None:
            return found


async def test_listings_are_by_last_use_in_stable_pages(pair: Pair) -> None:
    for tenant, id_, used, owner in [
        ("acme", "a", 1.0, "alice"),
        ("acme", "b", 3.0, "bob"),
        ("acme", "c", 3.0, "alice"),
        ("beta", "b", 3.0, "alice"),
        ("acme", "d", 0.1 + 0.2, "alice"),  # no short decimal form: a cursor must carry it exactly
        ("beta", "e", 4.0, "eve"),
    ]:
        await pair.a.insert(row(id_, tenant, last_used_at=used, owner=owner))
    everything = ["beta/e", "acme/b", "beta/b", "acme/c", "acme/a", "acme/d"]
    for limit in (1, 2, 3, 6, 7):
        found = await pages(pair.b, None, limit=limit)
        assert [name for page in found for name in page] == everything
        assert all(len(page) == limit for page in found[:-1])
        assert found[-1]
    assert await pages(pair.b, "acme", limit=2) == [["acme/b", "acme/c"], ["acme/a", "acme/d"]]
    assert await pages(pair.b, "acme", owner="alice", limit=2) == [["acme/c", "acme/a"], ["acme/d"]]
    assert await pages(pair.b, None, owner="eve", limit=2) == [["beta/e"]]
    assert await pages(pair.b, "nobody", limit=2) == [[]]
    assert (await pair.b.count(), await pair.b.count("acme"), await pair.b.count("nobody")) == (6, 4, 0)


async def test_pages_do_not_shift_when_rows_come_and_go(pair: Pair) -> None:
    for number in range(6):
        await pair.a.insert(row(str(number), last_used_at=float(number)))
    first = await pair.a.list("acme", limit=2)
    assert [row.key.id for row in first.rows] == ["5", "4"]
    await pair.b.insert(row("new", last_used_at=99.0))
    await pair.b.remove(SessionKey("acme", "4"))  # the very row the cursor names
    second = await pair.a.list("acme", cursor=first.next, limit=2)
    assert [row.key.id for row in second.rows] == ["3", "2"]


@pytest.mark.parametrize(
    "cursor", ["", "x", "Ø", "W10", "!!!!", "[" * 5000, "WzEsMiwzXQ", "WzFlOTk5LCJhIiwiYiJd", "bnVsbA", "\ud800"]
)
async def test_a_cursor_nobody_returned_is_invalid(pair: Pair, cursor: str) -> None:
    with pytest.raises(Invalid):
        await pair.a.list("acme", cursor=cursor)


async def test_a_page_has_at_least_one_row(pair: Pair) -> None:
    with pytest.raises(Invalid):
        await pair.a.list("acme", limit=0)


async def test_unused_since_is_about_use_and_spares_turns(pair: Pair) -> None:
    await join_both(pair)
    await taken(pair.a, SessionKey("acme", "in-turn"), "a-1")
    await pair.a.insert(row("old", created_at=0.0, last_used_at=10.0))
    await pair.a.insert(row("older", created_at=9.0, last_used_at=9.0, state=SessionState.RESIDENT))
    await pair.a.insert(row("in-turn", last_used_at=1.0, state=SessionState.RUNNING))
    await pair.a.insert(row("daily", created_at=0.0, last_used_at=20.0))
    found = await pair.b.unused_since(20.0)
    assert [row.key.id for row in found] == ["older", "old"]
    assert [row.key.id for row in await pair.b.unused_since(20.0, limit=1)] == ["older"]
    assert await pair.b.unused_since(9.0) == []


async def test_what_a_dead_node_left_as_running_is_in_no_turn(pair: Pair) -> None:
    await join_both(pair)
    for session in ("released", "dead"):
        await pair.a.insert(row(session, last_used_at=1.0, state=SessionState.RUNNING))
        await taken(pair.a, SessionKey("acme", session), "a-1")
    assert await pair.b.unused_since(20.0) == []
    await pair.a.release(await taken(pair.a, SessionKey("acme", "released"), "a-1"))
    assert [found.key.id for found in await pair.b.unused_since(20.0)] == ["released"]
    await pair.a.leave("a-1")
    assert {found.key.id for found in await pair.b.unused_since(20.0)} == {"released", "dead"}


# What only the SQLite adapter has to know


async def test_after_a_reboot_nobody_of_before_is_alive(tmp_path: Path) -> None:
    clock = ManualClock(1000.0)
    async with database(tmp_path / "c.db") as db:
        before = SqliteCoordination(db, clock=clock, boot_id="one")
        await before.open()
        await before.join(Node("a", "a-1"), TTL)
        lease = await taken(before, KEY, "a-1")
        # The same reading of the monotonic clock, by chance.
        after = SqliteCoordination(db, clock=clock, boot_id="two")
        assert await after.nodes() == []
        assert not await after.heartbeat("a-1")
        await after.join(Node("b", "b-1"), TTL)
        assert (await taken(after, KEY, "b-1")).epoch == lease.epoch + 1


async def test_where_boots_have_no_id_a_beat_from_the_future_is_dead(tmp_path: Path) -> None:
    clock = ManualClock(100_000.0)
    async with database(tmp_path / "c.db") as db:
        store = SqliteCoordination(db, clock=clock, boot_id="")
        await store.open()
        await store.join(Node("a", "a-1"), TTL)
        clock.now = 10.0  # the machine has started anew, and its monotonic clock with it
        assert await store.nodes() == []


def test_the_boot_id_is_stable_and_optional() -> None:
    assert read_boot_id() == read_boot_id()
    assert read_boot_id("/nonexistent") == ""


async def test_joining_clears_away_the_dead(tmp_path: Path) -> None:
    clock = ManualClock()
    async with database(tmp_path / "c.db") as db:
        store = SqliteCoordination(db, clock=clock)
        await store.open()
        for life in range(10):
            await store.join(Node("a", f"a-{life}"), TTL)
            clock.advance(TTL + 1)
        (rows,) = await db.read(lambda connection: connection.execute("SELECT count(*) FROM node").fetchone())
        assert rows == 1


async def test_no_listing_scans_or_sorts_the_table(tmp_path: Path) -> None:
    """With 100,000 sessions a page must cost its rows: every listing walks an index in the index's own order."""
    async with database(tmp_path / "c.db") as db:
        store = SqliteCoordination(db, clock=ManualClock())
        await store.open()
        for number in range(3):
            await store.insert(row(str(number), last_used_at=float(number)))
        statements: list[str] = []
        await db.read(lambda connection: connection.set_trace_callback(statements.append))
        cursor = (await store.list(None, limit=1)).next
        await store.list(None, cursor=cursor)
        await store.list("acme", cursor=cursor)
        await store.list("acme", owner="alice", cursor=cursor)
        await store.get(KEY)
        await store.unused_since(99.0)
        await db.read(lambda connection: connection.set_trace_callback(None))
        selects = [statement for statement in statements if statement.startswith("SELECT")]
        assert len(selects) == 6
        for select in selects:
            steps = await query_plan(db, select)
            assert "TEMP B-TREE" not in steps, f"{select}: {steps}"
            assert "INDEX" in steps or "PRIMARY KEY" in steps, f"{select}: {steps}"
