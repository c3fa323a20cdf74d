"""Whether a prompt may come in, and when its turn may run: the limits of the node, and those that hold over all nodes.

A *rate* is asked for when a prompt is accepted; one over it is refused at once, with the time after which the next one
is admitted. A *place* is needed while the turn runs; without one it waits, first in the order of this node's own
ceilings (`fairness.gate`), then, as the first of its user or tenant here, for a place to become free in any node.

The store of the limits is asked at most twice a turn: once for the rate and the place together, when the session is
idle and the turn is about to run, and once to give the place back. Without limits over all nodes it is never asked.
Giving back is tried until it has got through, and done once more where it is not known whether, or when, the store has
given the place (`sessions.returns`).

The node's own ceilings have those of tenants and users, too: a user whose turns wait for places in other nodes keeps
no more of this node's places from others than they may have.

When that store is away the limits are open: prompts are accepted at any rate, and the node's own ceilings are what
protects it. A node that cannot reach the store serves for two thirds of the time to live at most anyway, and to refuse
everybody because somebody may be over a limit would make an outage of what is none yet (ADR 0019).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import structlog

from aerodrome.coordination.ports import Admission, Cap, Limits, Rate
from aerodrome.errors import RateLimited, StoreUnavailable
from aerodrome.fairness.gate import FairGate
from aerodrome.fairness.line import Ceilings
from aerodrome.model import TurnRow
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions.backlog import Backlog, BacklogLimits
from aerodrome.sessions.returns import LATE, give_back

log = structlog.get_logger(__name__)

_MINUTE = 60.0
#: Seconds that the store gets for an answer. The limits are not worth more waiting.
_DEADLINE = 1.0
#: Seconds between two looks for a place that may have become free in another node: these, and up to twice as much.
_LOOK_AGAIN = 0.2


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """Over all nodes; ``None``: no limit."""

    per_minute: int | None = None
    per_minute_of_tenant: int | None = None
    at_once: int | None = None
    at_once_of_tenant: int | None = None


class _Place(NamedTuple):
    #: Whose it is: with the end of that it is free.
    incarnation: str
    #: The store has said so; else it may have given it, or be about to.
    sure: bool


class TurnAdmission:
    """Args:
    gate: The ceilings of this node.
    backlog: How many prompts may wait.
    per_runtime: Turns at the same time in one runtime.
    incarnation: Whose the places are.
    later: Does something in the background.
    timeout: Seconds to wait for a place before `Capacity`.
    late: Seconds after which a place that the store may have given without our knowing is given back once more.
    """

    def __init__(
        self,
        gate: FairGate,
        limits: TurnLimits = TurnLimits(),
        store: Limits | None = None,
        *,
        incarnation: Callable[[], str] = lambda: "",
        later: Callable[[Coroutine[Any, Any, Any], str], object] | None = None,
        timeout: float = 30.0,
        backlog: BacklogLimits = BacklogLimits(),  # noqa: B008 - immutable
        per_runtime: int | None = None,
        late: float = LATE,
    ) -> None:
        self.gate = gate
        #: Prompts that wait: for their session, for a place.
        self.backlog = Backlog(backlog, gate.estimate)
        self._limits = limits
        assert store is not None or limits == TurnLimits(), "limits over all nodes need their store"
        self._store = store
        self._incarnation = incarnation
        self._later = later
        self._timeout = timeout
        self._per_runtime = per_runtime
        self._runtimes: WeakKeyDictionary[Runtime, FairGate] = WeakKeyDictionary()
        self._late = late
        #: By the id of the turn that has it.
        self._placed: dict[str, _Place] = {}
        #: The turn of each user, or tenant, that looks for a place; the others wait behind it, in order.
        self._heads: dict[str, tuple[asyncio.Lock, int]] = {}
        #: Set, and replaced by a new one, when a place has been given back here.
        self._vacated = asyncio.Event()

    @property
    def limits_rates(self) -> bool:
        """Whether `accept` has anything to ask."""
        return self._limits.per_minute is not None or self._limits.per_minute_of_tenant is not None

    @property
    def _limits_places(self) -> bool:
        return self._limits.at_once is not None or self._limits.at_once_of_tenant is not None

    async def accept(self, turn: TurnRow, *, idle: bool) -> bool:
        """Count a prompt that is about to be recorded. ``False``: there was nothing to ask, and no time has passed.

        Args:
            idle: Nothing is before it in its session, so that it may have its place at once, if there is one.

        Raises:
            RateLimited: It is one too many; `retry_after` says when it is not.
            Capacity: Too many wait already.
        """
        self.backlog.check(turn)  # before its rate is counted
        wants_place = idle and self._limits_places
        if not self.limits_rates and not wants_place:
            return False
        answer = await self._ask(turn, self._rates(turn), self._caps(turn) if wants_place else ())
        if answer is not None and answer.exceeded is not None:
            whose = "you" if answer.exceeded.name.count("/") > 1 else "your organisation"
            raise RateLimited(
                f"{answer.exceeded.limit} turns a minute are what {whose} may have, and they are spent",
                retry_after=answer.retry_after,
                limit=answer.exceeded.limit,
            )
        return True

    def withdraw(self, turn: TurnRow) -> None:
        """An accepted prompt comes to nothing, or its turn has ended: what it holds is given back."""
        place = self._placed.pop(turn.id, None)
        if place is not None:
            self._vacated.set()
            self._vacated = asyncio.Event()
            if self._later is not None and self._store is not None:
                self._later(self._give_back(self._store, turn.id, place), "vacate")

    async def _give_back(self, store: Limits, name: str, place: _Place) -> None:
        def wanted() -> bool:
            return self._incarnation() == place.incarnation

        await give_back(lambda: store.vacate(name, place.incarnation), wanted)
        if not place.sure:
            # The question may be on its way still, and be heard behind this.
            await asyncio.sleep(self._late)
            await give_back(lambda: store.vacate(name, place.incarnation), wanted)

    @property
    def limits_runtimes(self) -> bool:
        """Whether `hold_in` may wait."""
        return self._per_runtime is not None

    def free(self, turn: TurnRow) -> bool:
        """Whether `hold` would not wait."""
        return self.gate.free(turn.key.tenant, turn.author) and (not self._limits_places or turn.id in self._placed)

    @asynccontextmanager
    async def hold(self, turn: TurnRow) -> AsyncIterator[None]:
        """A running turn's place. Raises `Capacity`."""
        try:
            async with self.gate.hold(turn.key.tenant, turn.author):
                if self._limits_places and turn.id not in self._placed:
                    await self._wait_for_place(turn)
                self.backlog.leave(turn)
                yield
        finally:
            self.withdraw(turn)

    @asynccontextmanager
    async def hold_in(self, runtime: Runtime, turn: TurnRow) -> AsyncIterator[None]:
        """A place among the turns of the runtime that has the session. Raises `Capacity`."""
        if self._per_runtime is None:
            yield
            return
        gate = self._runtimes.get(runtime)
        if gate is None:
            ceilings = Ceilings(total=self._per_runtime)
            gate = FairGate(ceilings, timeout=self._timeout, what="the runtime of the session could not take the turn")
            self._runtimes[runtime] = gate
        async with gate.hold(turn.key.tenant, turn.author):
            yield

    async def _wait_for_place(self, turn: TurnRow) -> None:
        try:
            async with asyncio.timeout(self._timeout), self._at_the_head(turn):
                while True:
                    vacated = self._vacated
                    answer = await self._ask(turn, (), self._caps(turn))
                    if answer is None or answer.full is None:
                        return
                    # Jitter: the nodes shall not all look in the same moment.
                    pause = _LOOK_AGAIN * random.uniform(1, 2)  # noqa: S311
                    try:
                        async with asyncio.timeout(pause):
                            await vacated.wait()
                    except TimeoutError:
                        pass
        except TimeoutError:
            # These are free when turns of the tenant, or the user, end anywhere; what is known is how many end here.
            user = turn.author if self._limits.at_once is not None else None
            ahead = self._heads.get(self._head(turn), (None, 0))[1]
            raise RateLimited(
                f"no turn could be started within {self._timeout:g} s: too many are running in all nodes",
                retry_after=self.gate.estimate(ahead, turn.key.tenant, user),
            ) from None

    @asynccontextmanager
    async def _at_the_head(self, turn: TurnRow) -> AsyncIterator[None]:
        """First come, first served, among those of this node that wait behind the same cap."""
        name = self._head(turn)
        lock, users = self._heads.get(name, (asyncio.Lock(), 0))
        self._heads[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            users = self._heads[name][1] - 1
            if users:
                self._heads[name] = (lock, users)
            else:
                del self._heads[name]

    def _head(self, turn: TurnRow) -> str:
        return f"{turn.key.tenant}/{turn.author}" if self._limits.at_once is not None else turn.key.tenant

    async def _ask(self, turn: TurnRow, rates: Sequence[Rate], caps: Sequence[Cap]) -> Admission | None:
        """Takes the place under the caps, if there are any. ``None``: the store is away, and the limits are open."""
        assert self._store is not None
        incarnation = self._incarnation()
        answer: Admission | None = None
        try:
            async with asyncio.timeout(_DEADLINE):
                answer = await self._store.admit(turn.id, incarnation, rates=rates, caps=caps)
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("limits.open", reason=str(error) or "no answer in time")
        except asyncio.CancelledError:
            if caps:
                self._placed[turn.id] = _Place(incarnation, sure=False)
                self.withdraw(turn)
            raise
        if caps and (answer is None or (answer.exceeded is None and answer.full is None)):
            self._placed[turn.id] = _Place(incarnation, sure=answer is not None)
        return answer

    def _rates(self, turn: TurnRow) -> list[Rate]:
        # A slash is in no name of a tenant or user.
        tenant, limits = turn.key.tenant, self._limits
        rates = []
        if limits.per_minute is not None:
            rates.append(Rate(f"turns/{tenant}/{turn.author}", limits.per_minute, _MINUTE))
        if limits.per_minute_of_tenant is not None:
            rates.append(Rate(f"turns/{tenant}", limits.per_minute_of_tenant, _MINUTE))
        return rates

    def _caps(self, turn: TurnRow) -> list[Cap]:
        tenant, limits = turn.key.tenant, self._limits
        caps = []
        if limits.at_once is not None:
            caps.append(Cap(f"running/{tenant}/{turn.author}", limits.at_once))
        if limits.at_once_of_tenant is not None:
            caps.append(Cap(f"running/{tenant}", limits.at_once_of_tenant))
        return caps
