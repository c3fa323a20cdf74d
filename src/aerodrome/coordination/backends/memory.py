"""Coordination inside one process: for tests, and for an embedded fleet that keeps nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aerodrome._util.clock import Clock, SystemClock
from aerodrome.coordination.backends import cursor as cursors
from aerodrome.coordination.ports import Lease, Node, Page
from aerodrome.model import LastTurn, SessionKey, SessionRow, SessionState


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
        self._rows: dict[SessionKey, SessionRow] = {}

    async def open(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    # Membership

    async def join(self, node: Node, ttl: float) -> None:
        self._lives = {key: life for key, life in self._lives.items() if self._alive(key)}
        self._lives[node.incarnation] = _Life(copy.deepcopy(node), ttl, self._clock.monotonic())

    async def heartbeat(self, incarnation: str, load: dict[str, Any] | None = None) -> bool:
        if not self._alive(incarnation):
            return False
        life = self._lives[incarnation]
        life.beat_at = self._clock.monotonic()
        if load is not None:
            life.node = replace(life.node, load=copy.deepcopy(load))
        return True

    async def leave(self, incarnation: str) -> None:
        self._lives.pop(incarnation, None)

    async def nodes(self) -> list[Node]:
        living = (life.node for key, life in self._lives.items() if self._alive(key))
        return copy.deepcopy(sorted(living, key=lambda node: (node.name, node.incarnation)))

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

    async def forget(self, key: SessionKey) -> None:
        if (held := self._leases.pop(key, None)) is not None:
            self._epoch_floor = max(self._epoch_floor, held.epoch)

    # Directory

    async def insert(self, row: SessionRow) -> SessionRow | None:
        if (present := self._rows.get(row.key)) is not None:
            return copy.deepcopy(present)
        self._rows[row.key] = copy.deepcopy(row)
        return None

    async def get(self, key: SessionKey) -> SessionRow | None:
        return copy.deepcopy(self._rows.get(key))

    async def update(
        self,
        key: SessionKey,
        *,
        state: SessionState | None = None,
        title: str | None = None,
        model: str | None = None,
        options: dict[str, Any] | None = None,
        last_used_at: float | None = None,
        last_turn: LastTurn | None = None,
    ) -> bool:
        if (row := self._rows.get(key)) is None:
            return False
        changes: dict[str, Any] = {
            "state": state,
            "title": title,
            "model": model,
            "options": copy.deepcopy(options),
            "last_used_at": None if last_used_at is None else max(last_used_at, row.last_used_at),
            "last_turn": last_turn,
        }
        self._rows[key] = replace(row, **{name: value for name, value in changes.items() if value is not None})
        return True

    async def remove(self, key: SessionKey) -> bool:
        return self._rows.pop(key, None) is not None

    async def list(
        self, tenant: str | None, *, owner: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page:
        cursors.check_limit(limit)
        rows = self._of(tenant)
        if owner is not None:
            rows = (row for row in rows if row.owner == owner)
        if cursor is not None:
            start = _rank(cursors.decode(cursor))
            rows = (row for row in rows if _rank(cursors.place_of(row)) > start)
        found = sorted(rows, key=lambda row: _rank(cursors.place_of(row)))
        page = found[:limit]
        more = cursors.encode(cursors.place_of(page[-1])) if len(found) > limit else None
        return Page(copy.deepcopy(page), more)

    async def unused_since(self, before: float, limit: int = 100) -> Sequence[SessionRow]:
        cursors.check_limit(limit)
        rows = (row for row in self._rows.values() if row.last_used_at < before and not self._in_turn(row))
        return copy.deepcopy(sorted(rows, key=lambda row: _rank(cursors.place_of(row)), reverse=True)[:limit])

    def _in_turn(self, row: SessionRow) -> bool:
        # What a crashed node has left behind as `running` is in no turn: no living node holds its lease.
        held = self._leases.get(row.key)
        return row.state is SessionState.RUNNING and held is not None and self._alive(held.incarnation)

    async def count(self, tenant: str | None = None) -> int:
        return sum(1 for _ in self._of(tenant))

    def _of(self, tenant: str | None) -> Iterable[SessionRow]:
        return (row for row in self._rows.values() if tenant is None or row.key.tenant == tenant)


def _rank(place: cursors.Place) -> tuple[float, str, str]:
    return -place.last_used_at, place.id, place.tenant
