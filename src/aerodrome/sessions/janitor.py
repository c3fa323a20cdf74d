"""What time does to sessions: idle ones are hibernated, unused ones are deleted.

Both count from the last *use*, and neither touches a session in a turn (trap 14).
"""

from __future__ import annotations

import asyncio

import structlog

from aerodrome.errors import AerodromeError
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.service import SessionService

log = structlog.get_logger(__name__)


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
            try:
                await self.sweep()
            except AerodromeError as error:
                log.warning("janitor.failed", reason=error.detail)

    async def sweep(self) -> None:
        await self.hibernate_idle()
        await self.delete_expired()
        self._service.forget_asleep()

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
        deleted = 0
        for row in await self._context.directory.unused_since(before):
            live = self._service.find_live(row.key)
            if live is not None and live.busy:
                continue
            try:
                await self._service.delete_row(row)
            except AerodromeError as error:
                log.warning("session.not_expired", session=str(row.key), reason=error.detail)
                continue
            deleted += 1
            log.info("session.expired", session=str(row.key))
        return deleted
