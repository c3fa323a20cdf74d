"""Users and tenants that need one more runtime.

A key has one *claim*, however many requests wait for it. The claims share the runtimes that are warm or being started:
whichever is next in the line (`queueing`) gets the next that is ready, whoever has had it started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.errors import AerodromeError, Draining
from aerodrome.fairness.line import Stage, Ticket
from aerodrome.model import RuntimeKey
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.queueing import RuntimeQueue

if TYPE_CHECKING:
    from aerodrome.runtime.pool import RuntimePool

log = structlog.get_logger(__name__)


class Claim:
    """A key's wish for one more runtime."""

    def __init__(self, ticket: Ticket) -> None:
        #: Its place in the line of those who wait for a runtime.
        self.ticket = ticket
        self.ended = False
        #: Why it ended without one.
        self.error: Exception | None = None


class Claims:
    """Args:
    wanted: The keys that requests are under way for. A claim ends when there are none of its key.
    """

    def __init__(
        self, pool: RuntimePool, queue: RuntimeQueue, tasks: TaskOwner, wanted: Collection[RuntimeKey]
    ) -> None:
        self._pool = pool
        self._queue = queue
        self._tasks = tasks
        self._wanted = wanted
        self._claims: dict[RuntimeKey, Claim] = {}
        #: The places of those that have been served, by the runtime that they got.
        self._served: dict[str, Ticket] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def __contains__(self, key: RuntimeKey) -> bool:
        return key in self._claims

    def besides(self, key: RuntimeKey) -> int:
        """How many there are of other keys."""
        return len(self._claims.keys() - {key})

    def join(self, key: RuntimeKey) -> Claim:
        """The claim of this key, which is made if there is none."""
        claim = self._claims.get(key)
        if claim is None:
            claim = self._claims[key] = Claim(self._queue.join_claims(key))
            self._tasks.start(self._run(key, claim), f"claim {key}")
        return claim

    def on_its_way(self, key: RuntimeKey, starts: int) -> bool:
        """Whether one of so many starts will do for this key's claim: those before it in the line take theirs."""
        claim = self._claims.get(key)
        return claim is not None and self._queue.is_among_first(claim.ticket, starts)

    def hand_out(self) -> None:
        """Give the warm runtimes to the claims that are next, whoever has had them started."""
        for runtime in self._pool.in_state(RuntimeState.WARM):
            key = self._queue.first_claim()
            while key is not None and key not in self._wanted:
                # All who waited have given up: what was started for them stays warm.
                self._end(key, self._claims[key])
                key = self._queue.first_claim()
            if key is None:
                return
            runtime.claim(key)
            self._pool.retirements.claimed(runtime)
            self._pool.standby.claimed()
            log.info("runtime.claimed", runtime=runtime.id, pid=runtime.pid, key=str(key))
            claim = self._claims[key]
            self._queue.serve_claim(claim.ticket)
            self._served[runtime.id] = claim.ticket
            self._end(key, claim)

    def gone(self, runtime_id: str) -> None:
        """Nothing is left of a runtime."""
        if (ticket := self._served.pop(runtime_id, None)) is not None:
            self._queue.leave_claims(ticket)

    async def _run(self, key: RuntimeKey, claim: Claim) -> None:
        """A task of its own: what it has begun does not end with the request that was first."""
        try:
            await self._see_to(key, claim)
        except asyncio.CancelledError:
            self._end(key, claim, Draining("this node is shutting down"))
            raise
        except Exception as error:
            if not isinstance(error, AerodromeError):
                log.exception("runtime.claim_failed", key=str(key))
            self._end(key, claim, error)
        else:
            self._end(key, claim)

    async def _see_to(self, key: RuntimeKey, claim: Claim) -> None:
        pool = self._pool
        while key in self._wanted:
            changed = pool.changed
            self.hand_out()
            if claim.ended:
                return
            held_back = self._queue.held_back(key)
            if not held_back and len(pool.in_state(RuntimeState.STARTING)) >= self._queue.claims:
                await changed.wait()  # those that are being started will do
            elif not held_back and not pool.full:
                await pool.spawn()
            elif not await pool.free_one(key.tenant if held_back else None):
                await changed.wait()

    def _end(self, key: RuntimeKey, claim: Claim, error: Exception | None = None) -> None:
        """Once: what becomes afterwards of a start that it has begun does not concern it."""
        if not claim.ended:
            claim.error = error
            claim.ended = True
            if claim.ticket.stage is Stage.WAITING:
                self._queue.leave_claims(claim.ticket)
            del self._claims[key]
            self._pool.notify()
