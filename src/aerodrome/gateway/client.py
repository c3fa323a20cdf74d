"""One connected client: the shell around `gateway.router`.

What the router decides is done here: frames are written, links to runtimes opened, sessions loaded. Flow is controlled
in both directions. While the client does not take what is there for it, nothing more is read from its runtimes, nor
from itself; after a while, or past a number of bytes, it is cut off. While a runtime does not take what the client
sends, the client is not read. Nobody else waits for either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.ports import Node
from aerodrome.errors import AerodromeError, Draining, NotFound
from aerodrome.gateway.attachment import NativeAttachment
from aerodrome.gateway.away import AwaySessions
from aerodrome.gateway.bindings import NODE_LINK
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
    params_of,
    result_of,
)
from aerodrome.gateway.large import LargeBodies
from aerodrome.gateway.links import ClientLinks
from aerodrome.gateway.problems import INTERNAL_ERROR
from aerodrome.gateway.requests import Requests
from aerodrome.gateway.router import Router
from aerodrome.gateway.slowness import Slowness
from aerodrome.gateway.upstream import Upstream
from aerodrome.model import Principal
from aerodrome.runtime.frames import FrameConnection
from aerodrome.runtime.link import RequestRefused
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions.run import TurnRun
from aerodrome.telemetry.meter import Traffic
from aerodrome.wire import envelope

if TYPE_CHECKING:
    from aerodrome.gateway.server import Gateway

log = structlog.get_logger(__name__)


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
        self._requests = Requests(self)
        #: What we have asked the client ourselves.
        self._asked: dict[int, asyncio.Future[envelope.Message]] = {}
        self._runs: set[TurnRun] = set()
        self._tasks = TaskOwner("gateway client")
        self.links = ClientLinks(self._tasks, self.regulate)
        self._slowness = Slowness(self.connection, limits)
        self._large = LargeBodies(self)
        self._left = False
        #: Done when nothing of the client is left.
        self.left: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def gone(self) -> bool:
        return self.connection.closed

    @property
    def idle(self) -> bool:
        """Nothing of it is under way: no request, no turn, and nothing else in a session it takes part in.

        Nor is a session of its loaded: we have heard that a turn has ended by another connection than the client does,
        and what it has not been told of by then comes before the runtime has let go of the session.
        """
        if self.router.unanswered or self.links.opening or not all(run.ended for run in self._runs):
            return False
        if self.router.sessions.under_way:  # on another node, perhaps
            return False
        sessions = [attachment.live for attachment in self.attachments.values()]
        return not any(live.engaged or live.activation is not None for live in sessions)

    @property
    def who(self) -> Principal:
        assert self.principal is not None
        return self.principal

    def is_of(self, who: Principal) -> bool:
        """Whether it belongs to this user."""
        known = self.principal
        return known is not None and (known.tenant, known.user) == (who.tenant, who.user)

    def _is_own(self, session_id: str) -> bool:
        return self.principal is not None and self.gateway.sessions.native.is_own(self.principal, session_id)

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
            if not self._large.takes(body):
                self.run(self.router.from_client(body), flush=False)
        self._flush()

    def on_closed(self, reason: str) -> None:
        self.gateway.client_closed(self, reason)

    def on_paused(self, paused: bool) -> None:
        self.regulate()
        self._slowness.paused(paused)

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
        self.regulate()

    def on_runtime_paused(self, paused: bool) -> None:
        self.regulate()

    def on_asking(self) -> None:
        self.regulate()

    # --- what the router says ---

    def run(self, commands: Sequence[Command], *, flush: bool = True) -> None:
        for command in commands:
            if isinstance(command, ToClient):
                self._to_client(command)
            elif isinstance(command, ToRuntime):
                self._to_runtime(command)
            elif isinstance(command, Serve):
                self._requests.serve(command.request)
            elif isinstance(command, Told):
                self._hear(command)
            elif isinstance(command, Changed):
                self._remember(command.request)
            elif isinstance(command, Place):
                self._requests.handle(command.request)
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
        self._slowness.look()

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

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any] | None:
        """Do something for the client, as long as it is there."""
        return self._tasks.start_if_open(work, name, expected=AerodromeError)

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

    def regulate(self) -> None:
        """Read from whom we can pass on what they say."""
        client_takes = not self.connection.paused
        for link in self.links:
            # Answers to our own requests are not the client's to wait for: sessions are loaded and unloaded by them.
            link.connection.read_more(client_takes or link.asking)
        runtimes_take = not any(link.connection.paused for link in self.links)
        self.connection.read_more(client_takes and runtimes_take and not self._large.reading)

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
            self.gateway.sessions.native.let_go(attachment.live)
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
        self._slowness.forget()
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
            self.gateway.sessions.native.let_go(attachment.live)
        self.attachments.clear()
