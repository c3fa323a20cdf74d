"""What becomes of a client's request that the router leaves to the shell: it is answered here, or finds the runtime or
the node that has its session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from aerodrome.errors import AerodromeError, RuntimeUnavailable, SessionBusy, SessionElsewhere
from aerodrome.gateway.commands import Request, release
from aerodrome.gateway.order import IN_ORDER, Order, Position
from aerodrome.gateway.problems import INTERNAL_ERROR, problem_of
from aerodrome.gateway.router import ASK_THE_MODEL
from aerodrome.gateway.tracing import traced
from aerodrome.model import Role
from aerodrome.peers.link import PeerGone
from aerodrome.peers.shapes import SessionMoved
from aerodrome.policy.methods import Handling
from aerodrome.sessions.live import LiveSession
from aerodrome.wire import envelope

if TYPE_CHECKING:
    from aerodrome.gateway.client import GatewayClient

log = structlog.get_logger(__name__)

#: How often a request is taken to another runtime when the one it was meant for goes away under it.
_ATTEMPTS = 3
#: How often other nodes may give a request back.
_RETURNS = 20


class Requests:
    """Those of one client."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client
        self._order = Order()

    def serve(self, request: Request) -> None:
        """Answer what a gateway answers itself."""
        client = self._client
        try:
            frame = client.gateway.answers.at_once(client, request)
        except AerodromeError as error:  # nobody above us would answer the client
            client.gateway.telemetry.meter.rejected("gateway", error.code)
            frame = problem_of(request, error)
        if frame is not None:
            client.run(client.router.answered(request, frame), flush=False)
        elif request.method in IN_ORDER and (session_id := envelope.session_of(request.params)) is not None:
            client.start(self._handle_in_order(request, self._order.join(session_id)), request.method)
        else:
            self.handle(request)

    def handle(self, request: Request) -> None:
        """Answer the request here, or see that the runtime or node answers it that has its session."""
        self._client.start(self._handle(request), request.method)

    async def _handle_in_order(self, request: Request, position: Position) -> None:
        request.on_taken_up = position.leave
        try:
            await position.reached()
            await self._handle(request)
        finally:
            position.leave()

    async def _handle(self, request: Request) -> None:
        client, telemetry = self._client, self._client.gateway.telemetry
        try:
            with traced(telemetry.tracer, request):
                frame = await self._where_it_runs(request)
        except AerodromeError as error:
            telemetry.meter.rejected("gateway", error.code)
            frame = problem_of(request, error)
        except Exception:
            telemetry.meter.rejected("gateway", AerodromeError.code)
            log.exception("gateway.request_failed", method=request.method)
            frame = envelope.error_frame(request.id, INTERNAL_ERROR, f"{request.method} failed")
        if frame is not None:
            client.run(client.router.answered(request, frame))
            if client.is_node:
                client.gateway.hand_over(client)

    async def _where_it_runs(self, request: Request) -> bytes | None:
        """The answer's frame; ``None``: it comes by itself. Raises `AerodromeError`."""
        client, loop = self._client, asyncio.get_running_loop()
        give_up = loop.time() + client.gateway.patience
        # A request that has come back is at least its second try.
        tries = request.returned
        while True:
            if tries:
                await asyncio.sleep(min(0.02 * 2 ** min(tries, 6), 0.5))
            if request.returned > _RETURNS:
                # It drains, say, and keeps the session for a turn that takes long.
                raise SessionBusy("the node that runs the session takes nothing new; try again", retry_after=1.0)
            try:
                if await client.away.takes(request):
                    return None
                if request.rule.handling is Handling.GATEWAY:
                    return await client.gateway.answers.answer(client, request)
                await self._place(request)
                return None
            except (SessionElsewhere, PeerGone) as error:
                log.debug("gateway.session_elsewhere", method=request.method, reason=error.detail)
                release(request)  # each try holds what it needs, and the next may be for another node
                if client.relayed:
                    raise SessionMoved("the session runs on another node") from error
                if loop.time() >= give_up:
                    raise SessionBusy("the session is moving between nodes; try again", retry_after=1.0) from error
                tries += 1

    async def _place(self, request: Request) -> None:
        """Send the request to the runtime that holds its session, after loading it if need be. Its answer goes to the
        client by itself.

        Raises:
            AerodromeError: It cannot be.
        """
        if request.session_id is None:
            await self._place_anywhere(request)
            return
        client, sessions = self._client, self._client.gateway.sessions.native
        least = request.rule.role or Role.READER
        leaving = client.relayed and request.method not in ASK_THE_MODEL
        live = await sessions.session(client.who, request.session_id, least, leaving=leaving)
        live.hold()
        request.on_done = lambda: self._release(live, request)
        if request.method in ASK_THE_MODEL:
            give_back = await sessions.turn_slot(client.who)
            request.on_done = lambda: self._release(live, request, give_back)
        for attempt in range(_ATTEMPTS):
            try:
                activation = await live.awake()
                link = await client.link_to(activation.runtime)
                if link.connection.closed:
                    raise RuntimeUnavailable("the connection to the runtime has gone again")
            except RuntimeUnavailable:
                if attempt + 1 == _ATTEMPTS:
                    raise
                continue
            sessions.still_allowed(client.who, live, least)
            client.run(client.router.send(request, link.id))
            return

    async def _place_anywhere(self, request: Request) -> None:
        client = self._client
        runtime = await client.gateway.sessions.native.borrow(client.who)
        request.on_done = lambda: client.gateway.sessions.native.give_back(runtime)
        link = await client.link_to(runtime)
        if link.connection.closed:
            raise RuntimeUnavailable("the connection to the runtime has gone again")
        client.run(client.router.send(request, link.id))

    def _release(self, live: LiveSession, request: Request, also: Callable[[], None] = lambda: None) -> None:
        also()
        live.release(used=request.rule.uses)
        self._client.gateway.sessions.native.let_go(live)
