"""Coordination of a fleet through PostgreSQL.

Each operation is one statement, and asks the server's own clock: nodes need not agree on the time. Whoever takes a
lease from a dead node buries that node in the same transaction, so that no heartbeat on its way can bring it back.
What the server forgets in a crash is filled again by those who are there (ADR 0018).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from aerodrome._util.migrations import PostgresSchema
from aerodrome._util.postgres import Postgres, Result
from aerodrome._util.queries import load_queries
from aerodrome.coordination.backends.names import ascii_name
from aerodrome.coordination.backends.postgresql_events import PostgresEvents
from aerodrome.coordination.ports import Admission, Beat, Cap, ClusterEvent, Lease, Node, Rate
from aerodrome.model import SessionKey


class PostgresCoordination:
    """Implements `coordination.ports.Coordination` on a `Postgres` that its maker opens and closes.

    Args:
        beats: The same tables through connections of its own, for what must wait for no other call: heartbeats.
        beat_deadline: Seconds a heartbeat goes on trying: well below the nodes' time to live.
        offset: Seconds by which the server's clock is taken to be ahead, for tests.
    """

    def __init__(
        self,
        database: Postgres,
        *,
        beats: Postgres | None = None,
        beat_deadline: float = 2.5,
        offset: Callable[[], float] | None = None,
    ) -> None:
        self._database = database
        self._beats = beats or database
        self._beat_deadline = beat_deadline
        self._offset = offset or (lambda: 0.0)
        self._queries = load_queries(__package__, "postgresql_coordination.sql")
        self._events = PostgresEvents(database, self._queries["publish"])

    @staticmethod
    def schema() -> PostgresSchema:
        return PostgresSchema.load("coordination", __package__)

    async def open(self) -> None:
        """See that the tables are there and suit. The database must be open. Raises `ConfigError`."""
        await self.schema().ensure(self._database)

    async def aclose(self) -> None:
        """Listen no more. The database belongs to whoever opened it."""
        await self._events.aclose()

    # Membership

    async def join(self, node: Node, ttl: float) -> None:
        await self._run(
            "join",
            {
                "incarnation": node.incarnation,
                "name": node.name,
                "address": node.address,
                "peer_token": node.peer_token,
                "load": json.dumps(node.load),
                "ttl": ttl,
            },
            urgent=True,
        )

    async def heartbeat(self, incarnation: str, load: dict[str, Any] | None = None) -> Beat:
        text = None if load is None else json.dumps(load)
        beat = await self._run("heartbeat", {"incarnation": incarnation, "load": text}, urgent=True)
        if beat.row is None:
            return Beat.DEAD
        return Beat.DRAIN if beat.row[0] else Beat.ALIVE

    async def leave(self, incarnation: str) -> None:
        await self._run("leave", {"incarnation": incarnation})

    async def nodes(self) -> list[Node]:
        return [
            Node(name, incarnation, address, json.loads(load), peer_token)
            for name, incarnation, address, load, peer_token in (await self._run("nodes")).rows
        ]

    async def ask_to_drain(self, incarnation: str) -> bool:
        return (await self._run("ask_to_drain", {"incarnation": incarnation})).count == 1

    # Leases

    async def acquire(self, key: SessionKey, incarnation: str, *, floor: int = 0) -> Lease | None:
        result = await self._run("acquire", {**_named(key), "incarnation": incarnation, "floor": floor})
        assert result.row is not None
        (epoch,) = result.row
        return None if epoch is None else Lease(key, incarnation, epoch)

    async def release(self, lease: Lease) -> bool:
        released = await self._run(
            "release", {**_named(lease.key), "incarnation": lease.incarnation, "epoch": lease.epoch}
        )
        # Of an attempt whose answer was lost the second finds nothing left to do.
        return released.count == 1 or released.repeated

    async def holder(self, key: SessionKey) -> Lease | None:
        return (await self.holders([key])).get(key)

    async def holders(self, keys: Sequence[SessionKey]) -> dict[SessionKey, Lease]:
        asked = {(ascii_name(key.tenant), ascii_name(key.id)): key for key in keys}
        tenants, sessions = [tenant for tenant, _ in asked], [session for _, session in asked]
        found = await self._run("holders", {"tenants": tenants, "sessions": sessions})
        leases = [
            Lease(asked[tenant, session], incarnation, epoch) for tenant, session, incarnation, epoch in found.rows
        ]
        return {lease.key: lease for lease in leases}

    async def forget(self, lease: Lease) -> bool:
        forgotten = await self._run(
            "forget", {**_named(lease.key), "incarnation": lease.incarnation, "epoch": lease.epoch}
        )
        return forgotten.count == 1 or forgotten.repeated

    async def clear_dead(self) -> int:
        return (await self._run("clear_dead")).count

    # Events

    async def publish(self, event: ClusterEvent) -> None:
        await self._events.publish(event)

    def listen(self, callback: Callable[[ClusterEvent], None]) -> Callable[[], None]:
        return self._events.listen(callback)

    # Limits

    async def admit(
        self, place: str, incarnation: str, *, rates: Sequence[Rate] = (), caps: Sequence[Cap] = ()
    ) -> Admission:
        result = await self._run(
            "admit",
            {
                "number": secrets.randbits(62),
                "place": ascii_name(place),
                "incarnation": incarnation,
                "rates": [ascii_name(rate.name) for rate in rates],
                "limits": [rate.limit for rate in rates],
                "periods": [rate.period for rate in rates],
                "caps": [ascii_name(cap.name) for cap in caps],
                "sizes": [cap.limit for cap in caps],
            },
        )
        assert result.row is not None
        verdict, which, wait = result.row
        if verdict == 1:
            return Admission(exceeded=rates[which - 1], retry_after=wait)
        if verdict == 2:
            return Admission(full=caps[which - 1])
        return Admission()

    async def vacate(self, place: str, incarnation: str) -> None:
        await self._run("vacate", {"place": ascii_name(place), "incarnation": incarnation})

    async def _run(self, query: str, values: dict[str, Any] | None = None, *, urgent: bool = False) -> Result:
        database, deadline = (self._beats, self._beat_deadline) if urgent else (self._database, None)
        parameters = {**(values or {}), "ahead": self._offset()}
        return await database.execute(self._queries[query], parameters, deadline=deadline)


def _named(key: SessionKey) -> dict[str, str]:
    return {"tenant": ascii_name(key.tenant), "session": ascii_name(key.id)}
