"""How a node leaves: it takes no new work, lets running turns end, and hands its sessions over.

Clients and readers are told to go as soon as nothing of theirs is under way. Whoever asks for it second waits for the
first.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.config.settings import Settings
from aerodrome.gateway.server import Gateway
from aerodrome.peers.sessions import ClusterSessions
from aerodrome.sessions.service import SessionService

log = structlog.get_logger(__name__)

#: Seconds between two looks whether the callers of a node that drains have got their answers.
_LOOK = 0.05


class Drain:
    """Args:
    tasks: It is one of these.
    asked: Set when an operator has asked for it; the process may end behind it.
    """

    def __init__(self, settings: Settings, sessions: SessionService, tasks: TaskOwner, asked: asyncio.Event) -> None:
        self._server = settings.server
        self._sessions = sessions
        self._tasks = tasks
        self._asked = asked
        self._gateway: Gateway | None = None
        #: What callers of the HTTP API have other nodes do for them, if it is served.
        self.forwarded: ClusterSessions | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        return self._task is not None

    def opened(self, gateway: Gateway) -> None:
        """There are clients from here on."""
        self._gateway = gateway

    def ask(self) -> None:
        """An operator wants it. A node that is not at work yet ends without."""
        self._asked.set()
        if self._gateway is not None and self._task is None and not self._tasks.closed:
            self._begin(self._gateway)

    async def run(self) -> None:
        """Returns when it is over; takes up to `server.drain_timeout`, and `server.drain_delay` before that, in which
        the node only says that it is not ready."""
        assert self._gateway is not None
        await asyncio.shield(self._task or self._begin(self._gateway))

    def _begin(self, gateway: Gateway) -> asyncio.Task[None]:
        self._task = self._tasks.start(self._run(gateway), "drain")
        return self._task

    async def _run(self, gateway: Gateway) -> None:
        if self._server.drain_delay:
            log.info("node.leaving", seconds=self._server.drain_delay)
            await asyncio.sleep(self._server.drain_delay)
        log.info("node.draining", sessions=len(self._sessions.live))
        letting_go = self._tasks.start(gateway.let_go(), "let clients go")
        deadline = asyncio.get_running_loop().time() + self._server.drain_timeout
        try:
            await self._sessions.drain(self._server.drain_timeout)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._others_quiet(gateway)
        finally:
            letting_go.cancel()
        log.info("node.drained")

    async def _others_quiet(self, gateway: Gateway) -> None:
        """Returns when nobody who is connected to this node waits for what another one runs."""
        await gateway.quiet()
        while self.forwarded is not None and self.forwarded.waits:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(_LOOK)
