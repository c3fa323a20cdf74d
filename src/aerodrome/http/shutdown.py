"""How long-lived responses learn that the server stops, in two steps.

Event streams of sessions have no natural end, so they are told to go at once (`draining`): their readers
resume elsewhere with `Last-Event-ID` and lose nothing. Turns get the grace period to finish; those that have
not are answered with a problem at its end (`expired`). The turn itself is not touched: what becomes of it is
for the sessions room to say.
"""

from __future__ import annotations

from collections.abc import Callable


class Signal:
    """Something that happens once, with callbacks instead of waiters.

    An `asyncio.Event` would cost each of thousands of idle streams one more task.
    """

    def __init__(self) -> None:
        self._callbacks: set[Callable[[], None]] = set()
        self.is_set = False

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` when it happens, at once if it has. Returns the function that unsubscribes."""
        if self.is_set:
            callback()
            return lambda: None
        self._callbacks.add(callback)
        return lambda: self._callbacks.discard(callback)

    def set(self) -> None:
        self.is_set = True
        callbacks, self._callbacks = self._callbacks, set()
        for callback in callbacks:
            callback()


class Shutdown:
    def __init__(self) -> None:
        self.draining = Signal()
        self.expired = Signal()
