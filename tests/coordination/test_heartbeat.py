from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aerodrome._util.clock import Clock, ManualClock, SystemClock
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.heartbeat import Heartbeat
from aerodrome.coordination.ports import Beat, Node
from aerodrome.errors import StoreUnavailable
from aerodrome.model import SessionKey
from support.waiting import until

pytestmark = pytest.mark.timeout(30)

KEY = SessionKey("acme", "chat")
TTL = 6.0


class Store(MemoryCoordination):
    """The memory adapter, which can be made to fail, and tells which calls it got."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.away = False
        self.calls: list[str] = []
        self.before_answer: Callable[[], Awaitable[None]] | None = None

    async def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise StoreUnavailable("the store is away")
        if self.before_answer is not None:
            await self.before_answer()

    async def join(self, node: Node, ttl: float) -> None:
        await self._called("join")
        await super().join(node, ttl)

    async def heartbeat(self, incarnation: str, load: dict[str, Any] | None = None) -> Beat:
        await self._called("heartbeat")
        return await super().heartbeat(incarnation, load)

    async def leave(self, incarnation: str) -> None:
        await self._called("leave")
        await super().leave(incarnation)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> Store:
    return Store(clock)


def make(store: Store, clock: ManualClock, *, interval: float = 3600.0, load: Any = dict) -> Heartbeat:
    """One that beats by itself only at its start, unless told otherwise: tests call `beat`."""
    return Heartbeat(store, "node-a", interval=interval, ttl=TTL, clock=clock, load=load)


async def started(heartbeat: Heartbeat, store: Store) -> Heartbeat:
    await heartbeat.start()
    await until(lambda: "heartbeat" in store.calls)
    return heartbeat


async def hang() -> None:
    await asyncio.Event().wait()


async def test_a_node_joins_beats_and_leaves(store: Store, clock: ManualClock) -> None:
    heartbeat = make(store, clock, load=lambda: {"sessions": 3})
    await started(heartbeat, store)
    (node,) = await store.nodes()
    assert (node.name, node.incarnation, node.load) == ("node-a", heartbeat.incarnation, {"sessions": 3})
    assert await store.acquire(KEY, heartbeat.incarnation) is not None
    await heartbeat.aclose()
    assert await store.nodes() == []
    assert await store.holder(KEY) is None


async def test_each_life_is_another_incarnation(store: Store, clock: ManualClock) -> None:
    assert make(store, clock).incarnation != make(store, clock).incarnation


async def test_it_beats_by_itself(store: Store, clock: ManualClock) -> None:
    heartbeat = make(store, clock, interval=0.01)
    await heartbeat.start()
    for _ in range(10):
        clock.advance(TTL / 2)
        beats = store.calls.count("heartbeat")
        await until(lambda beats=beats: store.calls.count("heartbeat") >= beats + 2)  # type: ignore[misc]
        assert heartbeat.may_serve
        assert len(await store.nodes()) == 1
    assert store.calls.count("join") == 1
    await heartbeat.aclose()


async def test_a_node_that_has_not_joined_serves_nobody(store: Store, clock: ManualClock) -> None:
    heartbeat = make(store, clock)
    assert not heartbeat.may_serve
    store.away = True
    with pytest.raises(StoreUnavailable):
        await heartbeat.start()
    assert not heartbeat.may_serve
    await heartbeat.aclose()


async def test_without_beats_it_stops_to_serve_before_its_leases_end(store: Store, clock: ManualClock) -> None:
    heartbeat = await started(make(store, clock), store)
    store.away = True
    clock.advance(TTL * 2 / 3 - 0.01)
    with pytest.raises(StoreUnavailable):
        await heartbeat.beat()
    assert heartbeat.may_serve
    clock.advance(0.02)
    assert not heartbeat.may_serve
    assert len(await store.nodes()) == 1
    # Once the store is back in time, everything is as before.
    store.away = False
    incarnation = heartbeat.incarnation
    await heartbeat.beat()
    assert heartbeat.may_serve
    assert heartbeat.incarnation == incarnation
    await heartbeat.aclose()


@pytest.mark.parametrize("call", ["start", "beat"])
async def test_the_time_counts_from_the_question_not_from_the_answer(
    store: Store, clock: ManualClock, call: str
) -> None:
    heartbeat = make(store, clock)
    if call == "beat":
        await started(heartbeat, store)

    async def slow() -> None:
        store.before_answer = None
        clock.advance(3.0)

    store.before_answer = slow
    await (heartbeat.start() if call == "start" else heartbeat.beat())
    clock.advance(TTL * 2 / 3 - 3.0)
    if call == "start":
        # Its own first beat may have been asked later: only the join is looked at.
        assert store.calls[0] == "join"
        assert "heartbeat" not in store.calls
    assert not heartbeat.may_serve
    await heartbeat.aclose()


async def test_who_is_declared_dead_gives_up_and_lives_on_as_another(store: Store, clock: ManualClock) -> None:
    heartbeat = await started(make(store, clock), store)
    first = heartbeat.incarnation
    lease = await store.acquire(KEY, first)
    assert lease is not None
    seen: list[tuple[bool, bool]] = []

    async def give_up() -> None:
        alive = [node.incarnation for node in await store.nodes()]
        seen.append((heartbeat.may_serve, heartbeat.incarnation in alive))

    heartbeat.on_reborn = give_up
    await store.leave(first)  # an operator, or a store that has lost its memory
    assert heartbeat.may_serve
    await heartbeat.beat()
    # Given up while nobody may be served, and before the new life begins.
    assert seen == [(False, False)]
    assert heartbeat.incarnation != first
    assert heartbeat.may_serve
    assert [node.incarnation for node in await store.nodes()] == [heartbeat.incarnation]
    # The old life's lease is void, also for the new one.
    taken = await store.acquire(KEY, heartbeat.incarnation)
    assert taken is not None
    assert taken.epoch > lease.epoch
    await heartbeat.beat()
    assert seen == [(False, False)]
    await heartbeat.aclose()


async def test_who_lives_is_certain_a_time_to_live_after_each_join(store: Store, clock: ManualClock) -> None:
    """The store may have been emptied just before: whoever lives has joined again by then."""
    lives: list[str] = []
    heartbeat = make(store, clock, load=lambda: {"earlier": list(lives)})
    lives.append(heartbeat.incarnation)
    await started(heartbeat, store)
    assert heartbeat.unsettled == TTL
    clock.advance(TTL / 2)
    await heartbeat.beat()
    await heartbeat.advertise("here:1")
    assert heartbeat.unsettled == TTL / 2
    clock.advance(TTL / 2)
    assert heartbeat.unsettled == 0
    first = heartbeat.incarnation
    await store.leave(first)
    await heartbeat.beat()
    assert heartbeat.unsettled == TTL
    (node,) = await store.nodes()
    assert node.load == {"earlier": lives}, "from the first moment on"
    await heartbeat.aclose()


async def test_who_cannot_join_again_serves_nobody_and_tries_on(store: Store, clock: ManualClock) -> None:
    heartbeat = await started(make(store, clock), store)
    given_up = 0

    async def give_up() -> None:
        nonlocal given_up
        given_up += 1
        store.away = True

    heartbeat.on_reborn = give_up
    await store.leave(heartbeat.incarnation)
    with pytest.raises(StoreUnavailable):
        await heartbeat.beat()
    assert not heartbeat.may_serve
    with pytest.raises(StoreUnavailable):
        await heartbeat.beat()
    assert not heartbeat.may_serve
    heartbeat.on_reborn = None
    store.away = False
    await heartbeat.beat()
    assert heartbeat.may_serve
    assert given_up == 1
    await heartbeat.aclose()


async def test_two_beats_at_once_are_reborn_once(store: Store, clock: ManualClock) -> None:
    heartbeat = await started(make(store, clock), store)
    reborn = 0

    async def give_up() -> None:
        nonlocal reborn
        reborn += 1
        await asyncio.sleep(0)

    async def yielding() -> None:
        await asyncio.sleep(0)

    heartbeat.on_reborn = give_up
    store.before_answer = yielding
    clock.advance(TTL)
    await asyncio.gather(heartbeat.beat(), heartbeat.beat())
    assert reborn == 1
    assert len(await store.nodes()) == 1
    await heartbeat.aclose()


async def test_nothing_that_goes_wrong_stops_the_heart(store: Store, clock: ManualClock) -> None:
    def crash() -> dict[str, Any]:
        raise ZeroDivisionError("a bug in what the node says of itself")

    loads: list[Callable[[], dict[str, Any]]] = [dict]
    heartbeat = make(store, clock, interval=0.005, load=lambda: loads[-1]())
    await started(heartbeat, store)
    for trouble in ("load", "store"):
        if trouble == "load":
            loads.append(crash)
        else:
            store.away = True
        clock.advance(TTL * 0.7)
        await asyncio.sleep(0.02)
        assert not heartbeat.may_serve
        loads[:] = [dict]
        store.away = False
        await until(lambda: heartbeat.may_serve)
    await heartbeat.aclose()


async def test_a_store_that_is_away_does_not_hinder_the_stop(store: Store, clock: ManualClock) -> None:
    heartbeat = await started(make(store, clock), store)
    store.away = True
    await heartbeat.aclose()
    await heartbeat.aclose()
    assert store.calls[-1] == "leave"
    # The others wait for the time to live.
    clock.advance(TTL)
    assert await store.nodes() == []


# --- self-fencing ---


async def test_leases_are_given_up_at_two_thirds_of_the_time_to_live(store: Store, clock: ManualClock) -> None:
    heartbeat = await started(make(store, clock), store)
    lapses: list[float] = []
    heartbeat.on_lapse = lambda: lapses.append(clock.now)
    began = clock.now
    clock.advance(TTL * 2 / 3 - 0.01)
    assert heartbeat.check()
    clock.advance(0.02)
    assert not heartbeat.check()
    assert not heartbeat.check()
    # Once, and with a third of the time to live left in which nobody else may have the leases.
    assert lapses == [pytest.approx(began + TTL * 2 / 3 + 0.01)]
    assert heartbeat.lapse_time == pytest.approx(TTL / 3)
    assert len(await store.nodes()) == 1
    # A beat that gets through arms it again.
    await heartbeat.beat()
    assert heartbeat.check()
    clock.advance(TTL * 2 / 3)
    assert not heartbeat.check()
    assert len(lapses) == 2
    await heartbeat.aclose()


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
async def test_a_timer_notices_that_no_beat_got_through(trouble: str) -> None:
    """On the real clock: no beat that returns, and nobody who asks, tells of it."""
    clock = SystemClock()
    store = Store(clock)
    heartbeat = Heartbeat(store, "node-a", interval=0.1, ttl=0.6, clock=clock, load=dict)
    await heartbeat.start()
    await heartbeat.beat()
    # Nothing is awaited from here until the trouble has begun.
    last, happened = heartbeat._last_beat, []
    heartbeat.on_lapse = lambda: happened.append(("lapsed", clock.monotonic()))
    # As a timer of the same loop: the loop may be late, and then is so with both.
    left = last + 0.6 - clock.monotonic()
    asyncio.get_running_loop().call_later(left, lambda: happened.append(("others may take over", clock.monotonic())))
    if trouble == "fails":
        store.away = True
    else:
        store.before_answer = hang
    await until(lambda: len(happened) == 2)
    assert [what for what, _ in happened] == ["lapsed", "others may take over"]
    assert happened[0][1] - last >= 0.4 - 1e-6
    # It has gone on to try, with a deadline for each beat.
    beats = store.calls.count("heartbeat")
    await until(lambda: store.calls.count("heartbeat") > beats)
    store.away, store.before_answer = False, None
    await until(lambda: heartbeat.may_serve)
    await heartbeat.aclose()


async def test_a_store_that_hangs_fails_a_beat(store: Store) -> None:
    heartbeat = Heartbeat(store, "node-a", interval=3600.0, ttl=0.2, clock=SystemClock(), load=dict)
    await started(heartbeat, store)
    store.before_answer = hang
    with pytest.raises(StoreUnavailable):
        await heartbeat.beat()
    await heartbeat.aclose()


async def test_who_was_paused_serves_nobody_before_any_timer_is_heard(store: Store, clock: ManualClock) -> None:
    heartbeat = await started(make(store, clock), store)
    lapses: list[float] = []
    heartbeat.on_lapse = lambda: lapses.append(clock.now)
    clock.advance(TTL * 10)
    assert not heartbeat.check()
    assert len(lapses) == 1
    # Declared dead by the next beat: that gives up by itself, and there is nothing left to give up.
    await heartbeat.beat()
    assert heartbeat.check()
    assert len(lapses) == 1
    await heartbeat.aclose()


# --- drain ---


async def test_a_node_that_is_asked_to_drain_is_told_once(store: Store, clock: ManualClock) -> None:
    heartbeat = await started(make(store, clock), store)
    told: list[str] = []
    heartbeat.on_drain = lambda: told.append("drain")
    await heartbeat.beat()
    assert told == []
    assert await store.ask_to_drain(heartbeat.incarnation)
    await heartbeat.beat()
    await heartbeat.beat()
    assert told == ["drain"]
    assert heartbeat.may_serve
    await heartbeat.aclose()
