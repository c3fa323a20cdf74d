"""What time does to sessions: idle ones are hibernated, unused ones are deleted.

Both count from the last *use*, and neither touches a session in a turn (trap 14). What other parts had to put off,
because a store was away or a node has died, is done here as well.

Every node looks after what it has loaded. What concerns all sessions is done by one node at a time, the one that holds
a lease of its own (`LEASE`). That saves work and decides nothing: each session that is touched is touched under its own
lease, so that two nodes which both hold themselves for the chosen one, for a moment, do no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from aerodrome.coordination.ports import Lease
from aerodrome.errors import AerodromeError
from aerodrome.model import SessionKey
from aerodrome.sessions import setbacks
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.recovery import Orphans
from aerodrome.sessions.service import SessionService

log = structlog.get_logger(__name__)

T = TypeVar("T")

_PAGE = 100
#: No tenant can be called so: their names begin with a letter or a digit.
LEASE = SessionKey("@aerodrome", "janitor")


class Janitor:
    def __init__(self, service: SessionService, context: SessionContext) -> None:
        self._service = service
        self._context = context
        self._orphans = Orphans(context)
        self._lease: Lease | None = None

    async def chosen(self) -> bool:
        """Whether the work for all nodes is this one's. Another has it while that lives."""
        context = self._context
        self._lease = await context.leases.acquire(LEASE, context.incarnation()) if context.may_serve() else None
        return self._lease is not None

    async def run(self) -> None:
        """Sweep for ever, often enough for the shorter of the two times."""
        options = self._context.options
        interval = max(0.05, min(30.0, options.idle_timeout / 4, options.ttl / 4))
        try:
            while True:
                await asyncio.sleep(interval)
                await self.sweep()
        finally:
            if self._lease is not None:
                self._context.release_lease(self._lease)  # the next need not wait until this node is held for dead

    async def sweep(self) -> None:
        """One round. What fails is logged and left for the next; the rest is done all the same."""
        await self._do(self.hibernate_idle)
        await self._do(self._service.tidy)
        await self._do(self._service.members_here.recheck)
        if await self._do(self.chosen):
            await self._do(self.delete_expired)
            await self._do(self._service.recover)
            await self._do(self._orphans.sweep)
            await self._do(self._context.leases.clear_dead)

    async def _do(self, work: Callable[[], Awaitable[T]]) -> T | None:
        try:
            return await work()
        except AerodromeError as error:
            log.warning("janitor.failed", work=work.__name__, reason=error.detail)
        except Exception:
            log.exception("janitor.crashed", work=work.__name__)
        return None

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
                except Exception as error:
                    setbacks.tell("session.not_expired", row.key, error)
            if gone:
                log.info("sessions.expired", sessions=gone)
            deleted += gone
            stayed += len(rows) - gone
            if len(rows) < _PAGE:
                return deleted
