"""Giving back what the coordination store has given this node: leases of sessions, places of turns.

What is not given back stays taken for as long as the incarnation lives: nobody else can run the session, or the user
has one turn less. So it is tried until it has got through, or until the incarnation has ended, with which everything of
it is free.

And it is looked for again where an answer was missing. A store that stood still may carry out what it was asked long
after we have given up, and behind what we have said since: a lease, or a place, that we have then without knowing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.ports import Lease, Leases
from aerodrome.errors import AerodromeError, StoreUnavailable
from aerodrome.model import SessionKey

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Seconds between two tries: doubled from the first to the last of these.
_FIRST, _LAST = 0.1, 10.0
#: Seconds after which what was sent to a store that did not answer has arrived or never will. A store that stands
#: still for longer, or a network that keeps it for longer, ends the incarnation.
LATE = 30.0


async def give_back(call: Callable[[], Awaitable[T]], wanted: Callable[[], bool]) -> T | None:
    """Do it, however often it takes; it has to bear being done twice. ``None``: it is not `wanted` any more."""
    pause = _FIRST
    while True:
        try:
            return await call()
        except StoreUnavailable as error:
            if pause == _FIRST:
                log.warning("store.not_given_back", reason=error.detail)
        await asyncio.sleep(pause)
        if not wanted():
            return None
        pause = min(pause * 2, _LAST)


class OwnLeases:
    """The leases of this node: implements `coordination.ports.Leases` on another, and knows which of them are in use.

    Args:
        incarnation: The one this node lives in now.
        tasks: For what is done in the background; ended with the node, whose leases are free then.
        late: Seconds after which a lease that was asked for without an answer is looked for.
    """

    def __init__(
        self,
        leases: Leases,
        incarnation: Callable[[], str],
        tasks: TaskOwner,
        *,
        late: float = LATE,
    ) -> None:
        self._leases = leases
        self._incarnation = incarnation
        self._tasks = tasks
        self._late = late
        self._held: dict[SessionKey, Lease] = {}
        #: Keys that are being asked for, how often.
        self._asking: Counter[SessionKey] = Counter()
        self._looking: set[SessionKey] = set()

    async def acquire(self, key: SessionKey, incarnation: str, *, floor: int = 0) -> Lease | None:
        self._asking[key] += 1
        try:
            lease = await self._leases.acquire(key, incarnation, floor=floor)
        except BaseException:
            self._look(key)
            raise
        finally:
            self._asking[key] -= 1
            if not self._asking[key]:
                del self._asking[key]
        if lease is not None:
            self._held[key] = lease
        return lease

    async def release(self, lease: Lease) -> bool:
        self._drop(lease)
        released = await self._leases.release(lease)
        if not released and lease.incarnation == self._incarnation():
            await self._clear(lease.key)
        return released

    async def forget(self, lease: Lease) -> bool:
        self._drop(lease)
        return await self._leases.forget(lease)

    async def holder(self, key: SessionKey) -> Lease | None:
        return await self._leases.holder(key)

    async def holders(self, keys: Sequence[SessionKey]) -> Mapping[SessionKey, Lease]:
        return await self._leases.holders(keys)

    async def clear_dead(self) -> int:
        return await self._leases.clear_dead()

    def _drop(self, lease: Lease) -> None:
        if self._held.get(lease.key) == lease:
            del self._held[lease.key]

    def _look(self, key: SessionKey) -> None:
        if key not in self._looking and not self._tasks.closed:
            self._looking.add(key)
            self._tasks.start(self._look_for(key), "look for a lease", expected=AerodromeError)

    async def _look_for(self, key: SessionKey) -> None:
        incarnation = self._incarnation()
        try:
            await asyncio.sleep(self._late)
        finally:
            self._looking.discard(key)
        await give_back(lambda: self._clear(key), lambda: self._incarnation() == incarnation)

    async def _clear(self, key: SessionKey) -> None:
        """Give back a lease that is ours and not in use: an attempt that came late has got it."""
        lease = await self._leases.holder(key)
        # Looked at now: whatever was asked for before has been answered, or is still being asked for.
        ours = lease is not None and lease.incarnation == self._incarnation()
        if lease is not None and ours and key not in self._held and not self._asking[key]:
            log.warning("session.lease_found", session=str(key), epoch=lease.epoch)
            await self._leases.release(lease)
