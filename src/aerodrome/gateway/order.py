"""The order in which the requests of one client that concern one session are taken up.

Each needs several looks into stores until its place is certain, in the queue of prompts, say, and stores answer in any
order. A client that does not wait for one answer before it asks for the next thing means the order in which it has
asked. The CLI keeps it mostly; here it is kept always.
"""

from __future__ import annotations

import asyncio

#: What has to be taken up in order, of that which a gateway answers itself. An abort goes ahead: it must not wait for
#: a prompt that is held up.
IN_ORDER = frozenset(
    {
        *("session.create", "session.resume", "session.send"),
        *("session.detach", "session.destroy", "session.delete"),
    }
)


class Position:
    """In the line of a session's requests."""

    def __init__(self, before: asyncio.Future[None] | None) -> None:
        self._before = before
        self.left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def reached(self) -> None:
        """Returns when all before it have been taken up, or have failed."""
        if self._before is not None and not self._before.done():
            await asyncio.wait({self._before})

    def leave(self) -> None:
        """The request is taken up: whatever comes behind it comes behind it. May be said twice."""
        if not self.left.done():
            self.left.set_result(None)


class Order:
    """Of one client's requests."""

    def __init__(self) -> None:
        self._last: dict[str, asyncio.Future[None]] = {}

    def join(self, session_id: str) -> Position:
        """A position at the end of the session's line. To be left, whatever happens."""
        position = Position(self._last.get(session_id))
        self._last[session_id] = position.left
        position.left.add_done_callback(lambda left: self._forget(session_id, left))
        return position

    def _forget(self, session_id: str, left: asyncio.Future[None]) -> None:
        if self._last.get(session_id) is left:
            del self._last[session_id]
