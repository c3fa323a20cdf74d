"""Coordination of several processes on one machine, through one SQLite file.

Lives are measured on the machine's monotonic clock, which all its processes share: a step of the wall clock
neither ends a node nor prolongs one. That clock starts anew with the machine, so each heartbeat also names the
boot it was made in, and a node of another boot is dead.

Everything that decides a race is one write transaction and reads the clock inside it, after the lock is held.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aerodrome._util.clock import Clock, SystemClock
from aerodrome._util.schema import Schema
from aerodrome._util.sqlite import Database
from aerodrome.coordination.backends import sqlite_limits
from aerodrome.coordination.backends.names import ascii_name
from aerodrome.coordination.backends.sqlite_events import SqliteEvents
from aerodrome.coordination.backends.sqlite_lives import ALIVE
from aerodrome.coordination.ports import Admission, Beat, Cap, ClusterEvent, Lease, Node, Rate
from aerodrome.model import SessionKey


class SqliteCoordination:
    """Implements `coordination.ports.Coordination` on a `Database` that its maker opens and closes.

    Args:
        boot_id: What tells one boot of this machine from the next; by default the kernel's own.
    """

    def __init__(self, database: Database, *, clock: Clock | None = None, boot_id: str | None = None) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._boot_id = boot_id if boot_id is not None else read_boot_id()
        self._events = SqliteEvents(database)

    async def open(self) -> None:
        """Bring the tables up to date. The database must be open."""
        await self._database.write(Schema.load("coordination", __package__).migrate)

    async def aclose(self) -> None:
        """Listen no more. The database belongs to whoever opened it."""
        await self._events.aclose()

    # Membership

    async def join(self, node: Node, ttl: float) -> None:
        def join(connection: sqlite3.Connection) -> None:
            now = self._now()
            # The dead of the past go, or a crash loop would leave a row for each of its lives.
            connection.execute(f"DELETE FROM node AS n WHERE NOT ({ALIVE})", now)
            connection.execute(
                "INSERT OR REPLACE INTO node (incarnation, name, address, load, ttl, boot_id, beat_at, peer_token)"
                " VALUES (:incarnation, :name, :address, :load, :ttl, :boot_id, :now, :peer_token)",
                now
                | {
                    "incarnation": node.incarnation,
                    "name": node.name,
                    "address": node.address,
                    "load": json.dumps(node.load),
                    "ttl": ttl,
                    "peer_token": node.peer_token,
                },
            )

        await self._database.write(join)

    async def heartbeat(self, incarnation: str, load: dict[str, Any] | None = None) -> Beat:
        text = None if load is None else json.dumps(load)

        def beat(connection: sqlite3.Connection) -> Beat:
            # The dead stay dead: a beat that comes too late must not bring back leases others may count on.
            drains = connection.execute(
                "UPDATE node AS n SET beat_at = :now, load = coalesce(:load, load)"
                f" WHERE incarnation = :incarnation AND {ALIVE} RETURNING drain",
                self._now() | {"incarnation": incarnation, "load": text},
            ).fetchone()
            if drains is None:
                return Beat.DEAD
            return Beat.DRAIN if drains[0] else Beat.ALIVE

        return await self._database.write(beat)

    async def leave(self, incarnation: str) -> None:
        def leave(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM node WHERE incarnation = ?", (incarnation,))

        await self._database.write(leave)

    async def nodes(self) -> list[Node]:
        def living(connection: sqlite3.Connection) -> Sequence[tuple[str, str, str, str, str]]:
            columns = "name, incarnation, address, load, peer_token"
            return connection.execute(
                f"SELECT {columns} FROM node AS n WHERE {ALIVE} ORDER BY 1, 2", self._now()
            ).fetchall()

        rows = await self._database.read(living)
        return [
            Node(name, incarnation, address, json.loads(load), peer_token)
            for name, incarnation, address, load, peer_token in rows
        ]

    async def ask_to_drain(self, incarnation: str) -> bool:
        def ask(connection: sqlite3.Connection) -> bool:
            asked = connection.execute(
                f"UPDATE node AS n SET drain = 1 WHERE incarnation = :incarnation AND {ALIVE}",
                self._now() | {"incarnation": incarnation},
            )
            return asked.rowcount == 1

        return await self._database.write(ask)

    def _now(self) -> dict[str, Any]:
        return {"now": self._clock.monotonic(), "boot_id": self._boot_id}

    # Leases

    async def acquire(self, key: SessionKey, incarnation: str, *, floor: int = 0) -> Lease | None:
        def acquire(connection: sqlite3.Connection) -> int | None:
            parameters = self._now() | {"tenant": key.tenant, "session": key.id, "incarnation": incarnation}
            lives = f"SELECT 1 FROM node AS n WHERE n.incarnation = :incarnation AND {ALIVE}"
            if connection.execute(lives, parameters).fetchone() is None:
                return None
            held = connection.execute(
                "SELECT l.epoch, l.incarnation != :incarnation AND n.incarnation IS NOT NULL FROM lease AS l"
                f" LEFT JOIN node AS n ON n.incarnation = l.incarnation AND {ALIVE}"
                " WHERE l.tenant = :tenant AND l.session = :session",
                parameters,
            ).fetchone()
            if held is None:
                held = connection.execute("SELECT epoch, 0 FROM epoch_floor").fetchone()
            elif held[1]:
                return None
            epoch: int = max(held[0], floor) + 1
            connection.execute(
                "INSERT OR REPLACE INTO lease (tenant, session, epoch, incarnation)"
                " VALUES (:tenant, :session, :epoch, :incarnation)",
                parameters | {"epoch": epoch},
            )
            return epoch

        epoch = await self._database.write(acquire)
        return None if epoch is None else Lease(key, incarnation, epoch)

    async def release(self, lease: Lease) -> bool:
        def release(connection: sqlite3.Connection) -> bool:
            # One statement compares and releases: between a read and a write the lease could change hands.
            changed = connection.execute(
                "UPDATE lease SET incarnation = NULL"
                " WHERE tenant = ? AND session = ? AND incarnation = ? AND epoch = ?",
                (*lease.key, lease.incarnation, lease.epoch),
            )
            return changed.rowcount == 1

        return await self._database.write(release)

    async def holder(self, key: SessionKey) -> Lease | None:
        def holder(connection: sqlite3.Connection) -> tuple[str, int] | None:
            row: tuple[str, int] | None = connection.execute(
                "SELECT l.incarnation, l.epoch FROM lease AS l JOIN node AS n ON n.incarnation = l.incarnation"
                f" WHERE l.tenant = :tenant AND l.session = :session AND {ALIVE}",
                self._now() | {"tenant": key.tenant, "session": key.id},
            ).fetchone()
            return row

        row = await self._database.read(holder)
        return None if row is None else Lease(key, *row)

    async def holders(self, keys: Sequence[SessionKey]) -> dict[SessionKey, Lease]:
        def holders(connection: sqlite3.Connection) -> Sequence[tuple[str, str, str, int]]:
            return connection.execute(
                "SELECT l.tenant, l.session, l.incarnation, l.epoch FROM json_each(:keys) AS k"
                " JOIN lease AS l ON l.tenant = k.value ->> 0 AND l.session = k.value ->> 1"
                f" JOIN node AS n ON n.incarnation = l.incarnation WHERE {ALIVE}",
                self._now() | {"keys": json.dumps(keys)},
            ).fetchall()

        found = await self._database.read(holders)
        leases = [Lease(SessionKey(tenant, id_), incarnation, epoch) for tenant, id_, incarnation, epoch in found]
        return {lease.key: lease for lease in leases}

    async def forget(self, lease: Lease) -> bool:
        def forget(connection: sqlite3.Connection) -> bool:
            gone = connection.execute(
                "DELETE FROM lease WHERE tenant = ? AND session = ? AND incarnation = ? AND epoch = ?",
                (*lease.key, lease.incarnation, lease.epoch),
            )
            if gone.rowcount == 0:
                return False
            connection.execute("UPDATE epoch_floor SET epoch = max(epoch, ?)", (lease.epoch,))
            return True

        return await self._database.write(forget)

    async def clear_dead(self) -> int:
        def clear(connection: sqlite3.Connection) -> int:
            sqlite_limits.clear_dead(connection, self._now())
            return connection.execute(
                "UPDATE lease SET incarnation = NULL WHERE incarnation IS NOT NULL AND NOT EXISTS ("
                f"SELECT 1 FROM node AS n WHERE n.incarnation = lease.incarnation AND {ALIVE})",
                self._now(),
            ).rowcount

        return await self._database.write(clear)

    # Events

    async def publish(self, event: ClusterEvent) -> None:
        await self._events.publish(event)

    def listen(self, callback: Callable[[ClusterEvent], None]) -> Callable[[], None]:
        return self._events.listen(callback)

    # Limits

    async def admit(
        self, place: str, incarnation: str, *, rates: Sequence[Rate] = (), caps: Sequence[Cap] = ()
    ) -> Admission:
        return await self._database.write(
            lambda connection: sqlite_limits.admit(connection, self._now(), ascii_name(place), incarnation, rates, caps)
        )

    async def vacate(self, place: str, incarnation: str) -> None:
        await self._database.write(lambda connection: sqlite_limits.vacate(connection, ascii_name(place), incarnation))


def read_boot_id(path: str = "/proc/sys/kernel/random/boot_id") -> str:
    """The kernel's id of this boot; "" where there is none, which leaves the test for beats from the future."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
