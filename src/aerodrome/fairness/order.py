"""Self-clocked fair queueing of named flows. Pure.

A flow is served in *virtual* time: a service takes it 1 / weight. When it becomes ready, and after each service, its
tag is the virtual time at which its next service would end if that began now. The smallest tag is next, and is then the
virtual now. So flows that stay ready are served in proportion to their weights, never further apart than one service
of each; one that was away has saved nothing up, and one that was alone owes nothing; and a flow that waits is served
after a bounded number of others, also when ever new ones come, because each of those begins at the now to which the one
before has moved the clock (Golestani, A self-clocked fair queueing scheme, 1994).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

#: Entries that hold no more, beside as many as hold, before they are looked for.
_SPENT = 64


class FairOrder:
    """Args:
    weight: Of a flow; greater than 0.
    """

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._now = 0.0
        #: The flows that are ready: tag, and which of equal tags came first.
        self._ready: dict[str, tuple[float, int]] = {}
        #: The same in order, and entries that hold no more.
        self._heap: list[tuple[float, int, str]] = []
        self._entries = 0

    def __bool__(self) -> bool:
        """Whether any flow is ready."""
        return bool(self._ready)

    def is_ready(self, flow: str) -> bool:
        return flow in self._ready

    def set_ready(self, flow: str, ready: bool) -> None:
        """Say whether the flow has somebody who may be served now. Saying it again changes nothing."""
        if ready and flow not in self._ready:
            self._enter(flow)
        elif not ready and self._ready.pop(flow, None) is not None and not self._ready:
            # Nobody waits: what was before matters to nobody.
            self._now, self._entries = 0.0, 0
            self._heap.clear()

    def first(self) -> str | None:
        """The flow that is next; ``None`` when none is ready."""
        while self._heap:
            tag, entry, flow = self._heap[0]
            if self._ready.get(flow) == (tag, entry):
                return flow
            heapq.heappop(self._heap)
        return None

    def serve(self, flow: str) -> None:
        """Count one service of the flow that is first. It stays ready."""
        self._now, _ = self._ready.pop(flow)
        self._enter(flow)

    def before(self, flow: str, other: str, services: int = 0) -> int:
        """How many services the other flow, which is ready, has before `flow`, ready or not, has had so many and one
        more, if nothing else changes. Equal tags count as in the order in which the flows became ready."""
        tag, entry = self._ready.get(flow) or self._next(flow)
        others_tag, others_entry = self._ready[other]
        lead = (tag + services / self._weight(flow) - others_tag) * self._weight(other)
        return max(0, math.ceil(lead)) if lead else int(others_entry < entry)

    def copy(self) -> FairOrder:
        """To look ahead with."""
        other = FairOrder(self._weight)
        other._now, other._entries = self._now, self._entries
        other._ready, other._heap = dict(self._ready), list(self._heap)
        return other

    def _enter(self, flow: str) -> None:
        entry = self._ready[flow] = self._next(flow)
        self._entries += 1
        heapq.heappush(self._heap, (*entry, flow))
        if len(self._heap) > 2 * len(self._ready) + _SPENT:
            # Of flows that have come and gone behind one that waits.
            self._heap = [(tag, entry, flow) for flow, (tag, entry) in self._ready.items()]
            heapq.heapify(self._heap)

    def _next(self, flow: str) -> tuple[float, int]:
        return self._now + 1.0 / self._weight(flow), self._entries
