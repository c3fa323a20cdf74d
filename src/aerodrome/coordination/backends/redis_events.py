"""Cluster events over Redis: publish and subscribe."""

from __future__ import annotations

from collections.abc import Callable

from redis.exceptions import RedisError

from aerodrome._util.tasks import heeding
from aerodrome.coordination.backends.redis_client import RedisClient, is_closed_connection, trouble_of
from aerodrome.coordination.backends.subscription import Subscription, text_of
from aerodrome.coordination.ports import ClusterEvent


class RedisEvents:
    """Implements `coordination.ports.ClusterEvents`.

    Args:
        idle: Seconds of silence after which the connection is tried, and as many more after which it is given up.
    """

    def __init__(self, client: RedisClient, channel: str, *, idle: float = 5.0) -> None:
        self._client = client
        self._channel = channel
        self._idle = idle
        self._subscription = Subscription("redis-events", self._listen, _interrupted)

    async def aclose(self) -> None:
        await self._subscription.aclose()

    async def publish(self, event: ClusterEvent) -> None:
        await self._subscription.ready()
        await self._client.publish(self._channel, text_of(event))

    def listen(self, callback: Callable[[ClusterEvent], None]) -> Callable[[], None]:
        return self._subscription.add(callback)

    async def _listen(self) -> None:
        async with await self._client.listener() as client, client.pubsub() as subscription:
            await heeding(subscription.subscribe(self._channel))
            asked = False
            while True:
                message = await subscription.get_message(timeout=self._idle)
                if message is None and asked:
                    raise TimeoutError("no answer on the connection that listens")
                if message is None:
                    # A connection whose other end is gone is silent, too.
                    await heeding(subscription.ping())
                elif message["type"] == "subscribe":
                    self._subscription.began()
                elif message["type"] == "message":
                    self._subscription.heard(message["data"])
                asked = message is None


def _interrupted(error: Exception) -> str | None:
    expected = isinstance(error, (RedisError, OSError)) or is_closed_connection(error)
    return trouble_of(error).what if expected else None
