"""Ceilings on turns that run at the same time: of the node, and of each tenant in it.

Whoever finds no room waits in order, bounded in time. A tenant that has used up its own share waits behind its own
ceiling and takes no place in the node's queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aerodrome.errors import Capacity


class TurnSlots:
    """Args:
    total, per_tenant: Turns at the same time.
    timeout: Seconds to wait before `Capacity`.
    """

    def __init__(self, *, total: int, per_tenant: int, timeout: float) -> None:
        self._total = asyncio.Semaphore(total)
        self._per_tenant = per_tenant
        self._timeout = timeout
        #: The ceiling of each tenant that has turns running or waiting, and how many those are.
        self._tenants: dict[str, tuple[asyncio.Semaphore, int]] = {}

    def free(self, tenant: str) -> bool:
        """Whether `hold` would not wait."""
        share = self._tenants.get(tenant)
        return not self._total.locked() and (share is None or not share[0].locked())

    @asynccontextmanager
    async def hold(self, tenant: str) -> AsyncIterator[None]:
        """A turn's place. Raises `Capacity`."""
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._timeout):
                    await stack.enter_async_context(self._of(tenant))
                    await stack.enter_async_context(self._total)
            except TimeoutError:
                raise Capacity(
                    f"no turn could be started within {self._timeout:g} s: too many are running",
                    retry_after=self._timeout,
                ) from None
            yield

    @asynccontextmanager
    async def _of(self, tenant: str) -> AsyncIterator[None]:
        semaphore, users = self._tenants.get(tenant, (asyncio.Semaphore(self._per_tenant), 0))
        self._tenants[tenant] = (semaphore, users + 1)
        try:
            async with semaphore:
                yield
        finally:
            users = self._tenants[tenant][1] - 1
            if users:
                self._tenants[tenant] = (semaphore, users)
            else:
                del self._tenants[tenant]
