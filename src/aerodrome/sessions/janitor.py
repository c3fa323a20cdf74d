"""What time does to sessions: idle ones are hibernated, unused ones are deleted.

Both count from the last *use*, and neither touches a session in a turn (trap 14). What other parts had to put off,
because a store was away or a node has died, is done here as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from aerodrome.errors import AerodromeError
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.service import SessionService

log = structlog.get_logger(__name__)

_PAGE = 100


class Janitor:
    def __init__(self, service: SessionService, context: SessionContext) -> None:
        self._service = service
        self._context = context

    async def run(self) -> None:
        """Sweep for ever, often enough for the shorter of the two times."""
        options = self._context.options
        interval = max(0.05, min(30.0, options.idle_timeout / 4, options.ttl / 4))
        while True:
            await asyncio.sleep(interval)
            await self.sweep()

    async def sweep(self) -> None:
        """One round. What fails is logged and left for the next; the rest is done all the same."""
        works: list[Callable[[], Awaitable[object]]] = [
            self.hibernate_idle,
            self.delete_expired,
            self._service.recover,
            self._service.tidy,
        ]
        for work in works:
            try:
                await work()
            except AerodromeError as error:
                log.warning("janitor.failed", work=work.__name__, reason=error.detail)
            except Exception:
                log.exception("janitor.crashed", work=work.__name__)

    async def hibernate_idle(self) -> int:
        """Put to sleep what has not been used for `sessions.idle_timeout`. Returns how many."""
        before = self._context.clock.monotonic() - self._context.options.idle_timeout
        slept = 0
        for live in self._service.live:
            if live.evictable and live.last_used <= before:
                slept += await self._service.hibernate(live)
        return slept

    async def delete_expired(self) -> int:
        """Delete what has not been used for `sessions.ttl`. Returns how many."""
        before = self._context.clock.time() - self._context.options.ttl
        deleted = stayed = 0
        while True:
            # Those that stay, because they are in a turn or another node has them, are the oldest next time, too.
            rows = await self._context.directory.unused_since(before, _PAGE, skip=stayed)
            gone = 0
            for row in rows:
                try:
                    gone += await self._service.expire(row, before)
                except AerodromeError as error:
                    log.warning("session.not_expired", session=str(row.key), reason=error.detail)
            if gone:
                log.info("sessions.expired", sessions=gone)
            deleted += gone
            stayed += len(rows) - gone
            if len(rows) < _PAGE:
                return deleted
