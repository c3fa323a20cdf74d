"""The sessions of all nodes, as a front door of this one sees them (`sessions.api.Sessions`).

What concerns a session that another node runs is asked of that node, in the caller's name; everything else is done
here. One hop at most: a node that is asked by another does it itself, or says that the session has moved.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

import structlog

from aerodrome.coordination.ports import Node, Page
from aerodrome.errors import Draining, NotFound, RuntimeUnavailable, SessionBusy, SessionElsewhere
from aerodrome.model import Principal, Role, SessionKey, SessionRow, TurnRow
from aerodrome.peers import shapes
from aerodrome.peers.cluster import Cluster
from aerodrome.peers.events import FollowingStream, Source
from aerodrome.peers.link import PeerGone, PeerLinks
from aerodrome.peers.shapes import SessionMoved
from aerodrome.peers.there import At, Here, There
from aerodrome.peers.turns import ReadTurn, RemoteTurn
from aerodrome.sessions.api import Ask, EventStream, MessagePage, OpenSession, SendMessage, Turn
from aerodrome.sessions.hub import Channel
from aerodrome.sessions.replay import BEGINNING
from aerodrome.sessions.service import SessionService
from aerodrome.telemetry.trace import Tracer

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: Seconds between two looks at who runs a session that is moving.
_RETRY = 0.1
#: Idempotency keys of our own, for prompts that are forwarded without one: sent twice, they count once.
_OWN_KEY = "aerodrome-forwarded-"


class ClusterSessions:
    """Args:
    local: The sessions of this node.
    read_turn: Reads a turn in the ledger.
    patience: Seconds to look for the node that runs a session while it moves.
    reader_bytes: How far a reader of events may be behind.
    """

    def __init__(
        self,
        local: SessionService,
        cluster: Cluster,
        links: PeerLinks,
        read_turn: ReadTurn,
        *,
        patience: float,
        reader_bytes: int,
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer or Tracer()
        self._local = local
        self._cluster = cluster
        self._links = links
        self._read_turn = read_turn
        self._patience = patience
        self._reader_bytes = reader_bytes
        self._following: dict[SessionKey, set[FollowingStream]] = {}
        #: Turns of other nodes that callers of this one wait for, and prompts that are on the way there.
        self._turns: WeakSet[RemoteTurn] = WeakSet()
        self._sending = 0
        cluster.on_awake.append(self._on_awake)
        cluster.followed.append(lambda: list(self._following))

    # --- what any node does ---

    async def open_session(self, who: Principal, request: OpenSession) -> tuple[SessionRow, bool]:
        return await self._local.open_session(who, request)

    async def get(self, who: Principal, session_id: str) -> SessionRow:
        return await self._local.get(who, session_id)

    async def list(self, who: Principal, *, cursor: str | None = None, limit: int = 50) -> Page:
        return await self._local.list(who, cursor=cursor, limit=limit)

    async def history(
        self, who: Principal, session_id: str, *, cursor: str | None = None, limit: int = 200
    ) -> MessagePage:
        return await self._local.history(who, session_id, cursor=cursor, limit=limit)

    async def ask(self, who: Principal, request: Ask) -> Turn:
        return await self._local.ask(who, request)

    # --- what the node does that runs the session ---

    async def retitle(self, who: Principal, session_id: str, title: str) -> SessionRow:
        value = await self._where_it_runs(
            who,
            session_id,
            lambda: self._local.retitle(who, session_id, title),
            lambda at: self._call(at, who, session_id, "retitle", title),
        )
        return value if isinstance(value, SessionRow) else shapes.session_row_of(value)

    async def set_member(self, who: Principal, session_id: str, user: str, role: Role) -> SessionRow:
        value = await self._where_it_runs(
            who,
            session_id,
            lambda: self._local.set_member(who, session_id, user, role),
            lambda at: self._call(at, who, session_id, "set_member", user, role),
        )
        return value if isinstance(value, SessionRow) else shapes.session_row_of(value)

    async def remove_member(self, who: Principal, session_id: str, user: str) -> None:
        await self._where_it_runs(
            who,
            session_id,
            lambda: self._local.remove_member(who, session_id, user),
            lambda at: self._call(at, who, session_id, "remove_member", user),
        )

    async def delete(self, who: Principal, session_id: str) -> None:
        asked = False

        async def there(at: At) -> None:
            nonlocal asked
            again, asked = asked, True
            try:
                await self._call(at, who, session_id, "delete")
            except NotFound:
                if not again:
                    raise

        async def here() -> None:
            try:
                await self._local.delete(who, session_id)
            except NotFound:
                if not asked:
                    raise  # else the node that went before it answered has done it

        await self._where_it_runs(who, session_id, here, there)

    async def abort(self, who: Principal, session_id: str) -> bool:
        return bool(
            await self._where_it_runs(
                who,
                session_id,
                lambda: self._local.abort(who, session_id),
                lambda at: self._call(at, who, session_id, "abort"),
            )
        )

    async def answer(self, who: Principal, session_id: str, request_id: str, answer: dict[str, Any]) -> None:
        await self._where_it_runs(
            who,
            session_id,
            lambda: self._local.answer(who, session_id, request_id, answer),
            lambda at: self._call(at, who, session_id, "answer", request_id, answer),
        )

    async def send(self, who: Principal, session_id: str, message: SendMessage) -> Turn:
        if self._local.draining:
            # Also when another node runs the session: the caller had better wait for its answer there.
            raise Draining("this node is shutting down; try again", retry_after=1.0)
        if not self._cluster.alone and message.idempotency_key is None:
            # Forwarded to a node that goes before it answers, the prompt is sent once more to the next one.
            message = replace(message, idempotency_key=f"{_OWN_KEY}{uuid.uuid4()}")
        self._sending += 1
        try:
            return await self._where_it_runs(
                who,
                session_id,
                lambda: self._local.send(who, session_id, message),
                lambda at: self._send_there(at, who, session_id, message),
                once=True,
            )
        finally:
            self._sending -= 1

    async def events(self, who: Principal, session_id: str, *, after: str | None = None) -> EventStream:
        if after is None and not self._cluster.alone:
            after = await self._local.reading.position(who, session_id)
        source = await self._subscribe(who, session_id, after)
        key = SessionKey(who.tenant, session_id)
        stream = FollowingStream(
            lambda cursor: self._subscribe(who, session_id, cursor or BEGINNING),
            source=source,
            cursor=after,
            on_close=lambda closed: self._unfollow(key, closed),
        )
        self._following.setdefault(key, set()).add(stream)
        return stream

    @property
    def waits(self) -> bool:
        """Whether a caller of this node waits for a turn of another one."""
        return bool(self._turns or self._sending)

    # --- inside ---

    async def _subscribe(self, who: Principal, session_id: str, after: str | None) -> Source:
        async def here() -> Source:
            return Here(self._cluster.own, await self._local.events(who, session_id, after=after))

        async def there(at: At) -> Source:
            source = There(at.link, self._reader_bytes)
            await source.begin(at, who, session_id, after=after)
            return source

        return await self._where_it_runs(who, session_id, here, there)

    def _on_awake(self, key: SessionKey, incarnation: str) -> None:
        for stream in list(self._following.get(key, ())):
            stream.runs_at(incarnation)

    def _unfollow(self, key: SessionKey, stream: FollowingStream) -> None:
        streams = self._following.get(key)
        if streams is not None:
            streams.discard(stream)
            if not streams:
                del self._following[key]

    async def _rejoin(self, who: Principal, turn: TurnRow, after: str | None) -> Source:
        """What is left to be told of a turn whose link was lost, by the node that works on it; out of the history, once
        it has ended.

        Raises:
            RuntimeUnavailable, StoreUnavailable: Neither is to be had now.
            NotFound: The session is deleted, or shared no more.
        """
        try:
            node = await self._cluster.elsewhere(turn.key)
            if node is not None:
                link = await self._links.to(node)
                source = There(link, self._reader_bytes)
                if await source.begin(At(link), who, turn.key.id, after=after, turn=turn.id):
                    return source
        except (SessionElsewhere, PeerGone) as error:
            log.debug("peers.turn_not_rejoined", turn=turn.id, reason=error.detail)
        row = await self._read_turn(turn.key, turn.id)
        if row is None:
            raise NotFound("the session has been deleted")
        if not row.status.is_final:
            raise RuntimeUnavailable("the node that works on the turn is not to be found")
        rest = Channel(self._reader_bytes)
        rest.preload(await self._local.reading.rest_of_turn(who, turn.key.id, row, after=after))
        rest.finish()
        return Here(self._cluster.own, rest)

    async def _send_there(self, at: At, who: Principal, session_id: str, message: SendMessage) -> Turn:
        link = at.link
        turn = RemoteTurn(
            link,
            self._read_turn,
            partial(self._rejoin, who),
            reader_bytes=self._reader_bytes,
            on_over=self._turns.discard,
        )
        link.begin(turn.stream)
        try:
            with self._tracer.span("forward", kind="client", attributes={"aerodrome.node": link.node.name}) as span:
                row = await at.request(
                    shapes.SEND,
                    who,
                    session_id,
                    message=shapes.to_wire(message),
                    stream=turn.stream.id,
                    trace=span.context.fields() if span.context is not None else {},
                )
        except asyncio.CancelledError:
            turn.abandon()
            turn.stream.close()
            raise
        except BaseException:
            turn.stream.close()
            raise
        turn.accepted(shapes.turn_row_of(row))
        self._turns.add(turn)
        return turn

    async def _call(self, at: At, who: Principal, session_id: str, name: str, *arguments: Any) -> Any:
        return await at.request(shapes.CALL, who, session_id, name=name, arguments=arguments)

    async def _where_it_runs(
        self,
        who: Principal,
        session_id: str,
        here: Callable[[], Awaitable[T]],
        there: Callable[[At], Awaitable[T]],
        *,
        once: bool = False,
    ) -> T:
        """Do it here, or have the node do it that runs the session; look again while the session moves.

        Args:
            once: It has a key by which it counts once: when it is asked again because a node has gone, it may be busy
                with itself, until it is known that the node is dead.

        Raises:
            SessionBusy: It is not to be found within `patience` seconds, or stays for as long at a node that drains, or
                whatever was asked says so.
        """
        key = SessionKey(who.tenant, session_id)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._patience
        lost = False
        while True:
            # As long as the node says that it has the session, nobody need be asked.
            known = self._cluster.remembered(key)
            node = known or await self._cluster.elsewhere(key)
            try:
                if node is None:
                    return await here()
                return await there(At(await self._links.to(node), remembered=known is not None))
            except (SessionElsewhere, PeerGone, Draining) as error:
                self._cluster.forget(key)
                if known is not None and isinstance(error, SessionMoved):
                    continue
                # Draining here: it is for the caller to go to another node, not for us. There: as soon as no turn of
                # the session runs there, it is anybody's.
                if loop.time() >= give_up or (node is None and isinstance(error, Draining)):
                    raise _for_callers(error, node) from error
                lost = lost or isinstance(error, PeerGone)
            except SessionBusy:
                if not (once and lost) or loop.time() >= give_up:
                    raise
            await asyncio.sleep(_RETRY)


def _for_callers(error: SessionElsewhere | PeerGone | Draining, node: Node | None) -> Exception:
    if isinstance(error, Draining):
        if node is None:
            return error
        detail = f"a turn of the session still runs at the node {node.name}, which takes nothing new; try again"
        return SessionBusy(detail, retry_after=2.0)
    if isinstance(error, SessionElsewhere):
        return SessionBusy("the session is moving between nodes; try again", retry_after=1.0)
    name = node.name if node is not None else "?"
    return RuntimeUnavailable(f"the node {name}, which runs the session, does not answer", retry_after=2.0)
