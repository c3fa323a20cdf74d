"""What could not be given back to the coordination store, or was got from it without our knowing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aerodrome._util.clock import ManualClock
from aerodrome._util.patience import Patience
from aerodrome._util.redis_url import RedisUrl
from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.backends.postgresql import PostgresCoordination
from aerodrome.coordination.backends.redis import RedisCoordination
from aerodrome.coordination.ports import Cap, Coordination, Lease, Node
from aerodrome.errors import StoreUnavailable
from aerodrome.fairness.gate import FairGate
from aerodrome.fairness.line import Ceilings
from aerodrome.model import SessionKey, TurnRow, TurnStatus
from aerodrome.sessions.admission import TurnAdmission, TurnLimits
from aerodrome.sessions.returns import OwnLeases, give_back
from support.coordination import taken
from support.postgres import fresh_schema, postgres
from support.scripted_node import Unsteady, no_pause, scripted_node, settle
from support.stores import ValkeyServer, paused, valkey
from support.waiting import until

pytestmark = pytest.mark.timeout(60)

KEY = SessionKey("acme", "s1")
LONG = 600.0


#: What an impatient store is asked with while nothing is the matter: it may be slow then, too.
surely = Patience(30.0)


@asynccontextmanager
async def impatient(server: ValkeyServer) -> AsyncIterator[RedisCoordination]:
    coordination = RedisCoordination(RedisUrl.parse(server.url), timeout=0.3, patience=0.0)
    await surely(coordination.open)
    await surely(lambda: coordination.join(Node("a", "a-1"), LONG))
    # The server knows the scripts: what it is asked while it stands still it can do afterwards.
    before = await surely(lambda: taken(coordination, SessionKey("acme", "before"), "a-1"))
    await surely(lambda: coordination.release(before))
    await surely(lambda: coordination.admit("before", "a-1", caps=[Cap("before", 1)]))
    await surely(lambda: coordination.vacate("before", "a-1"))
    try:
        yield coordination
    finally:
        await coordination.aclose()


@asynccontextmanager
async def tasks_of_a_node() -> AsyncIterator[TaskOwner]:
    tasks = TaskOwner("test")
    try:
        yield tasks
    finally:
        await tasks.aclose()


def turn(number: int) -> TurnRow:
    return TurnRow(KEY, f"t-{number}", "alice", TurnStatus.QUEUED, "hello")


# --- places ---


async def test_a_place_that_could_not_be_given_back_is_given_back_later() -> None:
    async with scripted_node(limits=TurnLimits(at_once=1)) as node:
        await node.open("s1")
        node.stores.slow_coordination.fails.add("vacate")
        await node.say("s1", "one")
        await settle()
        assert node.stores.coordination._places != {}
        node.stores.slow_coordination.fails.clear()
        await until(lambda: node.stores.coordination._places == {})
        await node.say("s1", "two")


async def test_a_place_of_an_earlier_life_is_left_to_its_end() -> None:
    async with scripted_node(limits=TurnLimits(at_once=1)) as node:
        await node.open("s1")
        node.stores.slow_coordination.fails.add("vacate")
        await node.say("s1", "one")
        await settle()
        node.incarnation = "a-2"
        await until(lambda: not node.tasks._tasks)
        assert node.stores.coordination._places != {}
        node.incarnation = "a-1"


async def test_a_place_that_a_store_has_given_late_does_not_stay_taken() -> None:
    """It stood still, was given up, and does what it was asked afterwards, in whatever order."""
    with valkey() as server:
        async with impatient(server) as store, tasks_of_a_node() as tasks:
            admission = TurnAdmission(
                FairGate(Ceilings(total=10), timeout=5.0, what="no turn"),
                TurnLimits(at_once=1),
                store,
                incarnation=lambda: "a-1",
                later=lambda work, name: tasks.start(work, name),
                late=0.5,
            )
            with paused(server):
                await admission.accept(turn(1), idle=True)  # open: nobody says no
                async with admission.hold(turn(1)):
                    pass
            await until(lambda: not tasks._tasks)
            assert server.command("HLEN", "{aerodrome}:places") == b":0\r\n"
            place = Cap("running/acme/alice", 1)
            assert (await surely(lambda: store.admit("t-2", "a-1", caps=[place]))).full is None


# --- leases ---


async def test_a_lease_is_given_back_when_its_store_goes_on() -> None:
    with valkey() as server:
        async with impatient(server) as store, tasks_of_a_node() as tasks:
            leases = OwnLeases(store, lambda: "a-1", tasks)
            lease = await surely(lambda: taken(store, KEY, "a-1"))
            with paused(server):
                with pytest.raises(StoreUnavailable):
                    await leases.release(lease)
                releasing = asyncio.create_task(give_back(lambda: leases.release(lease), lambda: True))
                await asyncio.wait([releasing], timeout=0.5)
                assert not releasing.done()
            await releasing
            assert await surely(lambda: store.holder(KEY)) is None


async def test_tables_that_are_locked_for_a_while_keep_neither_leases_nor_places() -> None:
    schema = fresh_schema()
    async with postgres(schema) as db, postgres(schema, lock_timeout=0.1) as impatient_db:
        impatient_db.deadline = 0.2  # once it is open, which takes its time
        patient, store = PostgresCoordination(db), PostgresCoordination(impatient_db)
        await patient.open()
        await patient.join(Node("a", "a-1"), LONG)
        lease = await taken(patient, KEY, "a-1")
        await patient.admit("t-1", "a-1", caps=[Cap("c", 1)])
        locking = await db.connect()
        async with locking.transaction():
            await locking.execute("LOCK TABLE place, lease IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailable):
                await store.vacate("t-1", "a-1")
            giving_back = asyncio.gather(
                give_back(lambda: store.vacate("t-1", "a-1"), lambda: True),
                give_back(lambda: store.release(lease), lambda: True),
            )
        await giving_back
        await locking.close()
        assert await patient.holder(KEY) is None
        assert (await patient.admit("t-2", "a-1", caps=[Cap("c", 1)])).full is None
        await patient.aclose()


async def test_a_lease_that_a_store_has_given_late_is_found_and_given_back() -> None:
    with valkey() as server:
        async with impatient(server) as store, tasks_of_a_node() as tasks:
            leases = OwnLeases(store, lambda: "a-1", tasks, late=0.5)
            with paused(server), pytest.raises(StoreUnavailable):
                await leases.acquire(KEY, "a-1", floor=6)
            await until(lambda: not tasks._tasks)
            assert await surely(lambda: store.holder(KEY)) is None
            assert server.command("GET", "{aerodrome}:floor") == b"$1\r\n7\r\n"  # it had been given


@asynccontextmanager
async def unsteady() -> AsyncIterator[tuple[Coordination, Unsteady, OwnLeases, TaskOwner]]:
    store = MemoryCoordination(clock=ManualClock())
    await store.join(Node("a", "a-1"), LONG)
    await store.join(Node("b", "b-1"), LONG)
    on_the_way = Unsteady(store, no_pause)
    async with tasks_of_a_node() as tasks:
        yield store, on_the_way, OwnLeases(on_the_way, lambda: "a-1", tasks, late=0.0), tasks


async def test_a_lease_without_an_answer_is_kept_when_it_is_in_use_after_all() -> None:
    async with unsteady() as (store, way, leases, tasks):
        way.fails_after.add("acquire")
        with pytest.raises(StoreUnavailable):
            await leases.acquire(KEY, "a-1")
        way.fails_after.clear()
        lease = await leases.acquire(KEY, "a-1")
        await until(lambda: not tasks._tasks)
        assert await store.holder(KEY) == lease is not None
        assert await leases.release(lease)
        assert await store.holder(KEY) is None


async def test_a_lease_that_is_being_asked_for_is_not_given_back_by_who_looks() -> None:
    async with unsteady() as (store, way, leases, tasks):
        way.fails_after.add("acquire")
        with pytest.raises(StoreUnavailable):
            await leases.acquire(KEY, "a-1")
        way.fails_after.clear()
        way.held_after.add("acquire")
        asking = asyncio.create_task(leases.acquire(KEY, "a-1"))
        await until(lambda: not tasks._tasks)
        way.let_go("acquire")
        lease = await asking
        assert await store.holder(KEY) == lease is not None


async def test_an_attempt_that_comes_behind_the_lease_in_use_goes_with_it() -> None:
    async with unsteady() as (store, _, leases, _):
        lease = await leases.acquire(KEY, "a-1")
        assert lease is not None
        late = await taken(store, KEY, "a-1")
        assert late.epoch > lease.epoch
        assert not await leases.release(lease)
        assert await store.holder(KEY) is None


async def test_what_somebody_else_has_is_left_alone() -> None:
    async with unsteady() as (store, _, leases, _):
        lease = await leases.acquire(KEY, "a-1")
        assert lease is not None
        await store.release(lease)
        others = await taken(store, KEY, "b-1")
        assert not await leases.release(lease)
        assert await store.holder(KEY) == others
        # Nor does a late release touch a newer lease of our own.
        await store.release(others)
        newer = await leases.acquire(KEY, "a-1")
        assert not await leases.release(Lease(KEY, "a-1", lease.epoch))
        assert await store.holder(KEY) == newer


async def test_a_caller_that_goes_away_while_it_asks_leaves_no_lease() -> None:
    async with unsteady() as (store, way, leases, tasks):
        way.held_after.add("acquire")
        asking = asyncio.create_task(leases.acquire(KEY, "a-1"))
        await until(lambda: KEY in store._leases)  # type: ignore[attr-defined]
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: not tasks._tasks)
        assert await store.holder(KEY) is None
