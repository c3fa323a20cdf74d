"""Reading the settings again while the server runs: on SIGHUP, and when their file has changed.

Kubernetes changes mounted files and sends no signal, so the file is looked at from time to time. Settings that are
wrong change nothing; what is wrong is logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from aerodrome.config import Settings
from aerodrome.errors import AerodromeError

log = structlog.get_logger(__name__)

#: Seconds between two looks at the file.
LOOK = 2.0


class Reload:
    """Args:
    file: ``None``: there is none, and only the signal counts.
    load: Reads and checks the settings.
    """

    def __init__(self, file: Path | None, load: Callable[[], Settings]) -> None:
        self._file = file
        self._load = load
        self._state = self._look()
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Have them read again soon, were it once `run` has begun."""
        self._asked.set()

    async def run(self, apply: Callable[[Settings], Awaitable[None]], look: float = LOOK) -> None:
        """For ever. Cancel it to end it."""
        while True:
            try:
                async with asyncio.timeout(look):
                    await self._asked.wait()
            except TimeoutError:
                if await asyncio.to_thread(self._look) == self._state:
                    continue
            self._asked.clear()
            await self._reload(apply)

    async def _reload(self, apply: Callable[[Settings], Awaitable[None]]) -> None:
        self._state = await asyncio.to_thread(self._look)
        try:
            await apply(await asyncio.to_thread(self._load))
        except AerodromeError as error:
            log.warning("settings.not_reloaded", reason=error.detail)
            return
        except Exception:
            # A bug must not take the next reload from the operator as well.
            log.exception("settings.not_reloaded")
            return
        log.info("settings.reloaded", file=str(self._file))

    def _look(self) -> tuple[int, int, int] | None:
        """What changes with the file, whether it is written in place or replaced."""
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None  # about to be replaced
        return found.st_mtime_ns, found.st_size, found.st_ino
