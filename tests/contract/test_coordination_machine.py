"""Any sequence of calls: both coordination adapters answer as a simple model of leases and limits does."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aerodrome._util.clock import ManualClock
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.backends.sqlite import SqliteCoordination
from aerodrome.coordination.ports import Beat, Cap, Coordination, Lease, Node, Rate
from aerodrome.model import SessionKey
from support.databases import database

T = TypeVar("T")
TTL = 5.0
KEYS = [SessionKey("acme", "a"), SessionKey("acme", "b"), SessionKey("beta", "a")]
keys = st.sampled_from(KEYS)
incarnations = st.sampled_from(["n-1", "n-2", "n-3"])
RATES = [Rate("user", 2, 4.0), Rate("tenant", 5, 8.0)]
CAPS = [Cap("user", 1), Cap("tenant", 2)]


class CoordinationMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        path = Path(self.directory.name) / "c.db"
        # Two handles on one file, used in turn: whatever one process remembers of it would show.
        self.databases = [database(path), database(path)]
        for db in self.databases:
            self.runner.run(db.open())
        self.memory: Coordination = MemoryCoordination(self.clock)
        self.sqlite = [SqliteCoordination(db, clock=self.clock) for db in self.databases]
        for store in self.sqlite:
            self.runner.run(store.open())
        self.beats: dict[str, float] = {}
        self.holders: dict[SessionKey, Lease] = {}
        self.epochs: dict[SessionKey, int] = {}
        self.leases: list[Lease] = []
        self.draining: set[str] = set()
        self.admitted: list[tuple[Rate, float]] = []
        self.places: dict[tuple[Cap, str], str] = {}

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            for db in self.databases:
                self.runner.run(db.aclose())
            self.runner.close()
            self.directory.cleanup()

    def ask(self, call: Callable[[Coordination], Awaitable[T]]) -> T:
        """The answer of both adapters, which must be the same."""

        async def both() -> tuple[T, T]:
            return await call(self.memory), await call(self.sqlite[0])

        self.sqlite.reverse()
        memory, sqlite = self.runner.run(both())
        assert memory == sqlite
        return memory

    def alive(self, incarnation: str) -> bool:
        return incarnation in self.beats and self.clock.now - self.beats[incarnation] < TTL

    @rule(incarnation=incarnations)
    def join(self, incarnation: str) -> None:
        self.ask(lambda store: store.join(Node(incarnation, incarnation), TTL))
        self.beats[incarnation] = self.clock.now
        self.draining.discard(incarnation)

    @rule(incarnation=incarnations)
    def heartbeat(self, incarnation: str) -> None:
        expected = Beat.DRAIN if incarnation in self.draining else Beat.ALIVE
        assert self.ask(lambda store: store.heartbeat(incarnation)) is (
            expected if self.alive(incarnation) else Beat.DEAD
        )
        if self.alive(incarnation):
            self.beats[incarnation] = self.clock.now

    @rule(incarnation=incarnations)
    def leave(self, incarnation: str) -> None:
        self.ask(lambda store: store.leave(incarnation))
        self.beats.pop(incarnation, None)
        self.draining.discard(incarnation)

    @rule(seconds=st.sampled_from([0.5, 3.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(key=keys, incarnation=incarnations, floor=st.integers(0, 12))
    def acquire(self, key: SessionKey, incarnation: str, floor: int) -> None:
        lease = self.ask(lambda store: store.acquire(key, incarnation, floor=floor))
        holder = self.holders.get(key)
        free = holder is None or holder.incarnation == incarnation or not self.alive(holder.incarnation)
        assert (lease is not None) is (self.alive(incarnation) and free)
        if lease is not None:
            # Higher than all that was ever given for this key, whatever was released or forgotten between.
            assert lease.epoch > max(self.epochs.get(key, 0), floor)
            assert (lease.key, lease.incarnation) == (key, incarnation)
            self.epochs[key] = lease.epoch
            self.holders[key] = lease
            self.leases.append(lease)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases or [Lease(KEYS[0], "n-1", 1)]))
        assert self.ask(lambda store: store.release(lease)) is (self.holders.get(lease.key) == lease)
        if self.holders.get(lease.key) == lease:
            del self.holders[lease.key]

    @rule(key=keys)
    def forget(self, key: SessionKey) -> None:
        self.ask(lambda store: store.forget(key))
        self.holders.pop(key, None)

    @rule(incarnation=incarnations)
    def ask_to_drain(self, incarnation: str) -> None:
        assert self.ask(lambda store: store.ask_to_drain(incarnation)) is self.alive(incarnation)
        if self.alive(incarnation):
            self.draining.add(incarnation)

    @rule(
        place=st.sampled_from(["t-1", "t-2", "t-3"]),
        incarnation=incarnations,
        rates=st.lists(st.sampled_from(RATES), unique=True),
        caps=st.lists(st.sampled_from(CAPS), unique=True),
    )
    def admit(self, place: str, incarnation: str, rates: list[Rate], caps: list[Cap]) -> None:
        admission = self.ask(lambda store: store.admit(place, incarnation, rates=rates, caps=caps))
        if admission.exceeded is not None:
            assert admission.exceeded in rates
            assert 0 < admission.retry_after <= admission.exceeded.period
            return
        self.admitted += [(rate, self.clock.now) for rate in rates]
        for rate in RATES:
            # Twice its limit is the most that may come in any period: a burst, and what was earned meanwhile.
            recent = [at for known, at in self.admitted if known == rate and at > self.clock.now - rate.period]
            assert len(recent) < 2 * rate.limit
        living = {(cap, name) for cap, name in self.places if self.alive(self.places[cap, name])}
        full = [cap for cap in caps if (cap, place) not in living and sum(c == cap for c, _ in living) >= cap.limit]
        assert admission.full == (full[0] if full else None)
        if not full:
            self.places |= {(cap, place): incarnation for cap in caps}

    @rule(place=st.sampled_from(["t-1", "t-2", "t-3"]))
    def vacate(self, place: str) -> None:
        self.ask(lambda store: store.vacate(place))
        self.places = {at: whose for at, whose in self.places.items() if at[1] != place}

    @invariant()
    def the_stores_agree_with_the_model(self) -> None:
        living = sorted(incarnation for incarnation in self.beats if self.alive(incarnation))
        assert [node.name for node in self.ask(lambda store: store.nodes())] == living
        for key in KEYS:
            holder = self.holders.get(key)
            valid = holder if holder is not None and self.alive(holder.incarnation) else None
            assert self.runner.run(self.sqlite[0].holder(key)) == valid
        valid_leases = {key: lease for key, lease in self.holders.items() if self.alive(lease.incarnation)}
        assert self.ask(lambda store: store.holders(KEYS)) == valid_leases


TestCoordinationMachine = CoordinationMachine.TestCase
TestCoordinationMachine.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
