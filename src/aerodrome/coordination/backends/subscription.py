"""Listening for cluster events on a connection that may break. What is published while it is away is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.backends.listeners import Listeners
from aerodrome.coordination.ports import ClusterEvent

log = structlog.get_logger(__name__)

#: Seconds between two connections: doubled from the first to the last of these.
_FIRST, _LAST = 0.05, 2.0
#: Seconds that who publishes waits until this node listens.
_READY_WITHIN = 1.0


class Subscription:
    """Listens while anybody wants to hear.

    Args:
        listen: Connects, calls `began` and then `heard`, until the connection ends, which is an error.
        interrupted: What is said of an error if it means no more than that; ``None``: it should not have been.
    """

    def __init__(
        self, name: str, listen: Callable[[], Awaitable[None]], interrupted: Callable[[Exception], str | None]
    ) -> None:
        self._listen = listen
        self._interrupted = interrupted
        self._listeners = Listeners(self._start, self._stop)
        self._tasks = TaskOwner(name)
        self._listening: asyncio.Task[None] | None = None
        self._began = asyncio.Event()

    async def aclose(self) -> None:
        await self._tasks.aclose()

    def add(self, callback: Callable[[ClusterEvent], None]) -> Callable[[], None]:
        """See `ClusterEvents.listen`."""
        return self._listeners.add(callback)

    async def ready(self) -> None:
        """To be awaited before something is published: whoever listens hears what is published from then on; so first
        let the listening begin, for a while."""
        if self._listening is not None and not self._began.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_READY_WITHIN):
                    await self._began.wait()

    def began(self) -> None:
        """From here on everything is heard."""
        self._began.set()

    def heard(self, text: str | bytes) -> None:
        try:
            kind, subject, node = json.loads(text)
        except (ValueError, TypeError):
            log.warning("coordination.event_not_understood")  # of another release, or not of ours
            return
        self._listeners.tell(ClusterEvent(kind, subject, node))

    def _start(self) -> None:
        self._began.clear()
        self._listening = self._tasks.start(self._run(), "listen")

    def _stop(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None

    async def _run(self) -> None:
        pause = _FIRST
        while True:
            try:
                await self._listen()
            except Exception as error:
                # Whatever it was: a node that listens no more would be late for ever.
                if (reason := self._interrupted(error)) is not None:
                    log.warning("coordination.events_interrupted", reason=reason)
                else:
                    log.exception("coordination.events_crashed")
            if self._began.is_set():
                pause = _FIRST
            self._began.clear()
            # Not all nodes at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            pause = min(_LAST, pause * 2)


def text_of(event: ClusterEvent) -> str:
    """What `Subscription.heard` reads."""
    return json.dumps([event.kind, event.subject, event.node])
