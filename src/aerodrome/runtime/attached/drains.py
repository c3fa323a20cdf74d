"""Servers that an operator has drained: they stay attached, and whose they are, and hold no sessions.

That is for all nodes, and stands in the store: whoever is about to restart a machine means the server, and not what one
node has of it. It ends when the server is undrained, or detached. Its sessions leave it as they become idle, and those
in a turn when that ends, however long that takes: an operator who drains is in no hurry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.errors import Conflict
from aerodrome.runtime.attached.ports import AttachStore, Fleet
from aerodrome.runtime.attached.runtime import AttachedRuntime
from aerodrome.runtime.attached.server import AttachedServer

log = structlog.get_logger(__name__)

#: Seconds between two looks at what a server still holds, here and at other nodes.
_LOOK = 1.0


class Drains:
    """Args:
    server: Finds the server of an endpoint, while it is attached.
    move: Takes the sessions out of a runtime that are idle now; ``False``: there was none.
    change: Waits until something has changed, and no longer than so many seconds.
    fleet: ``None``: there are no other nodes.
    """

    def __init__(
        self,
        store: AttachStore,
        fleet: Fleet | None,
        tasks: TaskOwner,
        *,
        server: Callable[[str], AttachedServer | None],
        move: Callable[[AttachedRuntime], Awaitable[bool]],
        change: Callable[[float], Awaitable[None]],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._tasks = tasks
        self._server = server
        self._move = move
        self._change = change
        #: Endpoints.
        self.drained: frozenset[str] = frozenset()
        self._emptying: set[str] = set()
        #: One look at a time: what an earlier one has seen may come behind what a later one has.
        self._looking = asyncio.Lock()
        #: Has the other nodes look at the store soon.
        self.announce: Callable[[str], None] = lambda endpoint: None

    def __contains__(self, server: AttachedServer) -> bool:
        return server.name in self.drained

    async def look(self) -> None:
        """Look again at the store. Raises `StoreUnavailable`, and what was known stays so."""
        async with self._looking:
            before, self.drained = self.drained, await self._store.drained()
        for name in before - self.drained:
            log.info("runtime.undrained", server=name)
            if (server := self._server(name)) is not None and server.runtime is not None:
                server.runtime.serve()
        for name in self.drained - self._emptying:
            if self._holds(name):
                self._emptying.add(name)
                self._tasks.start(self._empty(name), f"empty {name}")

    async def drain(self, server: AttachedServer) -> None:
        """Drain a server, and return when no node has a session on it.

        Raises:
            Conflict: It was undrained meanwhile.
            StoreUnavailable: What was begun goes on.
        """
        log.info("runtime.draining", server=server.name, address=server.entry.address)
        await self._store.drain(server.name, server.entry.address)
        self.announce(server.name)
        await self.look()
        while self._holds(server.name) or not await self._empty_everywhere(server.name):
            if server.name not in self.drained:
                raise Conflict(f"{server.name} was undrained before all sessions had left it")
            await self._change(_LOOK)
        log.info("runtime.drained", server=server.name)

    async def _empty_everywhere(self, name: str) -> bool:
        return self._fleet is None or await self._fleet.has_drained(name)

    def _holds(self, name: str) -> bool:
        server = self._server(name)
        return server is not None and server.runtime is not None and server.runtime.reserved > 0

    async def _empty(self, name: str) -> None:
        try:
            while name in self.drained and self._holds(name):
                server = self._server(name)
                assert server is not None
                assert server.runtime is not None
                server.runtime.retire()
                if not await self._move(server.runtime):
                    await self._change(_LOOK)
        finally:
            self._emptying.discard(name)
