"""The node's side of another node's own connection: the work of HTTP callers over there (`peers.shapes`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog
from msgspec import UNSET, Raw, UnsetType

from aerodrome._util.tasks import TaskOwner, first_of
from aerodrome.coordination.ports import Node
from aerodrome.errors import AerodromeError, Invalid, SessionElsewhere
from aerodrome.model import Principal, Role, SessionKey
from aerodrome.peers import shapes
from aerodrome.peers.liveness import Liveness
from aerodrome.runtime.frames import FrameConnection
from aerodrome.runtime.link import Link, LinkClosed, RequestRefused
from aerodrome.sessions.api import EventStream, Lagging
from aerodrome.sessions.run import TurnRun
from aerodrome.sessions.service import SessionService
from aerodrome.telemetry.trace import TraceContext, within
from aerodrome.wire import envelope
from aerodrome.wire.envelope import is_json

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Requests of another node that are served at the same time.
_MAX_INBOUND = 1024
#: Seconds in which the other node says whether it wants the events of a turn that has ended; it does so at once.
_SAY_WHETHER = 5.0
#: Seconds for telling of turns that have ended when this node goes.
_LAST_WORDS = 2.0


class _Request(msgspec.Struct):
    who: dict[str, Any]
    session: str
    #: The other node has not asked the store who runs the session.
    remembered: bool = False
    stream: int = 0
    message: dict[str, Any] | None = None
    #: Where in a trace the caller stands; nodes of releases before 0.2 say nothing of it.
    trace: dict[str, Any] = msgspec.field(default_factory=dict)
    after: str | None = None
    #: Id of a turn: only its events, and until it ends.
    turn: str = ""
    name: str = ""
    arguments: list[Any] = msgspec.field(default_factory=list)


class _About(msgspec.Struct):
    stream: int
    events: bool = False


class _TurnStream:
    def __init__(self, run: TurnRun, reader: str) -> None:
        self.run = run
        self.reader = reader
        #: From its admission on; whether they are wanted is said a moment later.
        self.events = run.events(reader)
        self.wanted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        #: Tells the other node of it.
        self.telling: asyncio.Task[None] | None = None

    def follow(self, wanted: bool) -> None:
        if not self.wanted.done():
            self.wanted.set_result(wanted)
        if not wanted:
            self.events.close()


class PeerServer:
    """Args:
    moved: The node that runs a session now, if it is another one.
    peer: Name of the node at the other end, for the log.
    silence: Seconds in which nothing is heard of it, and after which it is held for gone.
    on_closed: Called once.
    """

    def __init__(
        self,
        connection: FrameConnection,
        sessions: SessionService,
        *,
        moved: Callable[[SessionKey], Awaitable[Node | None]],
        peer: str,
        silence: float,
        on_closed: Callable[[PeerServer], None],
    ) -> None:
        self._sessions = sessions
        self._moved = moved
        self._peer = peer
        self._on_closed = on_closed
        self._turns: dict[int, _TurnStream] = {}
        self._events: dict[int, EventStream] = {}
        #: Of these, the turns whose link was lost before, and that are followed by this one now.
        self._rejoined: dict[int, TurnRun] = {}
        #: Streams that are being begun, and what the other node has said of them meanwhile: that it wants them no more.
        self._starting: dict[int, str | None] = {}
        self._tasks = TaskOwner("peer server")
        self._link = Link(self, max_inbound=_MAX_INBOUND, connection=connection)
        Liveness(connection, silence)

    async def aclose(self) -> None:
        # What has ended is told to its end: the events of a turn are nowhere else.
        telling = [turn.telling for turn in self._turns.values() if turn.telling is not None and turn.run.ended]
        if telling and not self._link.closed:
            await asyncio.wait(telling, timeout=_LAST_WORDS)
        await self._link.aclose()
        await self._tasks.aclose()

    # --- LinkHandler ---

    async def on_request(self, method: str, params: Raw | UnsetType) -> Any:
        if method == shapes.PING:
            return {"value": {"time": time.time()}}
        number = 0
        try:
            request = _decode(params, _Request)
            if number := request.stream:
                self._starting[number] = None
            who = shapes.principal_of(request.who)
            if method == shapes.SEND:
                with within(TraceContext.parse(request.trace.get("traceparent"), request.trace.get("tracestate"))):
                    return {"value": await self._send(who, request)}
            if method == shapes.EVENTS:
                return {"value": await self._subscribe(who, request)}
            if method == shapes.CALL:
                return {"value": await self._call(who, request)}
        except SessionElsewhere as error:
            return {"error": shapes.error_to_wire(shapes.SessionMoved(error.detail))}  # lost the race for it
        except AerodromeError as error:
            return {"error": shapes.error_to_wire(error)}
        finally:
            self._starting.pop(number, None)
        raise RequestRefused(envelope.METHOD_NOT_FOUND, method)

    def on_notification(self, method: str, params: Raw | UnsetType) -> None:
        # Behind the requests before it, which are served in tasks of their own.
        asyncio.get_running_loop().call_soon(self._hear, method, _decode(params, _About))

    def _hear(self, method: str, about: _About) -> None:
        turn = self._turns.get(about.stream)
        if method in (shapes.ABANDON, shapes.CLOSE) and about.stream in self._starting:
            self._starting[about.stream] = self._starting[about.stream] or method
        if method == shapes.FOLLOW and turn is not None:
            turn.follow(about.events)
        elif method == shapes.ABANDON:
            run = turn.run if turn is not None else self._rejoined.get(about.stream)
            if run is not None:
                run.abandon()
        elif method == shapes.CLOSE:
            if turn is not None:
                turn.follow(False)
            if (events := self._events.pop(about.stream, None)) is not None:
                events.close()

    def on_oversized(self, session_id: str | None, complaint: str) -> None:
        log.error("peers.oversized", node=self._peer, reason=complaint)

    def on_closed(self, reason: str) -> None:
        # Its callers may still be there and find the outcomes in the ledger: a turn is not abandoned for that.
        for turn in self._turns.values():
            turn.follow(False)
        for events in self._events.values():
            events.close()
        self._turns.clear()
        self._events.clear()
        log.info("peers.node_disconnected", node=self._peer, reason=reason)
        self._on_closed(self)

    # --- turns ---

    async def _send(self, who: Principal, request: _Request) -> Any:
        await self._must_be_here(who, request)
        message = shapes.message_of(request.message)
        run = await self._sessions.send(who, request.session, message)
        stream = _TurnStream(run, who.user)
        if self._starting.get(request.stream) == shapes.ABANDON:
            run.abandon()
        if self._unwanted(request.stream):
            stream.follow(False)
            return None
        self._turns[request.stream] = stream
        stream.telling = self._tasks.start(self._tell_turn(request.stream, stream), "tell turn", expected=LinkClosed)
        return shapes.to_wire(run.row)

    async def _tell_turn(self, number: int, stream: _TurnStream) -> None:
        over = asyncio.ensure_future(stream.run.over())
        try:
            await first_of(stream.wanted, over)
            if not stream.wanted.done():
                # It has ended before the other node could say so, which is no reason to keep its events back.
                await asyncio.wait({stream.wanted}, timeout=_SAY_WHETHER)
            try:
                told = True
                if stream.wanted.done() and stream.wanted.result():
                    told = await self._tell_events(number, stream.events)
                row = await stream.run.wait(stream.reader)
                ended = shapes.Ended(number, row=shapes.to_wire(row), lagging=not told)
            except AerodromeError as error:
                ended = shapes.Ended(number, error=shapes.error_to_wire(error))
            await self._link.notify(shapes.ENDED, ended)
        finally:
            over.cancel()
            stream.events.close()
            self._turns.pop(number, None)

    def _unwanted(self, number: int) -> bool:
        return self._link.closed or self._starting.get(number) is not None

    # --- events ---

    async def _subscribe(self, who: Principal, request: _Request) -> bool:
        """``False``: of a turn that is not under way here."""
        await self._must_be_here(who, request)
        events: EventStream
        run: TurnRun | None = None
        if request.turn:
            found = await self._sessions.reading.turn_events(who, request.session, request.turn, after=request.after)
            if found is None:
                return False
            run, events = found
        else:
            events = await self._sessions.events_elsewhere(who, request.session, after=request.after)
        if run is not None and self._starting.get(request.stream) == shapes.ABANDON:
            run.abandon()
        if self._unwanted(request.stream):
            events.close()
            return True
        self._events[request.stream] = events
        if run is not None:
            self._rejoined[request.stream] = run
        self._tasks.start(self._tell_all(request.stream, events), "tell events", expected=LinkClosed)
        return True

    async def _tell_all(self, number: int, events: EventStream) -> None:
        try:
            try:
                ended = shapes.Ended(number, lagging=not await self._tell_events(number, events))
            except AerodromeError as error:
                ended = shapes.Ended(number, error=shapes.error_to_wire(error))
            await self._link.notify(shapes.ENDED, ended)
        finally:
            events.close()
            self._events.pop(number, None)
            self._rejoined.pop(number, None)

    async def _tell_events(self, number: int, events: EventStream) -> bool:
        """``False``: the other node did not keep up."""
        try:
            async for event in events:
                if event.is_trace and not is_json(event.raw):
                    continue  # nobody has looked at it, and it would be a part of a message of ours
                await self._link.notify(shapes.TOLD, shapes.Told(number, shapes.event_to_wire(event)))
        except Lagging:
            return False
        return True

    # --- what is done at once ---

    async def _call(self, who: Principal, request: _Request) -> Any:
        await self._must_be_here(who, request)
        sessions, session = self._sessions, request.session
        match request.name, request.arguments:
            case "retitle", [str(title)]:
                return shapes.to_wire(await sessions.retitle(who, session, title))
            case "set_member", [str(user), str(role)]:
                return shapes.to_wire(await sessions.set_member(who, session, user, _role(role)))
            case "remove_member", [str(user)]:
                return await sessions.remove_member(who, session, user)
            case "delete", []:
                return await sessions.delete(who, session)
            case "abort", []:
                return await sessions.abort(who, session)
            case "answer", [str(request_id), dict(answer)]:
                return await sessions.answer(who, session, request_id, answer)
        raise Invalid(f"no call {request.name!r}: the nodes run different versions")

    async def _must_be_here(self, who: Principal, request: _Request) -> None:
        """Raises `SessionMoved`: another node runs it, or may have it, which the one that asks has to find out."""
        key = SessionKey(who.tenant, request.session)
        moved = not self._sessions.holds(key) if request.remembered else await self._moved(key) is not None
        if moved:
            raise shapes.SessionMoved("the session has moved to another node")


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        raise Invalid(f"no role {name!r}: the nodes run different versions") from None


def _decode(params: Raw | UnsetType, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(b"{}" if params is UNSET else params, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"another node sends what cannot be read: {error}") from error
