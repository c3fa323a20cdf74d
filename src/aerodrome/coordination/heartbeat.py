"""The one heartbeat of a node, which keeps all of its leases valid.

A node that could not heartbeat for two thirds of the time to live takes no new work (`may_serve`), because before it
learns whether its leases still hold, they may be somebody else's. One that is told that it is dead gives up whatever
it runs (`on_reborn`) and lives on as a new incarnation.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import structlog

from aerodrome._util.clock import Clock
from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.ports import Beat, Membership, Node
from aerodrome.errors import StoreUnavailable

log = structlog.get_logger(__name__)


class Heartbeat:
    """Args:
    interval, ttl: Seconds.
    load: What the node says of itself with each beat.
    """

    def __init__(
        self,
        membership: Membership,
        name: str,
        *,
        interval: float,
        ttl: float,
        clock: Clock,
        load: Callable[[], dict[str, Any]],
    ) -> None:
        self.node = Node(name=name, incarnation=_incarnation(name), peer_token=_peer_token())
        self.on_reborn: Callable[[], Awaitable[None]] | None = None
        self._membership = membership
        self._interval = interval
        self._ttl = ttl
        self._clock = clock
        self._load = load
        #: Before the first beat, and after we were told that we are dead, there was none that counts.
        self._last_beat = -math.inf
        #: Two beats at once would both be told that we are dead, and end in two incarnations.
        self._beating = asyncio.Lock()
        self._tasks = TaskOwner("heartbeat")

    @property
    def incarnation(self) -> str:
        return self.node.incarnation

    @property
    def may_serve(self) -> bool:
        return self._clock.monotonic() - self._last_beat < self._ttl * 2 / 3

    async def start(self) -> None:
        """Join. Raises `StoreUnavailable`."""
        await self._join()
        self._tasks.start(self._run(), "beat")

    async def advertise(self, address: str) -> None:
        """Say where other nodes reach this one. Raises `StoreUnavailable`."""
        async with self._beating:
            self.node = replace(self.node, address=address)
            await self._join()

    async def aclose(self) -> None:
        """Leave: the leases are free at once."""
        await self._tasks.aclose()
        try:
            await self._membership.leave(self.incarnation)
        except StoreUnavailable as error:
            log.warning("heartbeat.not_left", reason=error.detail)  # others wait for the time to live instead

    async def beat(self) -> None:
        """One heartbeat, now. Also called when what the node says of itself has changed much.

        Raises:
            StoreUnavailable: It did not get through, or a rebirth did not; the next beat tries again.
        """
        async with self._beating:
            # The time *before* the question: the store may have counted from then on.
            asked_at = self._clock.monotonic()
            beat = await self._membership.heartbeat(self.incarnation, self._load())
            if beat is not Beat.DEAD:
                self._last_beat = asked_at
            else:
                await self._be_reborn()

    async def _be_reborn(self) -> None:
        log.warning("heartbeat.declared_dead", incarnation=self.incarnation)
        # Not a moment longer under leases that are void, also when the store can not be reached to join again.
        self._last_beat = -math.inf
        self.node = replace(self.node, incarnation=_incarnation(self.node.name), peer_token=_peer_token())
        if self.on_reborn is not None:
            await self.on_reborn()
        await self._join()

    async def _join(self) -> None:
        asked_at = self._clock.monotonic()
        await self._membership.join(self.node, self._ttl)
        self._last_beat = asked_at

    async def _run(self) -> None:
        while True:
            try:
                await self.beat()
            except StoreUnavailable as error:
                log.warning("heartbeat.failed", reason=error.detail, serving=self.may_serve)
            except Exception:
                # A node that has stopped to beat is dead with all its sessions, whatever went wrong in one beat.
                log.exception("heartbeat.crashed", serving=self.may_serve)
            await asyncio.sleep(self._interval)


def _incarnation(name: str) -> str:
    return f"{name}-{secrets.token_hex(8)}"


def _peer_token() -> str:
    return secrets.token_urlsafe(32)
