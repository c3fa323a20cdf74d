"""Who wants to hear of cluster events at this node."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from aerodrome.coordination.ports import ClusterEvent

log = structlog.get_logger(__name__)

Callback = Callable[[ClusterEvent], None]


class Listeners:
    """Args:
    on_first: Called when there is somebody after there was nobody.
    on_none: Called when there is nobody any more.
    """

    def __init__(self, on_first: Callable[[], None] | None = None, on_none: Callable[[], None] | None = None) -> None:
        self._on_first = on_first
        self._on_none = on_none
        #: By a number of our own: the same function may listen twice.
        self._callbacks: dict[int, Callback] = {}
        self._next = 0

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def add(self, callback: Callback) -> Callable[[], None]:
        """Returns what takes it out again; that may be called twice."""
        number, self._next = self._next, self._next + 1
        self._callbacks[number] = callback
        if len(self._callbacks) == 1 and self._on_first is not None:
            self._on_first()

        def remove() -> None:
            if self._callbacks.pop(number, None) is not None and not self._callbacks and self._on_none is not None:
                self._on_none()

        return remove

    def tell(self, event: ClusterEvent) -> None:
        """Call everybody. One that fails is logged, and keeps nobody else from hearing."""
        for callback in list(self._callbacks.values()):
            try:
                callback(event)
            except Exception:
                log.exception("coordination.listener_failed", kind=event.kind)
