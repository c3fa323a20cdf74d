"""Whether this node takes work now: not while it drains, and not while its leases may be others'."""

from __future__ import annotations

from aerodrome.errors import Draining, StoreUnavailable
from aerodrome.model import SessionKey
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.registry import LiveSessions


class Serving:
    def __init__(self, context: SessionContext, sessions: LiveSessions) -> None:
        self._context = context
        self._sessions = sessions
        #: Nothing new is taken any more.
        self.draining = False

    async def wait(self) -> None:
        """Wait for the coordination store as long as may be. Raises as `check`."""
        if not self.draining:
            await self._context.serving()
        self.check()

    def check(self) -> None:
        """
        Raises:
            Draining, StoreUnavailable: This node takes no work now.
        """
        self.check_draining()
        if not self._context.may_serve():
            raise StoreUnavailable("this node cannot reach its coordination store", retry_after=1.0)

    def check_draining(self) -> None:
        """Raises `Draining`."""
        if self.draining:
            raise _shutting_down()

    def is_loaded(self, key: SessionKey) -> bool:
        """Whether the session is loaded here, under a lease that holds."""
        live = self._sessions.find(key)
        return live is not None and live.loaded is not None and self._context.may_serve()

    def still_here(self, key: SessionKey) -> None:
        """Raises `Draining`: the session has left this node, which does."""
        if not self.is_loaded(key):
            raise _shutting_down()


def _shutting_down() -> Draining:
    return Draining("this node is shutting down; try again", retry_after=1.0)
