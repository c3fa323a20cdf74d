"""The clock of the running event loop, in a test's hands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class LoopClock:
    """Stands still: a timer goes off when it is moved that far, and not because the machine was busy meanwhile."""

    def __init__(self, now: float) -> None:
        self.now = now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@contextmanager
def loop_clock() -> Iterator[LoopClock]:
    """Within, nothing may wait for time to pass by itself: it would wait for ever."""
    loop = asyncio.get_running_loop()
    clock = LoopClock(loop.time())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: clock.now)
        yield clock
