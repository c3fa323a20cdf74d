"""Cluster events over PostgreSQL: LISTEN and NOTIFY. What is published while the connection is away is lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
from collections.abc import Callable

import psycopg
import structlog

from aerodrome._util.postgres import Postgres
from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.backends.listeners import Listeners
from aerodrome.coordination.ports import ClusterEvent

log = structlog.get_logger(__name__)


class PostgresEvents:
    """Implements `coordination.ports.ClusterEvents` with a connection of its own while somebody listens.

    Args:
        publish: The query that notifies, from `%(channel)s` and `%(payload)s`.
        idle: Seconds of silence after which the connection is tried.
    """

    def __init__(self, database: Postgres, publish: str, *, idle: float = 10.0) -> None:
        self._database = database
        self._publish = publish
        self._idle = idle
        # One for each schema, whatever its name is made of and however long it is.
        self._channel = f"aerodrome_{hashlib.sha256(database.schema.encode()).hexdigest()[:16]}"
        self._listeners = Listeners(self._start, self._stop)
        self._tasks = TaskOwner("postgresql-events")
        self._listening: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()

    async def aclose(self) -> None:
        await self._tasks.aclose()

    async def publish(self, event: ClusterEvent) -> None:
        if self._listening is not None and not self._subscribed.is_set():
            # Whoever listens hears what is published from then on; so first let the listening begin.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._subscribed.wait(), 1.0)
        payload = json.dumps([event.kind, event.subject, event.node])
        await self._database.execute(self._publish, {"channel": self._channel, "payload": payload})

    def listen(self, callback: Callable[[ClusterEvent], None]) -> Callable[[], None]:
        return self._listeners.add(callback)

    def _start(self) -> None:
        self._subscribed.clear()
        self._listening = self._tasks.start(self._run(), "listen")

    def _stop(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None

    async def _run(self) -> None:
        pause = 0.05
        while True:
            try:
                await self._listen()
            except (psycopg.Error, OSError) as error:
                log.warning("coordination.events_interrupted", error=type(error).__name__)
            if self._subscribed.is_set():
                pause = 0.05
            self._subscribed.clear()
            # Not all nodes at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            pause = min(2.0, pause * 2)

    async def _listen(self) -> None:
        """Until the connection ends, which is an error."""
        connection = await self._database.connect()
        try:
            await connection.execute(f'LISTEN "{self._channel}"'.encode())
            self._subscribed.set()
            while True:
                async for notify in connection.notifies(timeout=self._idle):
                    self._take(notify.payload)
                # A connection whose other end is gone is silent, too.
                with self._database.watched(connection):
                    await connection.execute("SELECT 1")
        finally:
            await connection.close()

    def _take(self, payload: str) -> None:
        try:
            kind, subject, node = json.loads(payload)
        except ValueError:
            log.warning("coordination.event_not_understood")  # of another release, or not of ours
            return
        self._listeners.tell(ClusterEvent(kind, subject, node))
