"""Coordination inside one process: for tests, and for a node that has no other beside it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aerodrome._util.clock import Clock, SystemClock
from aerodrome.coordination.backends.listeners import Listeners
from aerodrome.coordination.ports import Admission, Beat, Cap, ClusterEvent, Lease, Node, Rate
from aerodrome.model import SessionKey


@dataclass(slots=True)
class _Life:
    node: Node
    ttl: float
    beat_at: float


@dataclass(slots=True)
class _Held:
    epoch: int
    incarnation: str | None


class MemoryCoordination:
    """Implements `coordination.ports.Coordination`.

    No method awaits anything, so each is atomic on the loop. Several nodes of one process share the object.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lives: dict[str, _Life] = {}
        self._leases: dict[SessionKey, _Held] = {}
        self._epoch_floor = 0
        self._draining: set[str] = set()
        self._listeners = Listeners()
        #: By name, the theoretical arrival time of the next admission (GCRA).
        self._arrivals: dict[str, float] = {}
        #: By cap, the places taken and whose they are.
        self._places: dict[str, dict[str, str]] = {}

    async def open(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    # Membership

    async def join(self, node: Node, ttl: float) -> None:
        self._lives = {key: life for key, life in self._lives.items() if self._alive(key)}
        self._lives[node.incarnation] = _Life(copy.deepcopy(node), ttl, self._clock.monotonic())
        self._draining = {key for key in self._draining if key in self._lives and key != node.incarnation}

    async def heartbeat(self, incarnation: str, load: dict[str, Any] | None = None) -> Beat:
        if not self._alive(incarnation):
            return Beat.DEAD
        life = self._lives[incarnation]
        life.beat_at = self._clock.monotonic()
        if load is not None:
            life.node = replace(life.node, load=copy.deepcopy(load))
        return Beat.DRAIN if incarnation in self._draining else Beat.ALIVE

    async def leave(self, incarnation: str) -> None:
        self._lives.pop(incarnation, None)
        self._draining.discard(incarnation)

    async def nodes(self) -> list[Node]:
        living = (life.node for key, life in self._lives.items() if self._alive(key))
        return copy.deepcopy(sorted(living, key=lambda node: (node.name, node.incarnation)))

    async def ask_to_drain(self, incarnation: str) -> bool:
        if not self._alive(incarnation):
            return False
        self._draining.add(incarnation)
        return True

    def _alive(self, incarnation: str | None) -> bool:
        life = self._lives.get(incarnation) if incarnation is not None else None
        return life is not None and self._clock.monotonic() - life.beat_at < life.ttl

    # Leases

    async def acquire(self, key: SessionKey, incarnation: str, *, floor: int = 0) -> Lease | None:
        if not self._alive(incarnation):
            return None
        held = self._leases.get(key)
        if held is not None and held.incarnation != incarnation and self._alive(held.incarnation):
            return None
        epoch = max(held.epoch if held else self._epoch_floor, floor) + 1
        self._leases[key] = _Held(epoch, incarnation)
        return Lease(key, incarnation, epoch)

    async def release(self, lease: Lease) -> bool:
        held = self._leases.get(lease.key)
        if held is None or (held.incarnation, held.epoch) != (lease.incarnation, lease.epoch):
            return False
        held.incarnation = None
        return True

    async def holder(self, key: SessionKey) -> Lease | None:
        held = self._leases.get(key)
        if held is None or held.incarnation is None or not self._alive(held.incarnation):
            return None
        return Lease(key, held.incarnation, held.epoch)

    async def holders(self, keys: Sequence[SessionKey]) -> dict[SessionKey, Lease]:
        found = {key: await self.holder(key) for key in keys}
        return {key: lease for key, lease in found.items() if lease is not None}

    async def forget(self, lease: Lease) -> bool:
        if self._leases.get(lease.key) != _Held(lease.epoch, lease.incarnation):
            return False
        del self._leases[lease.key]
        self._epoch_floor = max(self._epoch_floor, lease.epoch)
        return True

    async def clear_dead(self) -> int:
        dead = [held for held in self._leases.values() if held.incarnation and not self._alive(held.incarnation)]
        for held in dead:
            held.incarnation = None
        self._places = {
            cap: living
            for cap, taken in self._places.items()
            if (living := {place: whose for place, whose in taken.items() if self._alive(whose)})
        }
        return len(dead)

    # Events

    async def publish(self, event: ClusterEvent) -> None:
        asyncio.get_running_loop().call_soon(self._listeners.tell, event)

    def listen(self, callback: Callable[[ClusterEvent], None]) -> Callable[[], None]:
        return self._listeners.add(callback)

    # Limits

    async def admit(
        self, place: str, incarnation: str, *, rates: Sequence[Rate] = (), caps: Sequence[Cap] = ()
    ) -> Admission:
        now = self._clock.monotonic()
        for rate in rates:
            wait = self._arrivals.get(rate.name, now) - now - rate.period * (rate.limit - 1) / rate.limit
            if wait > 1e-9:
                return Admission(exceeded=rate, retry_after=wait)
        for rate in rates:
            self._arrivals[rate.name] = max(self._arrivals.get(rate.name, now), now) + rate.period / rate.limit
        if len(self._arrivals) > 10_000:
            # An arrival in the past says as much as none.
            self._arrivals = {name: arrival for name, arrival in self._arrivals.items() if arrival > now}
        for cap in caps:
            taken = self._places.setdefault(cap.name, {})
            for dead in [name for name, whose in taken.items() if not self._alive(whose)]:
                del taken[dead]
            if place not in taken and len(taken) >= cap.limit:
                return Admission(full=cap)
        for cap in caps:
            self._places[cap.name][place] = incarnation
        return Admission()

    async def vacate(self, place: str, incarnation: str) -> None:
        for name, taken in list(self._places.items()):
            if taken.get(place) == incarnation:
                del taken[place]
            if not taken:
                del self._places[name]
