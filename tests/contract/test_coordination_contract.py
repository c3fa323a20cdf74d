"""What every coordination adapter does. `pair` is the store as two nodes see it, in the worst case two processes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from aerodrome._util.clock import ManualClock
from aerodrome.coordination.backends.sqlite import SqliteCoordination, read_boot_id
from aerodrome.coordination.ports import Beat, Cap, Lease, Node
from aerodrome.errors import Fenced
from aerodrome.model import SessionKey
from aerodrome.statestore.backends.sqlite import SqliteFileStore
from support.coordination import TTL, Pair, join_both, taken
from support.databases import database

KEY = SessionKey("acme", "chat")
OTHER = SessionKey("acme", "other")


# Membership


async def test_nodes_are_the_living_ones_by_name(pair: Pair) -> None:
    assert await pair.a.nodes() == []
    await pair.b.join(Node("b", "b-1", "127.0.0.1:2", {"runtimes": 1}), TTL)
    await pair.a.join(Node("a", "a-1", "127.0.0.1:1"), TTL)
    expected = [Node("a", "a-1", "127.0.0.1:1"), Node("b", "b-1", "127.0.0.1:2", {"runtimes": 1})]
    assert await pair.a.nodes() == await pair.b.nodes() == expected
    assert await pair.b.heartbeat("b-1", {"draining": True}) is Beat.ALIVE
    assert await pair.b.heartbeat("b-1") is Beat.ALIVE
    assert (await pair.a.nodes())[1].load == {"draining": True}
    await pair.b.leave("b-1")
    await pair.b.leave("b-1")
    assert [node.name for node in await pair.a.nodes()] == ["a"]


async def test_a_heartbeat_prolongs_a_life_and_never_revives_one(pair: Pair) -> None:
    await pair.a.join(Node("a", "a-1"), TTL)
    for _ in range(5):
        pair.clock.advance(TTL * 3 / 4)
        assert await pair.a.heartbeat("a-1") is Beat.ALIVE
    pair.clock.advance(TTL)
    assert await pair.a.heartbeat("a-1") is Beat.DEAD
    assert await pair.b.nodes() == []
    assert await pair.a.heartbeat("a-1", {"late": True}) is Beat.DEAD
    assert await pair.b.nodes() == []
    assert await pair.a.heartbeat("unknown") is Beat.DEAD


async def test_who_is_cancelled_asks_no_more(pair: Pair) -> None:
    """In whatever moment it comes: a driver may lose a cancellation that comes with what it waits for."""

    async def ask_for_ever() -> None:
        while True:
            await pair.a.nodes()
            await asyncio.sleep(0)

    await pair.a.nodes()  # connected from here on
    for ticks in range(60):
        asking = asyncio.create_task(ask_for_ever())
        for _ in range(ticks):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking}, timeout=30)
        assert asking.done(), ticks


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
        assert await pair.a.heartbeat("a-1") is Beat.ALIVE
        assert await pair.b.heartbeat("b-1") is Beat.ALIVE
    assert await pair.b.acquire(KEY, "b-1") is None
    assert await pair.b.holder(KEY) == lease


async def test_trap_07_release_is_an_atomic_compare_and_never_frees_the_next_holders_lease(pair: Pair) -> None:
    await join_both(pair)
    stale = await taken(pair.a, KEY, "a-1")
    pair.clock.advance(TTL / 2)
    assert await pair.b.heartbeat("b-1") is Beat.ALIVE
    pair.clock.advance(TTL / 2)  # a is paused past its expiry
    current = await taken(pair.b, KEY, "b-1")
    assert current.epoch > stale.epoch
    assert not await pair.a.release(stale)
    assert await pair.b.holder(KEY) == current
    # The same incarnation with a new epoch: the release of an earlier activation must not end the later one.
    again = await taken(pair.b, KEY, "b-1")
    assert not await pair.b.release(current)
    assert await pair.b.holder(KEY) == again


async def test_only_the_lease_one_has_is_forgotten(pair: Pair) -> None:
    """A deletion that is late leaves alone what others have taken in the meantime."""
    await join_both(pair)
    old = await taken(pair.a, KEY, "a-1")
    stale = await taken(pair.a, KEY, "a-1")
    assert not await pair.a.forget(old)
    assert await pair.b.holder(KEY) == stale
    await pair.a.leave("a-1")
    current = await taken(pair.b, KEY, "b-1")
    assert not await pair.a.forget(stale)
    assert not await pair.a.forget(replace(current, incarnation="a-1"))
    assert await pair.a.holder(KEY) == current
    assert await pair.b.release(current)
    assert not await pair.b.forget(current)
    assert (await taken(pair.b, KEY, "b-1")).epoch > current.epoch


async def test_leases_of_the_dead_are_cleared_and_their_epochs_kept(pair: Pair) -> None:
    await join_both(pair)
    dead, living = await taken(pair.a, KEY, "a-1", floor=41), await taken(pair.b, OTHER, "b-1")
    assert await pair.b.clear_dead() == 0
    await pair.a.leave("a-1")
    assert await pair.b.clear_dead() == 1
    assert await pair.b.clear_dead() == 0
    assert not await pair.a.release(dead), "it is nobody's"
    assert await pair.a.holder(OTHER) == living
    assert (await taken(pair.b, KEY, "b-1")).epoch > dead.epoch


async def test_epochs_never_go_back(pair: Pair) -> None:
    await join_both(pair)
    assert (await taken(pair.a, KEY, "a-1", floor=41)).epoch == 42
    last = await taken(pair.a, KEY, "a-1", floor=7)
    assert last.epoch == 43
    assert await pair.b.forget(last)
    assert await pair.b.holder(KEY) is None
    # Deleted and made again: still above what a paused node may hold of the first one, with and without a floor.
    last = await taken(pair.b, KEY, "b-1")
    assert last.epoch == 44
    assert await pair.b.forget(last)
    assert not await pair.b.forget(last)
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


async def test_joining_again_is_a_new_beginning(pair: Pair) -> None:
    await pair.a.join(Node("a", "a-1", "x:1", {"sessions": 1}, "t0ken"), TTL)
    assert await pair.b.ask_to_drain("a-1")
    await pair.a.join(Node("a", "a-1", "x:2", peer_token="another"), 2 * TTL)
    assert await pair.a.heartbeat("a-1") is Beat.ALIVE
    pair.clock.advance(1.5 * TTL)
    assert await pair.b.nodes() == [Node("a", "a-1", "x:2", {}, "another")]
    assert (await pair.b.nodes())[0].peer_token == "another"


async def test_a_node_is_told_that_it_shall_drain(pair: Pair) -> None:
    await join_both(pair)
    assert not await pair.a.ask_to_drain("nobody")
    assert await pair.b.ask_to_drain("a-1")
    assert await pair.a.heartbeat("a-1", {"draining": True}) is Beat.DRAIN
    assert await pair.a.heartbeat("a-1") is Beat.DRAIN
    assert await pair.b.heartbeat("b-1") is Beat.ALIVE
    pair.clock.advance(TTL)
    assert not await pair.b.ask_to_drain("a-1")
    assert await pair.a.heartbeat("a-1") is Beat.DEAD


async def test_holders_are_told_in_one_answer(pair: Pair) -> None:
    await join_both(pair)
    keys = [SessionKey("acme", f"s-{number}") for number in range(200)]
    mine = [await taken(pair.a, key, "a-1") for key in keys[:3]]
    await pair.a.release(mine[0])
    theirs = await taken(pair.b, keys[5], "b-1")
    expected = {lease.key: lease for lease in (mine[1], mine[2], theirs)}
    assert await pair.b.holders(keys) == await pair.a.holders(keys[::-1]) == expected
    assert await pair.b.holders([]) == {}
    await pair.a.leave("a-1")
    assert await pair.b.holders(keys) == {keys[5]: theirs}


async def test_of_many_who_take_over_at_once_one_wins(pair: Pair) -> None:
    for number in range(8):
        await pair.nodes[number % 2].join(Node(f"n-{number}", f"n-{number}"), TTL)
    keys = [SessionKey("acme", f"s-{number}") for number in range(10)]
    before = {key: await taken(pair.a, key, "n-0") for key in keys}
    await pair.b.leave("n-0")
    claims = [(key, f"n-{number}") for key in keys for number in range(1, 8)]
    won = await asyncio.gather(*(pair.nodes[place % 2].acquire(*claim) for place, claim in enumerate(claims)))
    leases = [lease for lease in won if lease is not None]
    assert sorted(lease.key for lease in leases) == sorted(keys)
    assert all(lease.epoch > before[lease.key].epoch for lease in leases)
    assert await pair.a.holders(keys) == {lease.key: lease for lease in leases}


async def test_trap_08_whoever_was_paused_past_its_expiry_is_refused_by_the_state_store(
    pair: Pair, tmp_path: Path
) -> None:
    async with database(tmp_path / "s.db") as db:
        files = SqliteFileStore(db)
        await files.open()
        await join_both(pair)
        stale = await taken(pair.a, KEY, "a-1", floor=await files.epoch(KEY))
        await files.raise_epoch(KEY, stale.epoch)
        await files.append(KEY, stale.epoch, "/events", "one ")
        pair.clock.advance(TTL / 2)
        assert await pair.b.heartbeat("b-1") is Beat.ALIVE
        assert await pair.b.acquire(KEY, "b-1") is None
        pair.clock.advance(TTL / 2)
        fresh = await taken(pair.b, KEY, "b-1", floor=await files.epoch(KEY))
        await files.raise_epoch(KEY, fresh.epoch)
        # It wakes up in mid-write, with a lease that it believes in.
        with pytest.raises(Fenced):
            await files.append(KEY, stale.epoch, "/events", "forked ")
        await files.append(KEY, fresh.epoch, "/events", "two")
        assert await pair.a.heartbeat("a-1") is Beat.DEAD
        assert await files.read(KEY, "/events") == "one two"


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
        assert await after.heartbeat("a-1") is Beat.DEAD
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


async def test_the_places_of_the_dead_are_cleared(tmp_path: Path) -> None:
    clock = ManualClock()
    async with database(tmp_path / "c.db") as db:
        store = SqliteCoordination(db, clock=clock)
        await store.open()
        await store.join(Node("a", "a-1"), TTL)
        await store.join(Node("b", "b-1"), TTL * 2)
        for number, incarnation in enumerate(("a-1", "b-1", "a-1")):
            await store.admit(f"t-{number}", incarnation, caps=[Cap(f"c-{number}", 2)])
        clock.advance(TTL)
        await store.clear_dead()
        left = await db.read(lambda connection: connection.execute("SELECT place, incarnation FROM place").fetchall())
        assert left == [("t-1", "b-1")]
