"""One connected client: the shell around `gateway.router`.

What the router decides is done here: frames are written, links to runtimes opened, sessions loaded. Flow is controlled
in both directions. While the client does not take what is there for it, nothing more is read from its runtimes, nor
from itself; after a while, or past a number of bytes, it is cut off. While a runtime does not take what the client
sends, the client is not read. Nobody else waits for either.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.ports import Node
from aerodrome.errors import (
    AerodromeError,
    Capacity,
    Draining,
    NotFound,
    RuntimeUnavailable,
    SessionBusy,
    SessionElsewhere,
)
from aerodrome.gateway.attachment import NativeAttachment
from aerodrome.gateway.away import AwaySessions
from aerodrome.gateway.bindings import NODE_LINK
from aerodrome.gateway.bodies import read
from aerodrome.gateway.commands import (
    Changed,
    Command,
    Gone,
    Moved,
    Place,
    Relayed,
    Request,
    Serve,
    ToClient,
    Told,
    ToOwn,
    ToRuntime,
)
from aerodrome.gateway.links import ClientLinks
from aerodrome.gateway.order import IN_ORDER, Order, Position
from aerodrome.gateway.problems import INTERNAL_ERROR
from aerodrome.gateway.router import ASK_THE_MODEL, Router, params_of, problem_of, release, result_of
from aerodrome.gateway.tracing import traced
from aerodrome.gateway.upstream import Upstream
from aerodrome.model import Principal, Role
from aerodrome.peers.link import PeerGone
from aerodrome.peers.shapes import SessionMoved
from aerodrome.policy.methods import Handling
from aerodrome.runtime.frames import FrameConnection
from aerodrome.runtime.link import RequestRefused
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions.live import LiveSession
from aerodrome.sessions.run import TurnRun
from aerodrome.telemetry.meter import Traffic
from aerodrome.wire import envelope

if TYPE_CHECKING:
    from aerodrome.gateway.server import Gateway

log = structlog.get_logger(__name__)

#: Bytes a second. A client that takes less of what waits for it is cut off: as long as it has not taken that, its
#: runtimes are not read for it.
_LEAST_RATE = 64 * 1024
#: Bytes of a frame from which on it is read in a thread.
_LARGE = 256 * 1024
#: How often a request is taken to another runtime when the one it was meant for goes away under it.
_ATTEMPTS = 3
#: How often other nodes may give a request back.
_RETURNS = 20


class GatewayClient:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        limits = gateway.limits
        self.connection = FrameConnection(
            self, max_frame=limits.stranger_frame, traffic=gateway.telemetry.client_traffic
        )
        self.router = Router(
            self._is_own,
            self._hold,
            max_requests=limits.max_requests,
            max_bytes=limits.request_bytes,
            stranger_bytes=limits.stranger_frame,
        )
        #: Set by `connect`.
        self.principal: Principal | None = None
        self.credential = ""
        #: What the client said of itself with `connect`, without its credential.
        self.hello: dict[str, Any] = {}
        #: Another node relays the connection: what it asks for is done here, or given back.
        self.relayed = False
        #: Set by `connect`: the connection is another node's own, and goes to whom this is called for.
        self.is_node = ""
        self.attachments: dict[str, NativeAttachment] = {}
        self.away = AwaySessions(self)
        self._order = Order()
        #: What we have asked the client ourselves.
        self._asked: dict[int, asyncio.Future[envelope.Message]] = {}
        self._runs: set[TurnRun] = set()
        self._tasks = TaskOwner("gateway client")
        self.links = ClientLinks(self._tasks, self._regulate)
        self._slow: asyncio.TimerHandle | None = None
        #: Bodies that wait for a large one before them to be read.
        self._unread: deque[bytes] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._left = False
        #: Done when nothing of the client is left.
        self.left: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def gone(self) -> bool:
        return self.connection.closed

    @property
    def idle(self) -> bool:
        """Nothing of it is under way: no request, no turn, and nothing else in a session it takes part in."""
        if self.router.unanswered or self.links.opening or not all(run.ended for run in self._runs):
            return False
        if self.router.sessions.under_way:  # on another node, perhaps
            return False
        return not any(attachment.live.engaged for attachment in self.attachments.values())

    @property
    def who(self) -> Principal:
        assert self.principal is not None
        return self.principal

    def is_of(self, who: Principal) -> bool:
        """Whether it belongs to this user."""
        known = self.principal
        return known is not None and (known.tenant, known.user) == (who.tenant, who.user)

    def _is_own(self, session_id: str) -> bool:
        return self.principal is not None and self.gateway.sessions.is_own(self.principal, session_id)

    def _hold(self, request: Request) -> Callable[[], None] | None:
        attachment = self.attachments.get(request.session_id or "")
        if attachment is None:
            return None
        attachment.live.hold()
        return lambda: attachment.live.release(used=request.rule.uses)

    # --- FrameOwner ---

    def on_bodies(self, bodies: list[bytes]) -> None:
        for body in bodies:
            if self.connection.closed:
                break
            if self._reading is None and len(body) <= _LARGE:
                self.run(self.router.from_client(body), flush=False)
            else:
                self._read_later(body)
        self._flush()

    def _read_later(self, body: bytes) -> None:
        """Large ones in a thread, and what comes behind them behind them."""
        if self._tasks.closed:
            return
        self._unread.append(body)
        if self._reading is None:
            self._reading = self._tasks.start(self._read_all(), "read")
            self._regulate()

    async def _read_all(self) -> None:
        while self._unread and not self.connection.closed:
            body = self._unread.popleft()
            try:
                incoming = await asyncio.to_thread(read, body) if len(body) > _LARGE else read(body)
            except envelope.EnvelopeError as error:
                self.run(self.router.unreadable(error))
            else:
                self.run(self.router.take(incoming))
        self._unread.clear()
        self._reading = None
        self._regulate()

    def on_closed(self, reason: str) -> None:
        self.gateway.client_closed(self, reason)

    def on_paused(self, paused: bool) -> None:
        self._regulate()
        if not paused:
            if self._slow is not None:
                self._slow.cancel()
                self._slow = None
        elif self._slow is None:
            self._watch_slow(self.connection.buffered)

    # --- UpstreamOwner ---

    @property
    def upstream_traffic(self) -> Traffic:
        return self.gateway.telemetry.upstream_traffic

    def on_runtime_bodies(self, link: Upstream, bodies: list[bytes]) -> None:
        for body in bodies:
            commands = self.router.from_runtime(link.id, body)
            if commands and isinstance(commands[0], ToOwn):
                link.settle(commands[0].message)
            else:
                self.run(commands, flush=False)
        self._flush()

    def on_runtime_closed(self, link: Upstream) -> None:
        self.links.closed(link)
        if not self._left:
            self.run(self.router.lost(link.id))
            self.away.link_lost(link.id)
        self._regulate()

    def on_runtime_paused(self, paused: bool) -> None:
        self._regulate()

    def on_asking(self) -> None:
        self._regulate()

    # --- what the router says ---

    def run(self, commands: Sequence[Command], *, flush: bool = True) -> None:
        for command in commands:
            if isinstance(command, ToClient):
                self._to_client(command)
            elif isinstance(command, ToRuntime):
                self._to_runtime(command)
            elif isinstance(command, Serve):
                self._serve(command.request)
            elif isinstance(command, Told):
                self._hear(command)
            elif isinstance(command, Changed):
                self._remember(command.request)
            elif isinstance(command, Place):
                self.start(self._handle(command.request), command.request.method)
            elif isinstance(command, Relayed):
                self.away.answered(command.request, done=command.done)
            elif isinstance(command, Moved):
                self.away.given_back(command.session_id, command.link)
            elif isinstance(command, Gone):
                self.away.gone(command.session_id, command.link)
        if flush:
            self._flush()

    def _flush(self) -> None:
        for link in self.links:
            link.connection.flush()
        self.connection.flush()
        if self.away.moving and self.router.sessions.held_bytes > self.gateway.limits.client_buffer:
            self.drop("more was told of a session that changes nodes than can be kept")
        if self.connection.paused and self.connection.buffered > self.gateway.limits.client_buffer:
            self._too_slow()

    def _to_client(self, command: ToClient) -> None:
        self.connection.queue(command.frame)
        if command.refused:
            self.gateway.telemetry.meter.rejected("gateway", command.refused)

    def _to_runtime(self, command: ToRuntime) -> None:
        link = self.links.get(command.link)
        if link is not None and not link.connection.closed:
            link.connection.queue(command.frame)
        elif not self._left:
            # It has gone, and nobody would answer. Behind what is being done.
            asyncio.get_running_loop().call_soon(self._has_gone, command.link)

    def _has_gone(self, link_id: str) -> None:
        if link_id not in self.links and not self._left:
            self.run(self.router.lost(link_id))

    async def ask(self, session_id: str, method: str, params: Mapping[str, Any]) -> Any:
        """Have the client answer a request. Raises `RequestRefused`: it did not, or has gone."""
        number, commands = self.router.ask(session_id, method, msgspec.json.encode(params))
        future: asyncio.Future[envelope.Message] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self.run(commands)
        try:
            message = await future
            if message.is_error:
                raise RequestRefused(*envelope.error_of(message))
            return envelope.decode_value(message.result)
        except envelope.EnvelopeError as error:
            raise RequestRefused(INTERNAL_ERROR, str(error)) from error
        finally:
            del self._asked[number]
            self.router.questions.forget(number)

    def _hear(self, told: Told) -> None:
        future = self._asked.get(told.number)
        if future is not None and not future.done():
            future.set_result(told.message)

    def _remember(self, request: Request) -> None:
        attachment = self.attachments.get(request.session_id or "")
        if not self.away.remember(request) and attachment is not None:
            attachment.changes.note(request.method, params_of(request), result_of(request))

    def _serve(self, request: Request) -> None:
        try:
            frame = self.gateway.answers.at_once(self, request)
        except AerodromeError as error:  # nobody above us would answer the client
            self.gateway.telemetry.meter.rejected("gateway", error.code)
            frame = problem_of(request, error)
        if frame is not None:
            self.run(self.router.answered(request, frame), flush=False)
            return
        if request.method in IN_ORDER and (session_id := envelope.session_of(request.params)) is not None:
            self.start(self._handle_in_order(request, self._order.join(session_id)), request.method)
        else:
            self.start(self._handle(request), request.method)

    def start(self, work: Any, name: str) -> asyncio.Task[Any] | None:
        """Do something for the client, as long as it is there."""
        if self._tasks.closed:
            work.close()
            return None
        return self._tasks.start(work, name, expected=AerodromeError)

    async def _handle_in_order(self, request: Request, position: Position) -> None:
        request.on_taken_up = position.leave
        try:
            await position.reached()
            await self._handle(request)
        finally:
            position.leave()

    async def _handle(self, request: Request) -> None:
        """Answer the request here, or see that the runtime or node answers it that has its session."""
        meter = self.gateway.telemetry.meter
        try:
            with traced(self.gateway.telemetry.tracer, request):
                frame = await self._where_it_runs(request)
        except AerodromeError as error:
            meter.rejected("gateway", error.code)
            frame = problem_of(request, error)
        except Exception:
            meter.rejected("gateway", AerodromeError.code)
            log.exception("gateway.request_failed", method=request.method)
            frame = envelope.error_frame(request.id, INTERNAL_ERROR, f"{request.method} failed")
        if frame is not None:
            self.run(self.router.answered(request, frame))
            if self.is_node:
                self.gateway.hand_over(self)

    async def _where_it_runs(self, request: Request) -> bytes | None:
        """The answer's frame; ``None``: it comes by itself. Raises `AerodromeError`."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self.gateway.patience
        # A request that has come back is at least its second try.
        tries = request.returned
        while True:
            if tries:
                await asyncio.sleep(min(0.02 * 2 ** min(tries, 6), 0.5))
            if request.returned > _RETURNS:
                # It drains, say, and keeps the session for a turn that takes long.
                raise SessionBusy("the node that runs the session takes nothing new; try again", retry_after=1.0)
            try:
                if await self.away.takes(request):
                    return None
                if request.rule.handling is Handling.GATEWAY:
                    return await self.gateway.answers.answer(self, request)
                await self.place(request)
                return None
            except (SessionElsewhere, PeerGone) as error:
                log.debug("gateway.session_elsewhere", method=request.method, reason=error.detail)
                release(request)  # each try holds what it needs, and the next may be for another node
                if self.relayed:
                    raise SessionMoved("the session runs on another node") from error
                if loop.time() >= give_up:
                    raise SessionBusy("the session is moving between nodes; try again", retry_after=1.0) from error
                tries += 1

    # --- requests whose session has to be loaded first ---

    async def place(self, request: Request) -> None:
        """Send the request to the runtime that holds its session, after loading it if need be. Its answer goes to the
        client by itself.

        Raises:
            AerodromeError: It cannot be.
        """
        if request.session_id is None:
            await self._place_anywhere(request)
            return
        least = request.rule.role or Role.READER
        leaving = self.relayed and request.method not in ASK_THE_MODEL
        live = await self.gateway.sessions.live_session(self.who, request.session_id, least, leaving=leaving)
        live.hold()
        request.on_done = lambda: self._release(live, request)
        if request.method in ASK_THE_MODEL:
            give_back = await self.gateway.sessions.turn_slot(self.who)
            request.on_done = lambda: self._release(live, request, give_back)
        for attempt in range(_ATTEMPTS):
            try:
                activation = await live.awake()
                link = await self.link_to(activation.runtime)
                if link.connection.closed:
                    raise RuntimeUnavailable("the connection to the runtime has gone again")
            except RuntimeUnavailable:
                if attempt + 1 == _ATTEMPTS:
                    raise
                continue
            self.gateway.sessions.still_allowed(self.who, live, least)
            self.run(self.router.send(request, link.id))
            return

    async def _place_anywhere(self, request: Request) -> None:
        runtime = await self.gateway.sessions.borrow(self.who)
        request.on_done = lambda: self.gateway.sessions.give_back(runtime)
        link = await self.link_to(runtime)
        if link.connection.closed:
            raise RuntimeUnavailable("the connection to the runtime has gone again")
        self.run(self.router.send(request, link.id))

    def _release(self, live: LiveSession, request: Request, also: Callable[[], None] = lambda: None) -> None:
        also()
        live.release(used=request.rule.uses)
        self.gateway.sessions.let_go(live)

    # --- links to runtimes and nodes ---

    async def link_to(self, runtime: Runtime) -> Upstream:
        """This client's connection to a runtime; opened once, however many wait for it.

        Raises:
            RuntimeUnavailable: The runtime has gone, or the client has.
        """
        limits = self.gateway.limits
        return await self.links.to(
            runtime.id,
            lambda: Upstream.open(
                self, runtime, self.hello, timeout=self.gateway.request_timeout, max_frame=limits.max_frame
            ),
        )

    async def link_to_node(self, node: Node) -> Upstream:
        """This client's connection to another node. Raises `PeerGone`, or `RuntimeUnavailable`: the client has gone."""
        limits = self.gateway.limits
        return await self.links.to(
            f"{NODE_LINK}{node.incarnation}",
            lambda: Upstream.open_to_node(
                self,
                node,
                self.hello,
                self.who,
                timeout=self.gateway.request_timeout,
                max_frame=limits.max_frame,
                silence=self.gateway.peer_silence,
            ),
        )

    def nodes_gone(self, incarnations: frozenset[str]) -> None:
        """They were held for dead, whether they know it or not."""
        for incarnation in incarnations:
            self.links.cut(f"{NODE_LINK}{incarnation}", "the node was held for dead")

    def refuse_overdue(self, seconds: float) -> None:
        """So many seconds have passed since the last call: answer what a runtime has left unanswered for too long."""
        self.run(self.router.overdue(seconds))

    def close_unused_links(self) -> None:
        """A runtime whose sessions have all gone elsewhere need not be connected to."""
        self.links.close_unused(self.router.bound)

    # --- what the runtimes wait for ---

    def keeps_waiting(self, session_id: str) -> bool:
        return self.connection.paused or self.router.questions.holds_up(session_id)

    def drop(self, reason: str) -> None:
        if not self.connection.closed:
            log.warning("gateway.client_dropped", peer=self.connection.peer, reason=reason)
            self.connection.close(reason)

    # --- flow control ---

    def _regulate(self) -> None:
        """Read from whom we can pass on what they say."""
        client_takes = not self.connection.paused
        for link in self.links:
            # Answers to our own requests are not the client's to wait for: sessions are loaded and unloaded by them.
            link.connection.read_more(client_takes or link.asking)
        runtimes_take = not any(link.connection.paused for link in self.links)
        self.connection.read_more(client_takes and runtimes_take and self._reading is None)

    def _watch_slow(self, waiting: int) -> None:
        """Look again in a while whether the client has taken anything of what waits for it."""
        loop = asyncio.get_running_loop()
        self._slow = loop.call_later(self.gateway.limits.write_timeout, self._still_slow, waiting)

    def _still_slow(self, waited: int) -> None:
        waiting = self.connection.buffered
        if waited - waiting >= _LEAST_RATE * self.gateway.limits.write_timeout:
            self._watch_slow(waiting)  # slow, but it reads
        else:
            self._too_slow()

    def _too_slow(self) -> None:
        self._slow = None
        if self.connection.closed:
            return
        limit = self.gateway.limits.write_timeout
        log.warning("gateway.client_too_slow", peer=self.connection.peer, buffered=self.connection.buffered)
        # It will not read this before what waits for it, if it ever does; whoever looks at the connection sees why.
        error = Capacity(f"this client did not take what was sent to it for {limit:g} s")
        self.connection.abort(error.detail)

    # --- turns and attachments ---

    def note_run(self, run: TurnRun) -> None:
        """A prompt of this client: with `sessions.on_disconnect = "cancel"` it ends with the connection."""
        self._runs = {known for known in self._runs if not known.ended}
        self._runs.add(run)

    def unended(self, session_id: str) -> list[str]:
        """Message ids of the client's prompts that a runtime of this node has taken and whose end is not known."""
        runs = (run for run in self._runs if run.row.key.id == session_id and not run.ended)
        return [run.first_message_id for run in runs if run.first_message_id is not None]

    async def detach(self, session_id: str, *, leave: bool = True) -> None:
        """The client takes part in the session no more, as far as this node goes."""
        attachment = self.attachments.pop(session_id, None)
        if leave:
            self.router.sessions.leave(session_id)
        if attachment is not None:
            await attachment.live.detach(attachment)
            self.gateway.sessions.let_go(attachment.live)
        if leave:
            self.close_unused_links()

    def attachment_finished(self, attachment: NativeAttachment, error: AerodromeError) -> None:
        if self.attachments.get(attachment.session_id) is attachment:
            del self.attachments[attachment.session_id]
            if not isinstance(error, Draining):
                self.router.sessions.leave(attachment.session_id)
            if isinstance(error, NotFound):
                self.tell_lifecycle("session.deleted", attachment.session_id)

    def tell_lifecycle(self, kind: str, session_id: str) -> None:
        params = {"type": kind, "sessionId": session_id}
        self.connection.write(envelope.notification_frame("session.lifecycle", params))

    # --- the end ---

    def close(self, error: AerodromeError) -> None:
        """End the connection from our side; what is on its way to the client still goes out."""
        log.info("gateway.client_closed", peer=self.connection.peer, reason=error.detail)
        self.connection.close(error.detail)

    async def leave(self) -> None:
        """The client has gone: give back what it held. Its turns go on, unless configured otherwise."""
        self._left = True
        if self._slow is not None:
            self._slow.cancel()
        # First: what the runtimes wait for will never come, and our own tasks may wait for them.
        self.links.cut_all("the client has gone")
        await self._tasks.aclose()
        self.links.cut_all("the client has gone")
        self.router.close()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(RequestRefused(INTERNAL_ERROR, "the client has gone"))
        for run in self._runs:
            if not run.ended:
                run.abandon()
        for attachment in list(self.attachments.values()):
            await attachment.live.detach(attachment)
            self.gateway.sessions.let_go(attachment.live)
        self.attachments.clear()
