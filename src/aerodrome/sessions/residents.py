"""How many sessions this node may have loaded: of all, of a tenant, of an owner.

Who finds no room makes some, by hibernating the least recently used idle session of those that count under the same
ceiling, and waits in fair order while all of them are in turns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from aerodrome.fairness.gate import FairGate
from aerodrome.fairness.line import Ceilings, Scope, Stage, Ticket
from aerodrome.model import SessionRow

#: Hibernates the least recently used idle session of this tenant (``None``: of any) and owner (``None``: of any).
#: ``False``: there is none.
MakePlace = Callable[[str | None, str | None], Awaitable[bool]]


class Residents:
    """Args:
    timeout: Seconds to wait before `Capacity`.
    changed: An event that is set when a session may have become idle; each time another one.
    """

    def __init__(
        self,
        ceilings: Ceilings = Ceilings(),  # noqa: B008 - immutable
        *,
        timeout: float = 30.0,
        weight: Callable[[str], float] = lambda _: 1.0,
        changed: Callable[[], asyncio.Event] = asyncio.Event,
    ) -> None:
        self._gate = FairGate(ceilings, timeout=timeout, what="the session could not be loaded", weight=weight)
        self._timeout = timeout
        self._changed = changed
        self.make_place: MakePlace | None = None

    async def take(self, row: SessionRow) -> Ticket:
        """A place, to be given back with `release`. Raises `Capacity`."""
        ticket = self._gate.join(row.key.tenant, row.owner)
        try:
            deadline = time.monotonic() + self._timeout
            while ticket.stage is Stage.WAITING:
                # Taken before we look, so that a change between the look and the wait is not missed.
                changed = self._changed()
                if not await self._make_place(row):
                    await self._wait(ticket, changed, deadline)
        except BaseException:
            self._gate.leave(ticket)
            raise
        return ticket

    def release(self, ticket: Ticket) -> None:
        self._gate.leave(ticket)

    async def _make_place(self, row: SessionRow) -> bool:
        scope = self._gate.line.held_back_by(row.key.tenant, row.owner)
        if self.make_place is None or scope is None:
            return False
        tenant = None if scope is Scope.ALL else row.key.tenant
        return await self.make_place(tenant, row.owner if scope is Scope.USER else None)

    async def _wait(self, ticket: Ticket, changed: asyncio.Event, deadline: float) -> None:
        """Until it has its place, or should look again."""
        waiting = [asyncio.ensure_future(changed.wait()), asyncio.ensure_future(self._gate.granted(ticket))]
        try:
            left = max(0.0, deadline - time.monotonic())
            done, _ = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        if not done and ticket.stage is Stage.WAITING:
            raise self._gate.too_late(ticket)
