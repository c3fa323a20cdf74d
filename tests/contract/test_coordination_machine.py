"""Any sequence of calls: every coordination adapter answers as a simple model of leases and limits does."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.ports import Admission, Beat, Cap, Coordination, Lease, Node, Rate
from aerodrome.model import SessionKey
from support.coordination import opened

T = TypeVar("T")
#: Seconds. All times are multiples of 100, so that the time that a server's clock goes on by itself meanwhile decides
#: nothing.
TTL = 1000.0
KEYS = [SessionKey("acme", "a"), SessionKey("acme", "b"), SessionKey("beta", "a")]
RATES = [Rate("user", 2, 800.0), Rate("tenant", 5, 2000.0)]
CAPS = [Cap("user", 1), Cap("tenant", 2)]
keys = st.sampled_from(KEYS)
incarnations = st.sampled_from([f"n-{number}" for number in range(4)])
places = st.sampled_from(["t-1", "t-2", "t-3"])


class CoordinationMachine(RuleBasedStateMachine):
    kind: ClassVar[str]

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.files = tempfile.TemporaryDirectory()
        self.stack = AsyncExitStack()
        pair = self.runner.run(self.stack.enter_async_context(opened(self.kind, Path(self.files.name))))
        self.clock = pair.clock
        # Two handles on one store, used in turn: whatever one process remembers of it would show.
        self.stores = list(pair.nodes)
        #: Knows about rates.
        self.memory = MemoryCoordination(self.clock)
        self.beats: dict[str, float] = {}
        self.lives: set[str] = set()
        self.holders: dict[SessionKey, Lease] = {}
        self.epochs: dict[SessionKey, int] = {}
        self.leases: list[Lease] = []
        self.draining: set[str] = set()
        self.places: dict[tuple[Cap, str], str] = {}

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.stack.aclose())
            self.runner.close()
            self.files.cleanup()

    def ask(self, call: Callable[[Coordination], Awaitable[T]]) -> T:
        self.stores.reverse()

        async def ask() -> T:
            return await call(self.stores[0])

        return self.runner.run(ask())

    def ask_both(self, call: Callable[[Coordination], Awaitable[T]]) -> tuple[T, T]:
        """What the store says, and the model of rates."""

        async def model() -> T:
            return await call(self.memory)

        return self.ask(call), self.runner.run(model())

    def alive(self, incarnation: str) -> bool:
        return incarnation in self.beats and self.clock.now - self.beats[incarnation] < TTL

    @rule(incarnation=incarnations)
    def join(self, incarnation: str) -> None:
        if incarnation in self.lives and not self.alive(incarnation):
            return  # whoever has died comes back as another
        self.lives.add(incarnation)
        self.ask_both(lambda store: store.join(Node(incarnation, incarnation), TTL))
        self.beats[incarnation] = self.clock.now
        self.draining.discard(incarnation)

    @rule(incarnation=incarnations)
    def heartbeat(self, incarnation: str) -> None:
        beat, _ = self.ask_both(lambda store: store.heartbeat(incarnation))
        if not self.alive(incarnation):
            assert beat is Beat.DEAD
            return
        assert beat is (Beat.DRAIN if incarnation in self.draining else Beat.ALIVE)
        self.beats[incarnation] = self.clock.now

    @rule(incarnation=incarnations)
    def leave(self, incarnation: str) -> None:
        self.ask_both(lambda store: store.leave(incarnation))
        self.beats.pop(incarnation, None)
        self.draining.discard(incarnation)

    @rule(seconds=st.sampled_from([100.0, 600.0, 1000.0]))
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

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases or [Lease(KEYS[0], "n-1", 1)]))
        assert self.ask(lambda store: store.forget(lease)) is (self.holders.get(lease.key) == lease)
        if self.holders.get(lease.key) == lease:
            del self.holders[lease.key]

    @rule(incarnation=incarnations)
    def ask_to_drain(self, incarnation: str) -> None:
        assert self.ask(lambda store: store.ask_to_drain(incarnation)) is self.alive(incarnation)
        if self.alive(incarnation):
            self.draining.add(incarnation)

    @rule(
        place=places,
        incarnation=incarnations,
        rates=st.lists(st.sampled_from(RATES), unique=True),
        caps=st.lists(st.sampled_from(CAPS), unique=True),
    )
    def admit(self, place: str, incarnation: str, rates: list[Rate], caps: list[Cap]) -> None:
        if not self.alive(incarnation):
            return
        admission, expected = self.ask_both(lambda store: store.admit(place, incarnation, rates=rates, caps=caps))
        assert admission.retry_after == pytest.approx(expected.retry_after, abs=90.0)
        assert replace(admission, retry_after=0.0) == replace(expected, retry_after=0.0)
        if admission.exceeded is not None:
            return
        living = {at for at, whose in self.places.items() if self.alive(whose)}
        full = [cap for cap in caps if (cap, place) not in living and sum(c == cap for c, _ in living) >= cap.limit]
        assert admission == Admission(full=full[0] if full else None)
        if not full:
            self.places |= {(cap, place): incarnation for cap in caps}

    @rule(place=places, incarnation=incarnations)
    def vacate(self, place: str, incarnation: str) -> None:
        self.ask_both(lambda store: store.vacate(place, incarnation))
        self.places = {at: whose for at, whose in self.places.items() if (at[1], whose) != (place, incarnation)}

    @invariant()
    def the_store_agrees_with_the_model(self) -> None:
        living = sorted(incarnation for incarnation in self.beats if self.alive(incarnation))
        assert [node.name for node in self.ask(lambda store: store.nodes())] == living
        valid = {key: lease for key, lease in self.holders.items() if self.alive(lease.incarnation)}
        assert self.ask(lambda store: store.holders(KEYS)) == valid
        assert self.ask(lambda store: store.holder(KEYS[0])) == valid.get(KEYS[0])


@pytest.mark.parametrize(("kind", "examples"), [("memory", 50), ("sqlite", 30), ("valkey", 30), ("postgresql", 15)])
def test_any_sequence_of_calls(kind: str, examples: int) -> None:
    machine = type(f"{kind.title()}Machine", (CoordinationMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            # Making an example smaller takes minutes against a server.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )
