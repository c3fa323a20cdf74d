"""Everything that is waited for has a deadline, and says what it waited for when that passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Stuck(AssertionError):
    """Something did not come in time."""


class Watch:
    def __init__(self) -> None:
        self._waiting: dict[object, tuple[str, float]] = {}

    @asynccontextmanager
    async def waiting(self, what: str, seconds: float) -> AsyncIterator[None]:
        """Raises `Stuck` when the block takes longer."""
        token = object()
        self._waiting[token] = (what, time.monotonic())
        try:
            async with asyncio.timeout(seconds) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise Stuck(f"{what}: not within {seconds:g} s. Waited for then:\n{self.describe()}") from None
        finally:
            del self._waiting[token]

    def describe(self) -> str:
        now = time.monotonic()
        return "\n".join(f"  {what}, for {now - since:.1f} s" for what, since in self._waiting.values())
