"""Coordination of several processes on one machine, through one SQLite file.

Lives are measured on the machine's monotonic clock, which all its processes share: a step of the wall clock
neither ends a node nor prolongs one. That clock starts anew with the machine, so each heartbeat also names the
boot it was made in, and a node of another boot is dead.

Everything that decides a race is one write transaction and reads the clock inside it, after the lock is held.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aerodrome._util.clock import Clock, SystemClock
from aerodrome._util.schema import Schema
from aerodrome._util.sqlite import Database, from_blob, to_blob
from aerodrome.coordination.backends import cursor as cursors
from aerodrome.coordination.ports import Lease, Node, Page
from aerodrome.model import Isolation, LastTurn, SessionKey, SessionKind, SessionRow, SessionState, TurnStatus

#: Whether node `n` lives, from the parameters `:now` and `:boot_id`. A heartbeat from the future is one of
#: another boot on a machine that does not tell its boots apart.
_ALIVE = "n.boot_id = :boot_id AND :now - n.beat_at < n.ttl AND n.beat_at - :now < n.ttl"

_COLUMNS = (
    "tenant, id, owner, kind, isolation, state, model, title, options, created_at, last_used_at,"
    " last_turn_id, last_turn_status"
)


class SqliteCoordination:
    """Implements `coordination.ports.Coordination` on a `Database` that its maker opens and closes.

    Args:
        boot_id: What tells one boot of this machine from the next; by default the kernel's own.
    """

    def __init__(self, database: Database, *, clock: Clock | None = None, boot_id: str | None = None) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        self._boot_id = boot_id if boot_id is not None else read_boot_id()

    async def open(self) -> None:
        """Bring the tables up to date. The database must be open."""
        await self._database.write(Schema.load("coordination", __package__).migrate)

    async def aclose(self) -> None:
        """Nothing to do: the database belongs to whoever opened it."""

    # Membership

    async def join(self, node: Node, ttl: float) -> None:
        def join(connection: sqlite3.Connection) -> None:
            now = self._now()
            # The dead of the past go, or a crash loop would leave a row for each of its lives.
            connection.execute(f"DELETE FROM node AS n WHERE NOT ({_ALIVE})", now)
            connection.execute(
                "INSERT OR REPLACE INTO node (incarnation, name, address, load, ttl, boot_id, beat_at)"
                " VALUES (:incarnation, :name, :address, :load, :ttl, :boot_id, :now)",
                now
                | {
                    "incarnation": node.incarnation,
                    "name": node.name,
                    "address": node.address,
                    "load": json.dumps(node.load),
                    "ttl": ttl,
                },
            )

        await self._database.write(join)

    async def heartbeat(self, incarnation: str, load: dict[str, Any] | None = None) -> bool:
        text = None if load is None else json.dumps(load)

        def beat(connection: sqlite3.Connection) -> bool:
            # The dead stay dead: a beat that comes too late must not bring back leases others may count on.
            changed = connection.execute(
                "UPDATE node AS n SET beat_at = :now, load = coalesce(:load, load)"
                f" WHERE incarnation = :incarnation AND {_ALIVE}",
                self._now() | {"incarnation": incarnation, "load": text},
            )
            return changed.rowcount == 1

        return await self._database.write(beat)

    async def leave(self, incarnation: str) -> None:
        def leave(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM node WHERE incarnation = ?", (incarnation,))

        await self._database.write(leave)

    async def nodes(self) -> list[Node]:
        def living(connection: sqlite3.Connection) -> Sequence[tuple[str, str, str, str]]:
            return connection.execute(
                f"SELECT name, incarnation, address, load FROM node AS n WHERE {_ALIVE} ORDER BY 1, 2", self._now()
            ).fetchall()

        rows = await self._database.read(living)
        return [Node(name, incarnation, address, json.loads(load)) for name, incarnation, address, load in rows]

    def _now(self) -> dict[str, Any]:
        return {"now": self._clock.monotonic(), "boot_id": self._boot_id}

    # Leases

    async def acquire(self, key: SessionKey, incarnation: str, *, floor: int = 0) -> Lease | None:
        def acquire(connection: sqlite3.Connection) -> int | None:
            parameters = self._now() | {"tenant": key.tenant, "session": key.id, "incarnation": incarnation}
            lives = f"SELECT 1 FROM node AS n WHERE n.incarnation = :incarnation AND {_ALIVE}"
            if connection.execute(lives, parameters).fetchone() is None:
                return None
            held = connection.execute(
                "SELECT l.epoch, l.incarnation != :incarnation AND n.incarnation IS NOT NULL FROM lease AS l"
                f" LEFT JOIN node AS n ON n.incarnation = l.incarnation AND {_ALIVE}"
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
                f" WHERE l.tenant = :tenant AND l.session = :session AND {_ALIVE}",
                self._now() | {"tenant": key.tenant, "session": key.id},
            ).fetchone()
            return row

        row = await self._database.read(holder)
        return None if row is None else Lease(key, *row)

    async def forget(self, key: SessionKey) -> None:
        def forget(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE epoch_floor SET epoch = max(epoch, coalesce("
                "(SELECT epoch FROM lease WHERE tenant = ? AND session = ?), 0))",
                key,
            )
            connection.execute("DELETE FROM lease WHERE tenant = ? AND session = ?", key)

        await self._database.write(forget)

    # Directory

    async def insert(self, row: SessionRow) -> SessionRow | None:
        values = _values(row)

        def insert(connection: sqlite3.Connection) -> Sequence[Any] | None:
            marks = ", ".join("?" * len(values))
            added = connection.execute(
                f"INSERT INTO session ({_COLUMNS}) VALUES ({marks}) ON CONFLICT (tenant, id) DO NOTHING", values
            )
            return None if added.rowcount == 1 else _select(connection, row.key)

        present = await self._database.write(insert)
        return None if present is None else _row(present)

    async def get(self, key: SessionKey) -> SessionRow | None:
        found = await self._database.read(lambda connection: _select(connection, key))
        return None if found is None else _row(found)

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
        changes: dict[str, Any] = {
            "state = ?": state,
            "title = ?": None if title is None else to_blob(title),
            "model = ?": model,
            "options = ?": None if options is None else json.dumps(options),
            "last_used_at = max(last_used_at, ?)": last_used_at,
            "last_turn_id = ?": None if last_turn is None else last_turn.id,
            "last_turn_status = ?": None if last_turn is None else last_turn.status,
        }
        changes = {column: value for column, value in changes.items() if value is not None}
        if not changes:
            return await self.get(key) is not None

        def update(connection: sqlite3.Connection) -> bool:
            changed = connection.execute(
                f"UPDATE session SET {', '.join(changes)} WHERE tenant = ? AND id = ?", (*changes.values(), *key)
            )
            return changed.rowcount == 1

        return await self._database.write(update)

    async def remove(self, key: SessionKey) -> bool:
        def remove(connection: sqlite3.Connection) -> bool:
            return connection.execute("DELETE FROM session WHERE tenant = ? AND id = ?", key).rowcount == 1

        return await self._database.write(remove)

    async def list(
        self, tenant: str | None, *, owner: str | None = None, cursor: str | None = None, limit: int = 50
    ) -> Page:
        cursors.check_limit(limit)
        conditions: dict[str, Sequence[Any]] = {}
        if tenant is not None:
            conditions["tenant = ?"] = (tenant,)
        if owner is not None:
            conditions["owner = ?"] = (owner,)
        if cursor is not None:
            place = cursors.decode(cursor)
            # The first term is implied by the second, and is the one SQLite can start the index at.
            after = "last_used_at <= ? AND (last_used_at < ? OR (id, tenant) > (?, ?))"
            conditions[after] = (place.last_used_at, *place)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        order = "ORDER BY last_used_at DESC, id, tenant LIMIT ?"
        parameters = [value for values in conditions.values() for value in values]

        def page(connection: sqlite3.Connection) -> Sequence[Sequence[Any]]:
            return connection.execute(
                f"SELECT {_COLUMNS} FROM session{where} {order}", (*parameters, limit + 1)
            ).fetchall()

        rows = [_row(found) for found in await self._database.read(page)]
        more = cursors.encode(cursors.place_of(rows[limit - 1])) if len(rows) > limit else None
        return Page(rows[:limit], more)

    async def unused_since(self, before: float, limit: int = 100) -> Sequence[SessionRow]:
        cursors.check_limit(limit)

        def unused(connection: sqlite3.Connection) -> Sequence[Sequence[Any]]:
            # What a crashed node has left behind as `running` is in no turn: no living node holds its lease.
            held = (
                "SELECT 1 FROM lease AS l JOIN node AS n ON n.incarnation = l.incarnation"
                f" WHERE l.tenant = s.tenant AND l.session = s.id AND {_ALIVE}"
            )
            return connection.execute(
                f"SELECT {_COLUMNS} FROM session AS s"
                f" WHERE last_used_at < :before AND (state != :running OR NOT EXISTS ({held}))"
                " ORDER BY last_used_at, id DESC, tenant DESC LIMIT :limit",
                self._now() | {"before": before, "running": SessionState.RUNNING, "limit": limit},
            ).fetchall()

        return [_row(found) for found in await self._database.read(unused)]

    async def count(self, tenant: str | None = None) -> int:
        def count(connection: sqlite3.Connection) -> int:
            where, parameters = ("", ()) if tenant is None else (" WHERE tenant = ?", (tenant,))
            number: int = connection.execute(f"SELECT count(*) FROM session{where}", parameters).fetchone()[0]
            return number

        return await self._database.read(count)


def read_boot_id(path: str = "/proc/sys/kernel/random/boot_id") -> str:
    """The kernel's id of this boot; "" where there is none, which leaves the test for beats from the future."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _select(connection: sqlite3.Connection, key: SessionKey) -> Sequence[Any] | None:
    row: Sequence[Any] | None = connection.execute(
        f"SELECT {_COLUMNS} FROM session WHERE tenant = ? AND id = ?", key
    ).fetchone()
    return row


def _values(row: SessionRow) -> Sequence[Any]:
    return (
        *row.key,
        row.owner,
        row.kind,
        row.isolation,
        row.state,
        row.model,
        None if row.title is None else to_blob(row.title),
        json.dumps(row.options),
        row.created_at,
        row.last_used_at,
        row.last_turn.id if row.last_turn else None,
        row.last_turn.status if row.last_turn else None,
    )


def _row(values: Sequence[Any]) -> SessionRow:
    tenant, id_, owner, kind, isolation, state, model, title, options, created, used, turn_id, turn_status = values
    return SessionRow(
        key=SessionKey(tenant, id_),
        owner=owner,
        kind=SessionKind(kind),
        isolation=Isolation(isolation),
        state=SessionState(state),
        model=model,
        title=None if title is None else from_blob(title),
        options=json.loads(options),
        created_at=created,
        last_used_at=used,
        last_turn=None if turn_id is None else LastTurn(turn_id, TurnStatus(turn_status)),
    )
