"""A ceiling to wait at: places are given in fair order (`line`), within a time, and come back with an estimate."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aerodrome.errors import Capacity, RateLimited
from aerodrome.fairness.estimate import Rate, retry_after
from aerodrome.fairness.line import Ceilings, FairLine, Scope, Stage, Ticket

#: About over how many places the time that was waited is averaged.
_AVERAGED = 20


class FairGate:
    """Args:
    timeout: Seconds to wait before `Capacity`.
    weight: Of a tenant.
    what: What could not be had, for the error, such as "no turn could be started".
    monotonic: Seconds.
    """

    def __init__(
        self,
        ceilings: Ceilings,
        *,
        timeout: float,
        what: str,
        weight: Callable[[str], float] = lambda _: 1.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.line = FairLine(ceilings, weight)
        self._timeout = timeout
        self._what = what
        self._monotonic = monotonic
        self._granted: dict[Ticket, asyncio.Future[None]] = {}
        self._came_at: dict[Ticket, float] = {}
        #: Seconds that those waited who have lately had a place; who had one at once counts as 0.
        self.recent_wait = 0.0
        #: How fast places come back: of all, of each tenant and user that is here.
        self._rate = Rate(monotonic())
        self._rates: dict[tuple[str, str | None], Rate] = {}

    def free(self, tenant: str, user: str) -> bool:
        """Whether `hold` would not wait."""
        return self.line.held_back_by(tenant, user) is None

    @asynccontextmanager
    async def hold(self, tenant: str, user: str) -> AsyncIterator[None]:
        """A place. Raises `Capacity`."""
        ticket = self.join(tenant, user)
        try:
            await self.granted(ticket)
            yield
        finally:
            self.leave(ticket)

    def join(self, tenant: str, user: str) -> Ticket:
        """Wait, or hold a place if there is one. To be followed by `granted`, and in any case by `leave`."""
        ticket = self.line.join(tenant, user)
        for name in (None, user):
            if (tenant, name) not in self._rates:
                self._rates[tenant, name] = Rate(self._monotonic())
        self._granted[ticket] = asyncio.get_running_loop().create_future()
        self._came_at[ticket] = self._monotonic()
        self._give_out()
        return ticket

    async def granted(self, ticket: Ticket) -> None:
        """Wait for the place. Raises `Capacity`."""
        granted = self._granted[ticket]
        if granted.done():
            return  # mostly
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.shield(granted)  # others may wait for it, too
        except TimeoutError:
            if ticket.stage is not Stage.HOLDING:
                raise self.too_late(ticket) from None

    def leave(self, ticket: Ticket) -> None:
        """Give the place back, or wait no longer."""
        if ticket.stage is Stage.HOLDING:
            now = self._monotonic()
            for rate in (self._rate, self._rates[ticket.tenant, None], self._rates[ticket.tenant, ticket.user]):
                rate.note(now)
        self.line.leave(ticket)
        self._granted.pop(ticket, None)
        self._came_at.pop(ticket, None)
        self._forget(ticket)
        self._give_out()

    def too_late(self, ticket: Ticket) -> Capacity:
        self.leave(ticket)
        # At a ceiling of its own it would have waited in an empty node, too.
        own = self.line.held_back_by(ticket.tenant, ticket.user) in (Scope.USER, Scope.TENANT)
        return (RateLimited if own else Capacity)(
            f"{self._what} within {self._timeout:g} s: too many are before it",
            retry_after=self.retry_after(ticket.tenant, ticket.user),
        )

    def retry_after(self, tenant: str, user: str) -> float:
        """Seconds until one that comes now might have its place. Who has waited in vain is at the end again."""
        scope = self.line.held_back_by(tenant, user)
        ahead = self.line.ahead(tenant, user)
        # Who is held back by a ceiling of its own waits for places of its own, and for nobody else's.
        if scope is Scope.USER:
            return self.estimate(min(ahead, self.line.waiting_of(tenant, user)), tenant, user)
        if scope is Scope.TENANT:
            return self.estimate(min(ahead, self.line.waiting_of(tenant)), tenant)
        return self.estimate(ahead)

    def estimate(self, ahead: int, tenant: str | None = None, user: str | None = None) -> float:
        """Seconds after which one with so many before it has a place, at the rate at which places come back lately:
        all, those of the tenant, or those of its user."""
        rate = self._rates.get((tenant, user), self._rate) if tenant is not None else self._rate
        return retry_after(ahead, rate.per_second(self._monotonic()), random.random())  # noqa: S311

    def _give_out(self) -> None:
        while (ticket := self.line.first()) is not None:
            self.line.take(ticket)
            waited = self._monotonic() - self._came_at[ticket]
            self.recent_wait += (waited - self.recent_wait) / _AVERAGED
            granted = self._granted[ticket]
            if not granted.done():
                granted.set_result(None)

    def _forget(self, ticket: Ticket) -> None:
        for user in (None, ticket.user):
            if not self.line.knows(ticket.tenant, user):
                self._rates.pop((ticket.tenant, user), None)
