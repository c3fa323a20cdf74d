"""Looks at the runtimes of a pool every so often, and has those recycled that are worn out (`runtime.wear`)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.measure import ProcessUse, process_uses
from aerodrome.runtime.supervisor import ManagedRuntime
from aerodrome.runtime.wear import Reason, Wear, WearLimits, WearWatch

if TYPE_CHECKING:
    from aerodrome.runtime.pool import RuntimePool

log = structlog.get_logger(__name__)

#: How far below its limit a runtime may be recycled for what is counted: a fifth, each by another part of it.
_SPREAD = 0.2


#: What processes use, by their pids.
Measure = Callable[[Collection[int]], Mapping[int, ProcessUse]]


@dataclass(frozen=True, slots=True)
class RecycleOptions:
    """Times in seconds."""

    limits: WearLimits = field(default_factory=WearLimits)
    interval: float = 15.0
    #: Runtimes that are recycled for wear at the same time. Those for something measured do not wait for those for
    #: something counted, which may take as long as a turn.
    at_once: int = 1
    #: How long a recycled runtime may go on with turns that were running.
    patience: float = 1800.0


class Recycler:
    def __init__(self, pool: RuntimePool, options: RecycleOptions, measure: Measure = process_uses) -> None:
        self._pool = pool
        self._options = options
        self._measure = measure
        self._watches: dict[str, WearWatch] = {}
        #: What was begun for wear. What an operator drains does not count: it may take as long as a turn.
        self._recycling: dict[asyncio.Task[None], Reason] = {}

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self._options.interval)
            try:
                await self.look()
            except Exception:
                log.exception("runtime.look_failed")  # and the next one may go well

    async def look(self) -> None:
        """One round: measure all, and begin with the most pressing, as many as may go at once."""
        retirements = self._pool.retirements
        candidates = [
            runtime
            for runtime in self._pool.runtimes
            if runtime.state in (RuntimeState.WARM, RuntimeState.CLAIMED) and not retirements.has(runtime)
        ]
        self._watches = {r.id: self._watches.get(r.id) or self._watch() for r in candidates}
        uses = await asyncio.to_thread(self._measure, [r.pid for r in candidates if r.pid is not None])
        worn: list[tuple[Reason, ManagedRuntime, Wear]] = []
        for runtime in candidates:
            wear = _wear(runtime, uses.get(runtime.pid or 0, ProcessUse()))
            if (reason := self._watches[runtime.id].look(wear, runtime.replaces)) is not None:
                worn.append((reason, runtime, wear))
        order = list(Reason)
        for reason, runtime, wear in sorted(worn, key=lambda found: order.index(found[0])):
            # The most pressing first: who comes behind one that has to wait has to wait, too.
            if len(self._before(reason)) >= self._options.at_once:
                return
            if runtime.state in (RuntimeState.WARM, RuntimeState.CLAIMED):  # and was not lost while we looked
                log.info("runtime.worn", runtime=runtime.id, key=str(runtime.key), reason=reason.value, **_told(wear))
                task = retirements.begin_recycling(runtime, reason.value)
                self._recycling[task] = reason
                task.add_done_callback(self._recycling.pop)

    def _before(self, reason: Reason) -> list[Reason]:
        """What is under way that this one has to wait for."""
        return [other for other in self._recycling.values() if reason.is_counted or not other.is_counted]

    def _watch(self) -> WearWatch:
        return WearWatch(self._options.limits, spread=1.0 - random.uniform(0.0, _SPREAD))  # noqa: S311 - no secret


def _wear(runtime: ManagedRuntime, use: ProcessUse) -> Wear:
    runtime.memory = use.memory or runtime.memory
    return Wear(
        turns=runtime.turns,
        age=time.monotonic() - runtime.started,
        memory=use.memory,
        descriptors=use.descriptors,
        descriptor_limit=use.descriptor_limit,
        children=use.children,
        latency=runtime.latency.compared,
    )


def _told(wear: Wear) -> dict[str, object]:
    told = {"turns": wear.turns, "age": round(wear.age), "memory": wear.memory, "descriptors": wear.descriptors}
    return {**told, "children": wear.children, "latency": wear.latency}
