"""What only the PostgreSQL adapter has to know: races of statements, servers that restart or hang."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest

from aerodrome._util.postgres import Postgres, Transaction
from aerodrome.coordination.backends.postgresql import PostgresCoordination
from aerodrome.coordination.ports import Admission, Beat, Cap, ClusterEvent, Node, Rate
from aerodrome.errors import StoreUnavailable
from aerodrome.model import SessionKey
from support.coordination import TTL, taken
from support.postgres import fetch, fresh_schema, given_up_at_once, postgres, server, shared_server
from support.relay import relaying
from support.stores import paused
from support.waiting import until

KEY = SessionKey("acme", "chat")
LONG = 600.0


@asynccontextmanager
async def store(database: Postgres, **options: Any) -> AsyncIterator[PostgresCoordination]:
    coordination = PostgresCoordination(database, **options)
    await coordination.open()
    try:
        yield coordination
    finally:
        await coordination.aclose()


async def test_a_beat_on_its_way_does_not_bring_back_whoever_is_being_taken_from() -> None:
    ahead = 0.0
    async with postgres() as db, store(db, offset=lambda: ahead) as a, store(db, offset=lambda: ahead) as b:
        await a.join(Node("a", "a-1"), TTL)
        await a.join(Node("b", "b-1"), LONG)
        lease = await taken(a, KEY, "a-1")
        holding = await db.connect()
        async with holding.transaction():
            # The beat has begun, in time, and is held up before it is stored.
            await holding.execute("SELECT FROM node WHERE incarnation = 'a-1' FOR UPDATE")
            ahead = TTL / 2
            beating = asyncio.create_task(a.heartbeat("a-1"))
            await until_waiting(db, 1)
            ahead = TTL + 1  # dead without that beat, alive with it
            taking = asyncio.create_task(b.acquire(KEY, "b-1"))
            await until_waiting(db, 2)
        await holding.close()
        beat, taken_over = await asyncio.gather(beating, taking)
        # Whoever comes first, both cannot win.
        assert (beat is Beat.DEAD) is (taken_over is not None)
        holder = await a.holder(KEY)
        assert holder == (taken_over or lease)


@asynccontextmanager
async def clock_held() -> AsyncIterator[tuple[Postgres, PostgresCoordination, PostgresCoordination]]:
    """Two stores on one schema, and its database. The first can be held where it asks for the time, which is after its
    snapshot, with ``pg_advisory_lock(7)``."""
    schema, slow = fresh_schema(), 0.125
    async with (
        postgres(schema) as first,
        postgres(schema) as second,
        store(first, offset=lambda: slow) as held,
        store(second) as a,
    ):
        await second.execute(
            "CREATE OR REPLACE FUNCTION coordination_clock(ahead double precision) RETURNS double precision"
            " LANGUAGE plpgsql VOLATILE AS $$ BEGIN"
            f" IF ahead = {slow} THEN PERFORM pg_advisory_xact_lock_shared(7); END IF;"
            " RETURN extract(epoch FROM clock_timestamp())::double precision; END $$"
        )
        yield second, held, a


async def until_waiting(db: Postgres, count: int) -> None:
    """Until so many of this database's connections wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'aerodrome'"
    async with asyncio.timeout(20):
        while (await fetch(db, query))[0][0] < count:
            await asyncio.sleep(0.01)


async def test_a_lease_that_changes_hands_while_those_of_the_dead_are_cleared_is_left_alone() -> None:
    """The clearing sees the tables as they were when it began: not the node that has joined since."""
    async with clock_held() as (second, clearing_one, a):
        for incarnation in ("a-1", "c-1"):
            await a.join(Node(incarnation, incarnation), LONG)
        stale = SessionKey("acme", "stale")
        for key in (KEY, stale):
            await taken(a, key, "a-1")
        await a.leave("a-1")
        holding = await second.connect()
        await holding.execute("SELECT pg_advisory_lock(7)")
        clearing = asyncio.create_task(clearing_one.clear_dead())
        await until_waiting(second, 1)
        await a.join(Node("b", "b-1"), LONG)
        lease = await taken(a, KEY, "b-1")
        await holding.close()
        assert await clearing == 1
        assert await a.holder(KEY) == lease
        assert await a.release(lease)
        assert await taken(a, stale, "b-1")


async def test_a_session_that_is_forgotten_while_it_is_taken_keeps_its_epochs_rising() -> None:
    schema = fresh_schema()
    async with postgres(schema) as first, postgres(schema) as second, store(first) as a, store(second) as b:
        await a.join(Node("a", "a-1"), LONG)
        epochs = []
        for _ in range(30):
            lease = await taken(a, KEY, "a-1")
            epochs.append(lease.epoch)
            _, again = await asyncio.gather(a.forget(lease), taken(b, KEY, "a-1"))
            epochs.append(again.epoch)
        assert epochs == sorted(set(epochs))


async def test_limits_of_many_names_at_once_never_deadlock() -> None:
    schema = fresh_schema()
    async with postgres(schema) as first, postgres(schema) as second, store(first) as a, store(second) as b:
        await a.join(Node("a", "a-1"), LONG)
        caps = [Cap(f"c-{number}", 1000) for number in range(6)]
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        before = await fetch(first, query)
        works = [
            (a, b)[number % 2].admit(f"t-{number}", "a-1", caps=caps[:: 1 if number % 3 else -1])
            for number in range(60)
        ]
        for admission in await asyncio.gather(*works):
            assert admission.full is None
        ((deadlocks,),) = await fetch(
            first, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        assert deadlocks == before[0][0]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
async def test_a_restarted_server_is_waited_for_and_heard_again(how: signal.Signals) -> None:
    with server() as postgresql:
        async with postgres(url=postgresql.url, deadline=20.0) as db, store(db) as a:
            heard: list[ClusterEvent] = []
            a.listen(heard.append)
            await a.publish(ClusterEvent("before", ""))
            await until(lambda: bool(heard))
            await a.join(Node("a", "a-1"), LONG)
            lease = await taken(a, KEY, "a-1", floor=8)
            postgresql.stop(how)
            working = asyncio.create_task(a.nodes())
            with pytest.raises(StoreUnavailable):
                await PostgresCoordination(db, beat_deadline=0.2).heartbeat("a-1")
            await asyncio.to_thread(postgresql.start)
            await working
            if how is signal.SIGKILL:
                # What is not logged is gone; the epochs are not.
                assert await a.heartbeat("a-1") is Beat.DEAD
                await a.join(Node("a", "a-2"), LONG)
                assert (await taken(a, KEY, "a-2")).epoch == lease.epoch + 1
            else:
                assert await a.heartbeat("a-1") is Beat.ALIVE
                assert await a.holder(KEY) == lease
            while ClusterEvent("after", "") not in heard:
                await a.publish(ClusterEvent("after", ""))
                await asyncio.sleep(0.05)


async def test_a_server_that_hangs_is_given_up_in_time_and_all_goes_on_afterwards() -> None:
    with server() as postgresql:
        async with postgres(url=postgresql.url, statement_timeout=0.5) as db, store(db, beat_deadline=20.0) as a:
            await a.join(Node("a", "a-1"), LONG)
            began = monotonic()
            a._beat_deadline = 0.5
            with paused(postgresql), given_up_at_once(db):
                calls = [a.heartbeat("a-1"), a.acquire(KEY, "a-1"), a.publish(ClusterEvent("lost", ""))]
                failed = await asyncio.gather(*calls, return_exceptions=True)
            assert monotonic() - began < 20.0
            assert [type(error) for error in failed] == [StoreUnavailable] * 3
            a._beat_deadline = 20.0
            assert await a.heartbeat("a-1") is Beat.ALIVE


async def test_what_is_stored_does_not_grow_with_what_was() -> None:
    offset = 0.0
    async with postgres() as db, store(db, offset=lambda: offset) as a:
        for life in range(5):
            incarnation = f"a-{life}"
            await a.join(Node("a", incarnation), TTL)
            for number in range(10):
                await a.admit(f"t-{life}-{number}", incarnation, caps=[Cap("c", 1000)])
            offset += TTL
        await a.join(Node("b", "b-1"), TTL)
        assert await fetch(db, "SELECT incarnation FROM node") == [("b-1",)]
        await a.admit("t-1", "b-1", caps=[Cap("c", 1000)])
        await a.clear_dead()
        assert await fetch(db, "SELECT cap, place, incarnation FROM place") == [("c", "t-1", "b-1")]


async def test_a_place_that_is_taken_again_while_those_of_the_dead_are_cleared_is_left_alone() -> None:
    """As with leases: by a node that the clearing does not see, since it has joined meanwhile."""
    async with clock_held() as (second, clearing_one, a):
        await a.join(Node("a", "a-1"), LONG)
        for place in ("t-1", "t-2"):
            await a.admit(place, "a-1", caps=[Cap("c", 10)])
        await a.leave("a-1")
        # As when it had been killed, and its time was over: leaving gives them back here.
        for place in ("t-1", "t-2"):
            await second.execute("INSERT INTO place VALUES ('c', %s, 'a-1')", (place,))
        holding = await second.connect()
        await holding.execute("SELECT pg_advisory_lock(7)")
        clearing = asyncio.create_task(clearing_one.clear_dead())
        await until_waiting(second, 1)
        await a.join(Node("b", "b-1"), LONG)
        assert await a.admit("t-1", "b-1", caps=[Cap("c", 10)]) == Admission()
        await holding.close()
        await clearing
        assert await fetch(second, "SELECT place, incarnation FROM place") == [("t-1", "b-1")]


async def test_schemas_hear_only_their_own() -> None:
    async with postgres() as one, postgres() as two, store(one) as a, store(two) as b:
        heard: list[ClusterEvent] = []
        a.listen(heard.append)
        await a.publish(ClusterEvent("mine", ""))
        await b.publish(ClusterEvent("theirs", ""))
        await a.publish(ClusterEvent("last", ""))
        await until(lambda: len(heard) == 2)
        assert [event.kind for event in heard] == ["mine", "last"]


async def test_a_heartbeat_waits_for_no_other_call() -> None:
    schema = fresh_schema()
    async with (
        postgres(schema, max_connections=1) as db,
        postgres(schema, max_connections=1) as own,
        store(db, beats=own) as a,
    ):
        await a.join(Node("a", "a-1"), LONG)
        entered, done = asyncio.Event(), asyncio.Event()

        async def hold(_: Transaction) -> None:
            entered.set()
            await done.wait()

        holding = asyncio.create_task(db.read(hold))
        await entered.wait()
        assert await a.heartbeat("a-1") is Beat.ALIVE
        with given_up_at_once(db), pytest.raises(StoreUnavailable, match="in use"):
            await a.nodes()
        done.set()
        await holding


async def test_an_admission_whose_answer_is_lost_is_counted_once() -> None:
    schema, lose = fresh_schema(), False

    def tap(link: int, up: bool, data: bytes) -> None:
        nonlocal lose
        if lose and not up:
            lose = False
            raise ConnectionResetError

    host, _, port = shared_server().url.partition("@")[2].partition("/")[0].partition(":")
    async with (
        relaying(host, int(port), lambda: tap) as address,
        postgres(schema, url=f"postgresql://postgres@{address}/postgres", max_connections=1) as db,
        store(db) as a,
    ):
        await a.join(Node("a", "a-1"), LONG)
        rate, cap = Rate("r", 2, 600.0), Cap("c", 1)
        for number in range(2):
            lose = True
            assert await a.admit(f"t-{number}", "a-1", rates=[rate]) == Admission()
            assert not lose
        lose = True
        assert (await a.admit("t-2", "a-1", rates=[rate])).exceeded == rate
        # One that was refused is not taken for counted, and a cap that is full is so for the repetition, too.
        await a.admit("t-3", "a-1", caps=[cap])
        lose = True
        assert (await a.admit("t-4", "a-1", rates=[Rate("other", 2, 600.0)], caps=[cap])).full == cap
        assert (await a.admit("t-4", "a-1", rates=[Rate("other", 2, 600.0)])).exceeded is None
        assert (await a.admit("t-4", "a-1", rates=[Rate("other", 2, 600.0)])).exceeded is not None
        found = await fetch(db, "SELECT count(*) FROM rate WHERE name LIKE 'admission %'")
        assert found == [(4,)]  # until a minute has passed


async def test_the_numbers_of_admissions_do_not_pile_up() -> None:
    ahead = 0.0
    async with postgres() as db, store(db, offset=lambda: ahead) as a:
        await a.join(Node("a", "a-1"), LONG)
        for number in range(30):
            await a.admit(f"t-{number}", "a-1", rates=[Rate("r", 1000, 60.0)])
            ahead += 20.0
        ((left,),) = await fetch(db, "SELECT count(*) FROM rate WHERE name LIKE 'admission %'")
        assert left <= 5
