"""The end of a process that is about to end, and does not."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import structlog

from aerodrome._util.tasks import place_of

log = structlog.get_logger(__name__)


class Farewell:
    """Gives a process so long to close what it has open, from `begin` on; then it says what it waits for, and exits
    with 1. A thread sees to that: it also ends what keeps the event loop, and threads that are waited for behind it.

    Args:
        seconds: How long closing may take.
        last: What is done before the exit. Called in the thread.
    """

    def __init__(self, seconds: float, last: Callable[[], None]) -> None:
        self._seconds = seconds
        self._last = last
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self) -> None:
        """Call it in the loop's thread, once. It keeps nothing from ending earlier."""
        self._loop = asyncio.get_running_loop()
        timer = threading.Timer(self._seconds, self._end)
        timer.daemon = True
        timer.start()

    def _end(self) -> None:
        try:
            # Another thread changes them meanwhile; what it prevents us from telling the threads' stacks may still say.
            with suppress(Exception):
                tasks = sorted(place_of(task) for task in asyncio.all_tasks(self._loop))
                log.error("process.not_ended", seconds=self._seconds, tasks=tasks)
            faulthandler.dump_traceback(sys.stderr)
            self._last()
        finally:
            os._exit(1)
