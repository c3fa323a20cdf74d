"""A client's sessions that run on other nodes, and how they come back when those go (DESIGN section 3).

The client's frames for such a session go to the node that runs it, on a connection of the client's own, and that node
serves them as its own client's. Here is remembered what the client opened the session with and has changed since, so
that it can be opened again wherever the session runs next: here, or on a third node. One hop at most: what a node is
sent by another it does itself, or gives back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from aerodrome.coordination.ports import Node
from aerodrome.errors import (
    AerodromeError,
    Draining,
    NotFound,
    Refused,
    SessionBusy,
    SessionElsewhere,
    TurnInterrupted,
    all_codes,
)
from aerodrome.events import SessionEvent
from aerodrome.gateway.attachment import ONCE, REMEMBERED
from aerodrome.gateway.bindings import NODE_LINK
from aerodrome.gateway.commands import Request, params_of, result_of
from aerodrome.gateway.replay import Changes
from aerodrome.gateway.sessions import open_again
from aerodrome.gateway.tracing import hand_on
from aerodrome.model import SessionKey, SessionRow
from aerodrome.peers.shapes import KNOWN, MOVED, SESSION_MOVED, SessionMoved
from aerodrome.policy.methods import Handling
from aerodrome.runtime.link import LinkClosed, RemoteError
from aerodrome.wire import envelope

if TYPE_CHECKING:
    from aerodrome.gateway.client import GatewayClient

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Seconds between two tries to open a session again.
_FIRST_RETRY, _LAST_RETRY = 0.05, 1.0
#: What of that which a gateway answers itself is for the node to answer that runs the session. Nothing else is,
#: whatever session it names: above all not `connect`.
_THERE = frozenset(
    {
        *("session.create", "session.resume", "session.send", "session.abort"),
        *("session.detach", "session.destroy", "session.delete"),
    }
)
#: Seconds that a request waits for the end of a move before it looks how long it has waited.
_LOOK = 1.0
#: Seconds between two looks at what is worked on.
_LOOKS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)


@dataclass(slots=True)
class Away:
    """A session that the client is attached to at another node."""

    incarnation: str
    #: Parameters of the client's `session.create` or `session.resume`, as they came.
    asked: Mapping[str, Any]
    changes: Changes = field(default_factory=Changes)

    def params(self, row: SessionRow) -> dict[str, Any]:
        """Of the `session.resume` that attaches the client anew. It is not told of it: it never was away."""
        kept = {name: value for name, value in self.asked.items() if name not in ONCE | REMEMBERED}
        self.changes.onto(kept)
        if row.model is not None:
            kept["model"] = row.model  # as it was changed since; without one it would get the default
        return {**kept, "sessionId": row.key.id, "disableResume": True}


class AwaySessions:
    """Those of one client."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client
        self._away: dict[str, Away] = {}
        self._returning: dict[str, asyncio.Task[None]] = {}
        #: Of those, what was given back while it was on its way.
        self._again: set[str] = set()

    @property
    def keys(self) -> list[SessionKey]:
        tenant = self._client.who.tenant if self._client.principal is not None else ""
        return [SessionKey(tenant, session_id) for session_id in self._away]

    @property
    def moving(self) -> bool:
        """A session is on its way from one node to another."""
        return bool(self._returning)

    # --- requests ---

    async def takes(self, request: Request) -> bool:
        """Send the request to the node that runs its session. ``False``: it is for this one.

        Raises:
            SessionMoved: Another node has sent it here, and here is not where the session runs.
            Draining: It is a prompt, and the client had better go to another node with it.
            AerodromeError: The node that runs the session cannot be found, or reached.
        """
        client = self._client
        session_id = request.session_id or envelope.session_of(request.params)
        if session_id is None or client.principal is None:
            return False
        if request.rule.handling is Handling.GATEWAY and request.method not in _THERE:
            return False
        await self._moved(session_id)
        away = self._away.get(session_id)
        link_id = f"{NODE_LINK}{away.incarnation}" if away is not None else ""
        if request.returned or link_id not in client.links:
            node = await client.gateway.cluster.elsewhere(SessionKey(client.who.tenant, session_id))
            if node is not None and client.relayed:
                raise SessionMoved("the session runs on another node")
            where = node.incarnation if node is not None else client.gateway.cluster.own
            if self._attached_at(session_id) not in (None, where):
                self.move(session_id)
                await self._moved(session_id)
                node = await client.gateway.cluster.elsewhere(SessionKey(client.who.tenant, session_id))
            if node is None:
                return False
            link_id = (await client.link_to_node(node)).id
        if request.method == "session.send" and client.gateway.sessions.draining:
            raise Draining("this node is shutting down; connect again", retry_after=1.0)  # to where it lasts
        request.session_id = session_id
        if request.method in ("session.create", "session.resume"):
            client.router.sessions.take_part(session_id)
            client.router.sessions.bind(session_id, link_id)
        if client.gateway.telemetry.tracer.on:
            hand_on(request)
        client.run(client.router.send(request, link_id))
        return True

    async def _moved(self, session_id: str) -> None:
        """Wait for the end of a move that is under way. Raises `SessionElsewhere`: it has not come in a while."""
        returning = self._returning.get(session_id)
        if returning is not None and not (await asyncio.wait({returning}, timeout=_LOOK))[0]:
            raise SessionElsewhere("the session is on its way from one node to another", retry_after=1.0)

    def answered(self, request: Request, *, done: bool) -> None:
        """A node has opened or left the session for the client, or has refused to."""
        session_id, router = request.session_id or "", self._client.router
        if request.method in ("session.create", "session.resume"):
            if done and request.link is not None:
                self._away[session_id] = Away(request.link.removeprefix(NODE_LINK), params_of(request))
                router.sessions.ready(session_id)
            elif session_id in self._away:
                router.sessions.ready(session_id)  # the session is as it was
            elif session_id not in self._client.attachments:
                router.sessions.leave(session_id)
        elif done:
            self._away.pop(session_id, None)
            router.sessions.leave(session_id)

    def gone(self, session_id: str, link_id: str) -> None:
        """The node behind this link says that the session is deleted, or not the client's any more."""
        away = self._away.get(session_id)
        if away is not None and link_id == f"{NODE_LINK}{away.incarnation}" and not self._returns(session_id):
            self.forget(session_id)

    def forget(self, session_id: str) -> None:
        """The client takes part in the session no more, wherever it runs."""
        if self._away.pop(session_id, None) is not None:
            self._client.router.sessions.leave(session_id)

    def remember(self, request: Request) -> bool:
        """A request that must hold wherever the session goes was carried out."""
        away = self._away.get(request.session_id or "")
        if away is not None:
            away.changes.note(request.method, params_of(request), result_of(request))
        return away is not None

    # --- moves ---

    def _attached_at(self, session_id: str) -> str | None:
        if (away := self._away.get(session_id)) is not None:
            return away.incarnation
        return self._client.gateway.cluster.own if session_id in self._client.attachments else None

    def runs_at(self, session_id: str, incarnation: str) -> None:
        """A node has loaded the session. If the client is attached to it at another one, it goes there."""
        if self._attached_at(session_id) in (None, incarnation) or self._returns(session_id):
            return
        if self._client.relayed:
            self._client.start(self._give_back(session_id), "give back")
        else:
            self.move(session_id)

    async def _give_back(self, session_id: str) -> None:
        """The node that relays the client has to look where the session runs, if that is another node: a hint may be
        late."""
        if await self._client.gateway.cluster.elsewhere(SessionKey(self._client.who.tenant, session_id)) is None:
            return
        await self._client.detach(session_id)
        self._client.connection.write(envelope.notification_frame(MOVED, {"sessionId": session_id}))

    def given_back(self, session_id: str, link_id: str) -> None:
        """The node behind the link runs the session no more. It may say so when the client has long been elsewhere."""
        away = self._away.get(session_id)
        if self._returns(session_id):
            self._again.add(session_id)
        elif away is not None and f"{NODE_LINK}{away.incarnation}" == link_id:
            self.move(session_id)

    def link_lost(self, link_id: str) -> None:
        """The node has gone, or does not want us any more: its sessions come back."""
        for session_id in [id_ for id_, away in self._away.items() if f"{NODE_LINK}{away.incarnation}" == link_id]:
            self.move(session_id)

    def move(self, session_id: str) -> None:
        """Attach the client anew where the session runs now, or here if it runs nowhere."""
        if not self._returns(session_id):
            task = self._client.start(self._move(session_id), f"move {session_id}")
            if task is not None:
                self._returning[session_id] = task
                task.add_done_callback(lambda done: self._returned(session_id, done))

    def _returns(self, session_id: str) -> bool:
        task = self._returning.get(session_id)
        return task is not None and not task.done()

    def _returned(self, session_id: str, task: asyncio.Task[None]) -> None:
        if self._returning.get(session_id) is task:
            del self._returning[session_id]
            self._again.discard(session_id)

    async def _move(self, session_id: str) -> None:
        client, router = self._client, self._client.router
        router.sessions.hold_back(session_id)
        attachment = client.attachments.get(session_id)
        if attachment is not None:
            router.sessions.doubt(session_id, client.unended(session_id))
            self._away[session_id] = Away(client.gateway.cluster.own, attachment.asked, attachment.changes)
            await client.detach(session_id, leave=False)
        missed: Sequence[SessionEvent] = ()
        try:
            while (away := self._away.get(session_id)) is not None:
                self._again.discard(session_id)
                await self._until_it_works(partial(self._attach, session_id, away))
                missed = await self._until_it_works(partial(self._missed, session_id))
                if router.sessions.is_bound(session_id) and session_id not in self._again:
                    break
                router.sessions.hold_back(session_id)  # the node has gone again meanwhile
        except Exception as error:
            client.run(router.sessions.release(session_id, ()))
            self.forget(session_id)
            if not isinstance(error, AerodromeError):
                raise
            # For good: deleted meanwhile, or refused what was accepted before.
            log.warning("gateway.session_not_back", session=session_id, reason=error.detail)
            if isinstance(error, NotFound):
                client.tell_lifecycle("session.deleted", session_id)
            return
        client.run(router.sessions.release(session_id, missed))
        log.info("gateway.session_back", session=session_id, node=self._attached_at(session_id))
        # Behind the move: it may have to wait until it is certain who has gone, and the client's requests need not.
        client.start(self._see_to_the_end(session_id), f"end of turns of {session_id}")

    async def _see_to_the_end(self, session_id: str) -> None:
        try:
            await self._until_it_works(partial(self._tell_end, session_id))
        except AerodromeError as error:
            log.warning("gateway.end_not_told", session=session_id, reason=error.detail)

    async def _missed(self, session_id: str) -> Sequence[SessionEvent]:
        """Of a session that is here now. Another node tells it before it answers."""
        if session_id in self._away:
            return ()
        client = self._client
        return await client.gateway.sessions.reading.events_behind(
            client.who, session_id, client.router.sessions.known(session_id)
        )

    async def _until_it_works(self, what: Callable[[], Awaitable[T]]) -> T:
        """Raises what will not pass by itself."""
        delay = _FIRST_RETRY
        while True:
            try:
                return await what()
            except (NotFound, Refused):
                raise
            except AerodromeError as error:
                if not error.retryable or (isinstance(error, Draining) and self._client.gateway.sessions.draining):
                    raise
                log.debug("gateway.session_not_back_yet", reason=error.detail)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LAST_RETRY)

    async def _attach(self, session_id: str, away: Away) -> None:
        client = self._client
        node = await client.gateway.cluster.elsewhere(SessionKey(client.who.tenant, session_id))
        if node is not None:
            await self._attach_at(node, session_id, away)
            return
        del self._away[session_id]
        try:
            await open_again(client.gateway, client, session_id, away.asked, away.changes)
        except BaseException:
            self._away[session_id] = away
            raise

    async def _attach_at(self, node: Node, session_id: str, away: Away) -> None:
        client = self._client
        row = await client.gateway.sessions.get(client.who, session_id)
        link = await client.link_to_node(node)
        client.router.sessions.bind(session_id, link.id)
        try:
            await link.request("session.resume", {**away.params(row), KNOWN: client.router.sessions.known(session_id)})
            for method, params in away.changes.requests:
                await link.request(method, {**params, "sessionId": session_id})
        except (LinkClosed, TimeoutError) as error:
            client.router.sessions.hold_back(session_id)
            raise SessionBusy(f"the node {node.name} did not answer: {error}") from error
        except RemoteError as error:
            client.router.sessions.hold_back(session_id)
            kind = all_codes().get(error.problem or "")
            if error.problem == SESSION_MOVED or (kind is not None and kind.retryable):
                raise SessionBusy(f"the node {node.name} does not take the session: {error}") from error
            if error.problem == NotFound.code:
                raise NotFound(error.message) from error
            raise Refused(error.message) from error
        if not client.router.sessions.is_bound(session_id):
            raise SessionBusy(f"the node {node.name} went as it took the session", retry_after=1.0)
        away.incarnation = node.incarnation
        client.router.sessions.ready(session_id)

    async def _tell_end(self, session_id: str) -> None:
        """Say that turns have ended which nobody works on any more: the one that the client was told of, and those of
        its prompts that were taken and had not begun."""
        client, told = self._client, self._client.router.sessions
        if not told.has_doubts(session_id) and not told.at_work(session_id):
            return
        for pause in _LOOKS:
            authors = await client.gateway.sessions.native.authors_at_work(client.who, session_id)
            if client.who.user not in authors or not told.has_doubts(session_id):
                break
            # A living node may have just these prompts in hand, or others; the former does not take it long.
            await asyncio.sleep(pause)
        lost: list[str] = []
        if told.has_doubts(session_id):
            # Only now: what a living node had in hand a moment ago is told or stored by now.
            history = await client.gateway.sessions.reading.stored_events(client.who, session_id)
            lost = told.lost_prompts(session_id, history)
        if lost or (told.at_work(session_id) and not told.is_idle_withheld(session_id) and not authors):
            error = TurnInterrupted("the node that ran the turn has gone")
            events = client.gateway.sessions.native.end_events(error, lost, idle=not authors)
            client.run(told.tell(session_id, events, from_host=True))
        client.run(told.settled(session_id))
