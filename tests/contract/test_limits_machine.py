"""Any sequence of admissions: rates are token buckets, places are a set, and both adapters say exactly so.

The adapters keep one number a rate (GCRA). The model here is the other way to say the same: a bucket of `limit` tokens
that fills by `limit / period` a second, in whole fractions; and it is asked for the exact answer, not for a bound.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aerodrome._util.clock import ManualClock
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.backends.sqlite import SqliteCoordination
from aerodrome.coordination.ports import Admission, Cap, Coordination, Node, Rate
from support.databases import database

TTL = 5.0
RATES = [Rate("one", 1, 2.0), Rate("few", 3, 3.0), Rate("many", 8, 4.0)]
CAPS = [Cap("user", 1), Cap("tenant", 2), Cap("all", 3)]
NODES = ["n-1", "n-2"]
PLACES = ["t-1", "t-2", "t-3", "t-4"]


@dataclass
class Bucket:
    rate: Rate
    at: Fraction
    tokens: Fraction = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = Fraction(self.rate.limit)

    def fill(self, now: Fraction) -> None:
        earned = (now - self.at) * self.rate.limit / Fraction(self.rate.period)
        self.tokens, self.at = min(Fraction(self.rate.limit), self.tokens + earned), now

    def wait(self) -> Fraction:
        """Seconds until there is a whole token."""
        return max(Fraction(0), 1 - self.tokens) * Fraction(self.rate.period) / self.rate.limit


class LimitsMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.now = Fraction(self.clock.now)
        self.database = database(Path(self.directory.name) / "c.db")
        self.runner.run(self.database.open())
        sqlite = SqliteCoordination(self.database, clock=self.clock)
        self.runner.run(sqlite.open())
        self.stores: list[Coordination] = [MemoryCoordination(self.clock), sqlite]
        self.buckets = {rate.name: Bucket(rate, self.now) for rate in RATES}
        #: Incarnation -> until when it lives. One that is dead does not come back: a node joins as another.
        self.lives: dict[str, Fraction] = {}
        self.incarnations = dict.fromkeys(NODES, "nobody")
        #: (cap, place) -> whose it is.
        self.places: dict[tuple[str, str], str] = {}

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.database.aclose())
            self.runner.close()
            self.directory.cleanup()

    @rule(node=st.sampled_from(NODES))
    def join(self, node: str) -> None:
        incarnation = self.incarnations[node] = f"{node}.{len(self.lives)}"
        for store in self.stores:
            self.runner.run(store.join(Node(node, incarnation), TTL))
        self.lives[incarnation] = self.now + Fraction(TTL)

    @rule(node=st.sampled_from(NODES))
    def leave(self, node: str) -> None:
        for store in self.stores:
            self.runner.run(store.leave(self.incarnations[node]))
        self.lives[self.incarnations[node]] = self.now

    @rule(eighths=st.sampled_from([1, 2, 4, 5, 8, 16, 41]))
    def wait(self, eighths: int) -> None:
        # Eighths of a second have no rounding errors, neither in floats nor here.
        self.clock.advance(eighths / 8)
        self.now += Fraction(eighths, 8)

    @rule(
        place=st.sampled_from(PLACES),
        node=st.sampled_from(NODES),
        rates=st.lists(st.sampled_from(RATES), unique=True),
        caps=st.lists(st.sampled_from(CAPS), unique=True),
    )
    def admit(self, place: str, node: str, rates: list[Rate], caps: list[Cap]) -> None:
        incarnation = self.incarnations[node]
        expected, wait = self.expect(place, incarnation, rates, caps)
        for store in self.stores:
            found = self.runner.run(store.admit(place, incarnation, rates=rates, caps=caps))
            assert (found.exceeded, found.full) == (expected.exceeded, expected.full)
            assert found.retry_after == pytest.approx(float(wait), abs=1e-5)

    def expect(self, place: str, incarnation: str, rates: list[Rate], caps: list[Cap]) -> tuple[Admission, Fraction]:
        for rate in rates:
            bucket = self.buckets[rate.name]
            bucket.fill(self.now)
            if bucket.wait() > 0:
                return Admission(exceeded=rate), bucket.wait()
        for rate in rates:
            self.buckets[rate.name].tokens -= 1
        for cap in caps:
            others = [name for taken, name in self.taken() if taken == cap.name and name != place]
            if (cap.name, place) not in self.taken() and len(others) >= cap.limit:
                return Admission(full=cap), Fraction(0)
        self.places |= {(cap.name, place): incarnation for cap in caps}
        return Admission(), Fraction(0)

    def taken(self) -> set[tuple[str, str]]:
        """Places of the living."""
        return {at for at, whose in self.places.items() if self.lives.get(whose, Fraction(0)) > self.now}

    @rule(place=st.sampled_from(PLACES), node=st.sampled_from(NODES))
    def vacate(self, place: str, node: str) -> None:
        incarnation = self.incarnations[node]
        for store in self.stores:
            self.runner.run(store.vacate(place, incarnation))
        self.places = {at: whose for at, whose in self.places.items() if (at[1], whose) != (place, incarnation)}

    @invariant()
    def no_cap_is_passed(self) -> None:
        for cap in CAPS:
            assert sum(1 for name, _ in self.taken() if name == cap.name) <= cap.limit


TestLimitsMachine = LimitsMachine.TestCase
TestLimitsMachine.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
