"""Cluster events through a SQLite file: a small table that a node looks into a few times a second while somebody
listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence

import structlog

from aerodrome._util.sqlite import Database
from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.backends.listeners import Listeners
from aerodrome.coordination.ports import ClusterEvent
from aerodrome.errors import StoreUnavailable

log = structlog.get_logger(__name__)

#: Events kept. Who falls behind by more has missed some, which costs latency.
KEPT = 1000
_READ = "SELECT id, kind, subject, node FROM event WHERE id > ? ORDER BY id"


class SqliteEvents:
    """Implements `coordination.ports.ClusterEvents`.

    Args:
        poll: Seconds between two looks into the table.
    """

    def __init__(self, database: Database, *, poll: float = 0.2) -> None:
        self._database = database
        self._poll = poll
        self._listeners = Listeners(self._start, self._stop)
        self._tasks = TaskOwner("sqlite-events")
        self._polling: asyncio.Task[None] | None = None
        self._looked = asyncio.Event()
        #: Something of our own is there: no need to wait for the next look.
        self._published = asyncio.Event()

    async def aclose(self) -> None:
        await self._tasks.aclose()

    async def publish(self, event: ClusterEvent) -> None:
        if self._polling is not None and not self._looked.is_set():
            # Whoever listens hears what is published from then on; so first let the listening begin.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._looked.wait()

        def publish(connection: sqlite3.Connection) -> None:
            added = connection.execute(
                "INSERT INTO event (kind, subject, node) VALUES (?, ?, ?)", (event.kind, event.subject, event.node)
            )
            connection.execute("DELETE FROM event WHERE id <= ?", ((added.lastrowid or 0) - KEPT,))

        await self._database.write(publish)
        self._published.set()

    def listen(self, callback: Callable[[ClusterEvent], None]) -> Callable[[], None]:
        return self._listeners.add(callback)

    def _start(self) -> None:
        self._looked = asyncio.Event()
        self._polling = self._tasks.start(self._run(self._looked), "poll")

    def _stop(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None

    async def _run(self, looked: asyncio.Event) -> None:
        last: int | None = None
        well = True
        while True:
            try:
                if last is None:
                    last = await self._database.read(_last)
                    looked.set()
                for number, *event in await self._database.read(_after(last)):
                    last = number
                    self._listeners.tell(ClusterEvent(*event))
                well = True
            except StoreUnavailable as error:
                if well:
                    log.warning("coordination.events_not_read", reason=error.detail)
                well = False
            except Exception:
                # Whatever it was: a node that listens no more would be late for ever.
                log.exception("coordination.events_crashed")
            self._published.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll):
                    await self._published.wait()


def _last(connection: sqlite3.Connection) -> int:
    (last,) = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'event'").fetchone()
    return int(last)


def _after(last: int) -> Callable[[sqlite3.Connection], Sequence[tuple[int, str, str, str]]]:
    return lambda connection: connection.execute(_READ, (last,)).fetchall()
