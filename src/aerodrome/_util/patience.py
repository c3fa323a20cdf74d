"""Waiting for a store that is away for a moment, instead of failing whoever needs it at once.

A store that is restarted is away for seconds. Everything that may be asked twice is asked again until a deadline,
with a backoff; what may not be asked twice (an append that may have been done) is seen to by its caller.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar, cast

import structlog

from aerodrome._util.clock import Clock, SystemClock
from aerodrome.errors import StoreUnavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Seconds between two tries: doubled from the first to the last of these.
_FIRST, _LAST = 0.05, 1.0
#: What a caller whose patience has ended is told to wait, in seconds, unless the store has said something else.
_RETRY_AFTER = 2.0


class Patience:
    """Args:
    seconds: How long a call that fails with `StoreUnavailable` is tried again; 0 tries once.
    """

    def __init__(
        self,
        seconds: float,
        *,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self.seconds = seconds
        self._clock = clock or SystemClock()
        self._sleep = sleep

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T:
        """Do it, however often it takes. Whatever else it raises ends it.

        Raises:
            StoreUnavailable: The store did not come back in time; `retry_after` is set.
        """
        deadline = self._clock.monotonic() + self.seconds
        pause = _FIRST
        while True:
            try:
                return await call()
            except StoreUnavailable as error:
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    error.retry_after = error.retry_after or _RETRY_AFTER
                    raise
                if pause == _FIRST:
                    log.warning("store.waiting", reason=error.detail, seconds=round(left, 1))
            # Jitter: all who wait would come back to the store in the same moment.
            await self._sleep(min(pause * random.uniform(0.5, 1.0), left))  # noqa: S311
            pause = min(pause * 2, _LAST)


def patient(port: T, patience: Patience, methods: Collection[str]) -> T:
    """The port, with patience in those of its methods that may be called twice. The others are as they are."""
    return cast("T", _Patient(port, patience, frozenset(methods))) if patience.seconds else port


class _Patient:
    def __init__(self, port: Any, patience: Patience, methods: frozenset[str]) -> None:
        self._port = port
        self._patience = patience
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if name not in self._methods:
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._patience(lambda: method(*args, **kwargs))

        setattr(self, name, call)  # the next look-up finds it without coming here
        return call
