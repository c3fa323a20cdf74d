"""Cluster events over PostgreSQL: LISTEN and NOTIFY."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import psycopg

from aerodrome._util.postgres import Postgres
from aerodrome.coordination.backends.subscription import Subscription, text_of
from aerodrome.coordination.ports import ClusterEvent


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
        self._subscription = Subscription("postgresql-events", self._listen, _interrupted)

    async def aclose(self) -> None:
        await self._subscription.aclose()

    async def publish(self, event: ClusterEvent) -> None:
        await self._subscription.ready()
        await self._database.execute(self._publish, {"channel": self._channel, "payload": text_of(event)})

    def listen(self, callback: Callable[[ClusterEvent], None]) -> Callable[[], None]:
        return self._subscription.add(callback)

    async def _listen(self) -> None:
        connection = await self._database.connect()
        try:
            await connection.execute(f'LISTEN "{self._channel}"'.encode())
            self._subscription.began()
            while True:
                async for notify in connection.notifies(timeout=self._idle):
                    self._subscription.heard(notify.payload)
                # A connection whose other end is gone is silent, too.
                with self._database.watched(connection):
                    await connection.execute("SELECT 1")
        finally:
            await connection.close()


def _interrupted(error: Exception) -> str | None:
    return type(error).__name__ if isinstance(error, (psycopg.Error, OSError)) else None
