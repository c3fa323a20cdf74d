"""Cluster events over Redis: publish and subscribe. What is published while the connection is away is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable
from typing import Any

import structlog
from redis.exceptions import RedisError

from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.backends.listeners import Listeners
from aerodrome.coordination.backends.redis_client import RedisClient, is_closed_connection, trouble_of
from aerodrome.coordination.ports import ClusterEvent

log = structlog.get_logger(__name__)


class RedisEvents:
    """Implements `coordination.ports.ClusterEvents`.

    Args:
        idle: Seconds of silence after which the connection is tried, and as many more after which it is given up.
    """

    def __init__(self, client: RedisClient, channel: str, *, idle: float = 5.0) -> None:
        self._client = client
        self._channel = channel
        self._idle = idle
        self._listeners = Listeners(self._start, self._stop)
        self._tasks = TaskOwner("redis-events")
        self._listening: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()

    async def aclose(self) -> None:
        await self._tasks.aclose()

    async def publish(self, event: ClusterEvent) -> None:
        if self._listening is not None and not self._subscribed.is_set():
            # Whoever listens hears what is published from then on; so first let the listening begin.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._subscribed.wait(), 1.0)
        await self._client.publish(self._channel, json.dumps([event.kind, event.subject, event.node]))

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
            except (RedisError, OSError) as error:
                log.warning("coordination.events_interrupted", trouble=trouble_of(error).what)
            except Exception as error:
                # Whatever it was: a node that listens no more would be late for ever.
                if is_closed_connection(error):
                    log.warning("coordination.events_interrupted", trouble=trouble_of(error).what)
                else:
                    log.exception("coordination.events_crashed")
            if self._subscribed.is_set():
                pause = 0.05
            self._subscribed.clear()
            # Not all nodes at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            pause = min(2.0, pause * 2)

    async def _listen(self) -> None:
        """Until the connection ends, which is an error."""
        async with await self._client.listener() as client, client.pubsub() as subscription:
            await subscription.subscribe(self._channel)
            asked = False
            while True:
                message = await subscription.get_message(timeout=self._idle)
                if message is None and asked:
                    raise TimeoutError("no answer on the connection that listens")
                if message is None:
                    # A connection whose other end is gone is silent, too.
                    await subscription.ping()
                asked = message is None
                if message is not None:
                    self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self._subscribed.set()
        elif message["type"] == "message":
            try:
                kind, subject, node = json.loads(message["data"])
            except ValueError:
                log.warning("coordination.event_not_understood")  # of another release, or not of ours
                return
            self._listeners.tell(ClusterEvent(kind, subject, node))
