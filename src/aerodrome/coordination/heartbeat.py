"""The one heartbeat of a node, which keeps all of its leases valid.

**Self-fencing.** A node that could not heartbeat for two thirds of the time to live takes no new work (`may_serve`),
and at that moment gives up whatever it runs (`on_lapse`): in the third that is left its runtimes end, so that nothing
of ours runs when somebody else may. The moment is a timer's, not one of the next beat, because a store may hang
instead of failing; for the same reason each beat has a deadline. Who is told that it is dead gives up (`on_reborn`),
too, and lives on as a new incarnation.

All of this is measured with the monotonic clock from the moment a beat was *sent*. A node that was paused finds
`may_serve` false as soon as anything asks for it, before any timer has been heard; what it had begun to write before
the pause is refused by the store (`statestore.ports`).
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

import structlog

from aerodrome._util.clock import Clock
from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.ports import Beat, Membership, Node
from aerodrome.errors import StoreUnavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")


#: Share of the time to live after which the node fences itself.
_FENCED_AFTER = 2 / 3
#: Share of the time to live that one beat may take: so that two fit in before the node fences itself.
_DEADLINE = 1 / 4


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
        #: The incarnations this node had before, the latest last, as far as anybody may remember them.
        self.earlier: deque[str] = deque(maxlen=20)
        self.on_reborn: Callable[[], Awaitable[None]] | None = None
        #: Called when the node has to give up its leases because it could not heartbeat; they may still be valid, for
        #: another `lapse_time`. May be called again after a beat that got through.
        self.on_lapse: Callable[[], None] | None = None
        #: Called once, when somebody has asked this node to drain.
        self.on_drain: Callable[[], None] | None = None
        self._membership = membership
        self._interval = interval
        self._ttl = ttl
        self._clock = clock
        self._load = load
        #: When this incarnation joined.
        self._joined_at = -math.inf
        #: Before the first beat, and after we were told that we are dead, there was none that counts.
        self._last_beat = -math.inf
        #: Whether there are no leases to give up, because that has been done or there never were any.
        self._lapsed = True
        self._lapse_timer: asyncio.TimerHandle | None = None
        self._drain_told = False
        #: Two beats at once would both be told that we are dead, and end in two incarnations.
        self._beating = asyncio.Lock()
        self._tasks = TaskOwner("heartbeat")

    @property
    def incarnation(self) -> str:
        return self.node.incarnation

    @property
    def may_serve(self) -> bool:
        return self._clock.monotonic() - self._last_beat < self._ttl * _FENCED_AFTER

    @property
    def age(self) -> float:
        """Seconds since the latest beat that counts was sent; infinite when there is none."""
        return self._clock.monotonic() - self._last_beat

    @property
    def lapse_time(self) -> float:
        """Seconds between `on_lapse` and the moment in which others may take the leases."""
        return self._ttl * (1 - _FENCED_AFTER)

    @property
    def unsettled(self) -> float:
        """Seconds until the list of the living can be relied on. A store that has lost its memory has an empty one, and
        all who live join anew within the time to live; who joins does not know whether that has just happened.
        """
        return max(0.0, self._joined_at + self._ttl - self._clock.monotonic())

    def check(self) -> bool:
        """`may_serve`, and the leases given up if not."""
        if self.may_serve:
            return True
        if not self._lapsed:
            self._lapsed = True
            log.warning("heartbeat.lapsed", incarnation=self.incarnation)
            if self.on_lapse is not None:
                self.on_lapse()
        return False

    async def start(self) -> None:
        """Join. Raises `StoreUnavailable`."""
        await self._join()
        self._joined_at = self._last_beat
        self._tasks.start(self._run(), "beat")

    async def advertise(self, address: str) -> None:
        """Say where other nodes reach this one. Raises `StoreUnavailable`."""
        async with self._beating:
            self.node = replace(self.node, address=address)
            await self._join()

    async def aclose(self) -> None:
        """Leave: the leases are free at once."""
        await self._tasks.aclose()
        if self._lapse_timer is not None:
            self._lapse_timer.cancel()
            self._lapse_timer = None
        try:
            await self._in_time(self._membership.leave(self.incarnation))
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
            beat = await self._in_time(self._membership.heartbeat(self.incarnation, self._load()))
            if beat is Beat.DEAD:
                await self._be_reborn()
                return
            self._beaten(asked_at)
            if beat is Beat.DRAIN and not self._drain_told:
                self._drain_told = True
                log.info("heartbeat.asked_to_drain", incarnation=self.incarnation)
                if self.on_drain is not None:
                    self.on_drain()

    async def _be_reborn(self) -> None:
        log.warning("heartbeat.declared_dead", incarnation=self.incarnation)
        # Not a moment longer under leases that are void, also when the store can not be reached to join again.
        self._last_beat = -math.inf
        self._lapsed = True
        self.earlier.append(self.incarnation)
        self._joined_at = math.inf
        self.node = replace(self.node, incarnation=_incarnation(self.node.name), peer_token=_peer_token())
        if self.on_reborn is not None:
            await self.on_reborn()
        # With what it says of its earlier lives: their turns are still worked on here.
        self.node = replace(self.node, load=self._load())
        await self._join()
        self._joined_at = self._last_beat

    async def _join(self) -> None:
        asked_at = self._clock.monotonic()
        await self._in_time(self._membership.join(self.node, self._ttl))
        self._beaten(asked_at)

    async def _in_time(self, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._ttl * _DEADLINE):
                return await call
        except TimeoutError:
            raise StoreUnavailable("the coordination store does not answer") from None

    def _beaten(self, asked_at: float) -> None:
        self._last_beat = asked_at
        self._lapsed = False
        if self._lapse_timer is None and not self._tasks.closed:
            self._watch_lapse()

    def _watch_lapse(self) -> None:
        """One timer for ever and not one a beat; an answer that took too long is noticed as well."""
        self._lapse_timer = None
        if self.check():
            left = self._last_beat + self._ttl * _FENCED_AFTER - self._clock.monotonic()
            self._lapse_timer = asyncio.get_running_loop().call_later(max(left, 0.001), self._watch_lapse)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self.beat()
            except StoreUnavailable as error:
                log.warning("heartbeat.failed", reason=error.detail, serving=self.may_serve)
            except Exception:
                # A node that has stopped to beat is dead with all its sessions, whatever went wrong in one beat.
                log.exception("heartbeat.crashed", serving=self.may_serve)
            # From beat to beat, so that one that took its time does not put off the next.
            await asyncio.sleep(max(began + self._interval - loop.time(), 0.0))


def _incarnation(name: str) -> str:
    return f"{name}-{secrets.token_hex(8)}"


def name_in(incarnation: str) -> str:
    """The name of the node whose life it is, or was."""
    return incarnation.rpartition("-")[0]


def _peer_token() -> str:
    return secrets.token_urlsafe(32)
