"""Two ends of the link between nodes over loopback, with scripted sessions at the far end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, cast

import pytest
from msgspec import Raw, UnsetType

from aerodrome.coordination.ports import Node
from aerodrome.errors import (
    AerodromeError,
    Draining,
    Invalid,
    NotFound,
    RuntimeUnavailable,
    SessionBusy,
    SessionElsewhere,
)
from aerodrome.events import SessionEvent
from aerodrome.gateway.peering import PeerServer
from aerodrome.model import Principal, SessionKey, TurnRow, TurnStatus
from aerodrome.peers import shapes, turns
from aerodrome.peers.cluster import Cluster
from aerodrome.peers.events import Source
from aerodrome.peers.link import PeerGone, PeerLink, PeerLinks, address_of
from aerodrome.peers.sessions import ClusterSessions
from aerodrome.peers.shapes import SessionMoved
from aerodrome.peers.turns import RemoteTurn
from aerodrome.runtime.frames import FrameConnection
from aerodrome.sessions.api import Lagging, SendMessage
from aerodrome.sessions.hub import Channel
from aerodrome.sessions.run import TurnRun
from aerodrome.sessions.service import SessionService
from support.host import until

ALICE = Principal("acme", "alice")
KEY = SessionKey("acme", "s")
QUEUED = TurnRow(KEY, "turn_1", "alice", TurnStatus.QUEUED, "hello")
DONE = replace(QUEUED, status=TurnStatus.COMPLETED)


class Sessions:
    """Those of the far end."""

    def __init__(self) -> None:
        self.reading = self
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.asked = asyncio.Event()
        self.abandoned: list[TurnRun] = []
        self.closed: list[Channel] = []
        self.run = TurnRun(QUEUED, reader_bytes=2000, on_abandon=self.abandoned.append)
        self.channel = Channel(1 << 20, self.closed.append)
        self.error: AerodromeError | None = None
        self.sent: list[SendMessage] = []
        self.deleted = 0

    async def _say(self) -> None:
        self.asked.set()
        await self.go_on.wait()
        if self.error is not None:
            raise self.error

    async def send(self, who: Principal, session_id: str, message: SendMessage) -> TurnRun:
        self.sent.append(message)
        await self._say()
        return self.run

    async def events_elsewhere(self, who: Principal, session_id: str, *, after: str | None = None) -> Channel:
        await self._say()
        return self.channel

    async def turn_events(self, *_: Any, **__: Any) -> tuple[TurnRun, Channel]:
        return self.run, self.run.events()

    async def set_member(self, *_: Any) -> None:
        raise AssertionError("it was not refused")

    async def delete(self, who: Principal, session_id: str) -> None:
        self.deleted += 1
        await self._say()


class Server(PeerServer):
    async def on_request(self, method: str, params: Raw | UnsetType) -> Any:
        return {"ok": True} if method == "connect" else await super().on_request(method, params)


class Far:
    """The node at the other end."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.servers: list[PeerServer] = []
        self.node = Node("b", "b-1")

    def accept(self) -> asyncio.Protocol:
        async def moved(_: SessionKey) -> None: ...

        connection = FrameConnection(cast("Any", None), other="a node")
        service = cast("SessionService", self.sessions)
        self.servers.append(Server(connection, service, moved=moved, peer="a-1", silence=10, on_closed=lambda _: None))
        return connection


@pytest.fixture
async def far() -> AsyncIterator[Far]:
    found = Far(Sessions())
    server = await asyncio.get_running_loop().create_server(found.accept, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found.node = Node("b", "b-1", f"127.0.0.1:{port}", peer_token="secret")
        yield found
        for each in found.servers:
            await each.aclose()


@asynccontextmanager
async def linked(far: Far) -> AsyncIterator[PeerLink]:
    link = await PeerLink.open(far.node, own="a-1", timeout=10, silence=10)
    try:
        yield link
    finally:
        await link.aclose()


class Local:
    """The sessions of the near end, where nothing runs."""

    draining = False

    def __init__(self) -> None:
        self.error: AerodromeError | None = None

    async def delete(self, who: Principal, session_id: str) -> None:
        if self.error is not None:
            raise self.error

    async def send(self, who: Principal, session_id: str, message: SendMessage) -> TurnRun:
        raise AssertionError


class Found:
    """Which node is said to run the session; the last one from then on."""

    alone = False
    own = "a-1"

    def __init__(self, *nodes: Node | None) -> None:
        self.on_awake: list[Any] = []
        self.followed: list[Any] = []
        self._nodes = list(nodes)

    def remembered(self, key: SessionKey) -> Node | None:
        return None

    def forget(self, key: SessionKey) -> None: ...

    async def elsewhere(self, key: SessionKey) -> Node | None:
        return self._nodes.pop(0) if len(self._nodes) > 1 else self._nodes[0]


@asynccontextmanager
async def sessions_of(
    cluster: Found, local: Local | None = None, patience: float = 10.0
) -> AsyncIterator[ClusterSessions]:
    links = PeerLinks(own=lambda: "a-1", timeout=10, silence=10)

    async def read(key: SessionKey, turn_id: str) -> TurnRow | None:
        return None

    yield ClusterSessions(
        cast("SessionService", local or Local()),
        cast("Cluster", cluster),
        links,
        read,
        patience=patience,
        reader_bytes=1 << 20,
    )
    await links.aclose()


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_subscription_that_nobody_wants_any_more_when_it_is_made_is_closed(far: Far) -> None:
    far.sessions.go_on.clear()
    async with sessions_of(Found(far.node)) as sessions:
        reading = asyncio.create_task(sessions.events(ALICE, "s", after="~"))
        await far.sessions.asked.wait()
        await cancelled(reading)
        await until(lambda: shapes.CLOSE in far.servers[0]._starting.values())
        far.sessions.go_on.set()
        await until(lambda: bool(far.sessions.closed))
    assert far.servers[0]._events == {}


async def test_who_leaves_before_the_prompt_is_accepted_has_abandoned_it(far: Far) -> None:
    far.sessions.go_on.clear()
    async with sessions_of(Found(far.node)) as sessions:
        sending = asyncio.create_task(sessions.send(ALICE, "s", SendMessage("hello")))
        await far.sessions.asked.wait()
        await cancelled(sending)
        await until(lambda: shapes.ABANDON in far.servers[0]._starting.values())
        far.sessions.go_on.set()
        await until(lambda: bool(far.sessions.abandoned))
    assert far.servers[0]._turns == {}
    assert far.servers[0]._starting == {}


async def test_the_race_for_a_session_that_the_other_node_lost_is_no_error_of_the_caller(far: Far) -> None:
    far.sessions.error = SessionElsewhere("another node has it")
    async with linked(far) as link:
        with pytest.raises(SessionMoved):
            await link.request(
                shapes.SEND,
                {"who": shapes.to_wire(ALICE), "session": "s", "message": {"prompt": "hello"}, "stream": 1},
            )


async def test_a_busy_session_is_busy(far: Far) -> None:
    far.sessions.error = SessionBusy("a turn is running", turn="turn_0", author="bob")
    async with sessions_of(Found(far.node)) as sessions:
        with pytest.raises(SessionBusy) as caught:
            await sessions.send(ALICE, "s", SendMessage("hello"))
    assert caught.value.extra == {"turn": "turn_0", "author": "bob"}
    assert len(far.sessions.sent) == 1


async def test_a_prompt_whose_node_goes_before_it_answers_is_sent_once_more_under_its_key(far: Far) -> None:
    """And waits as long as it is not known that the node is dead: it is then busy with itself."""
    far.sessions.go_on.clear()
    async with sessions_of(Found(far.node)) as sessions:
        sending = asyncio.create_task(sessions.send(ALICE, "s", SendMessage("hello")))
        await far.sessions.asked.wait()
        far.sessions.error = SessionBusy("still being worked on")
        await far.servers[0].aclose()
        far.sessions.go_on.set()
        await until(lambda: len(far.sessions.sent) >= 3)
        far.sessions.error = None
        turn = await sending
    assert turn.row == QUEUED
    assert len({message.idempotency_key for message in far.sessions.sent}) == 1
    assert far.sessions.sent[0].idempotency_key is not None


async def test_a_deletion_whose_node_goes_before_it_answers_has_not_failed(far: Far) -> None:
    local = Local()
    local.error = NotFound("no such session")
    far.sessions.go_on.clear()
    async with sessions_of(Found(far.node, None), local) as sessions:
        deleting = asyncio.create_task(sessions.delete(ALICE, "s"))
        await far.sessions.asked.wait()
        await far.servers[0].aclose()
        await deleting
    async with sessions_of(Found(None), local) as sessions:
        with pytest.raises(NotFound):
            await sessions.delete(ALICE, "s")


async def test_a_node_that_cannot_be_reached_is_looked_for_only_so_long() -> None:
    unreachable = Node("b", "b-1", "127.0.0.1:1")
    async with sessions_of(Found(unreachable), patience=0.3) as sessions:
        with pytest.raises(RuntimeUnavailable, match="the node b"):
            await sessions.send(ALICE, "s", SendMessage("hello"))


async def test_a_turn_s_reader_that_missed_events_is_told_so(far: Far) -> None:
    run = far.sessions.run
    async with linked(far) as link:
        turn = await sent(link)
        for number in range(50):  # more than the far end keeps for a reader
            run.publish(SessionEvent(f"e{number}", "assistant.message", b'{"x":"' + b"x" * 100 + b'"}'))
        run.resolve(DONE)
        events = turn.events()
        with pytest.raises(Lagging):
            async for _ in events:
                pass
        assert await turn.wait() == DONE


async def test_a_turn_that_has_ended_before_its_reader_asks_for_its_events_is_told_whole(far: Far) -> None:
    run = far.sessions.run
    async with linked(far) as link:
        turn = await sent(link)
        run.publish(SessionEvent("e1", "assistant.message", b"{}"))
        run.resolve(DONE)
        for _ in range(5):  # whatever it would say by itself has come by then
            await link.request(shapes.PING, {})
        assert [event.id async for event in turn.events()] == ["e1"]
        assert await turn.wait() == DONE


async def test_trace_that_nobody_has_looked_at_cannot_speak_in_another_stream(far: Far) -> None:
    run = far.sessions.run
    async with linked(far) as link:
        turn = await sent(link)
        events = turn.events()
        forged = (
            b'{"type":"model.log"},"ephemeral":true,"cursor":""},"stream":%d,"event":{"id":"e9","type":"x","raw":{}'
        )
        forged %= turn.stream.id  # as if it were that of another session
        run.publish(SessionEvent("e1", "model.log", forged, ephemeral=True))
        run.publish(SessionEvent("e2", "model.log", b'{"type":"model.log"}', ephemeral=True))
        run.resolve(DONE)
        assert [event.id async for event in events] == ["e2"]
        assert await turn.wait() == DONE


async def test_a_caller_that_waits_for_another_node_is_known_until_it_has_its_answer(far: Far) -> None:
    far.sessions.go_on.clear()
    async with sessions_of(Found(far.node)) as sessions:
        assert not sessions.waits
        sending = asyncio.create_task(sessions.send(ALICE, "s", SendMessage("hello")))
        await far.sessions.asked.wait()
        assert sessions.waits, "the prompt is on its way"
        far.sessions.go_on.set()
        turn = await sending
        waiting = asyncio.create_task(turn.wait())
        await asyncio.sleep(0)
        assert sessions.waits
        far.sessions.run.resolve(DONE)
        await waiting
        assert not sessions.waits
        gone = await sessions.send(ALICE, "s", SendMessage("again"))
        assert sessions.waits
        gone.abandon()
        assert not sessions.waits


async def test_who_leaves_a_turn_behind_a_cut_of_its_link_has_abandoned_it(far: Far) -> None:
    async with sessions_of(Found(far.node)) as sessions:
        turn = await sessions.send(ALICE, "s", SendMessage("hello"))
        events = turn.events()
        reading = asyncio.ensure_future(anext(aiter(events)))
        far.servers[0]._link.connection.abort("cut by the test")
        await until(lambda: len(far.servers) == 2 and bool(far.servers[1]._rejoined))
        far.sessions.run.publish(SessionEvent("e1", "assistant.message", b"{}"))
        assert (await reading).id == "e1"
        assert far.sessions.abandoned == []
        turn.abandon()
        events.close()
        await until(lambda: bool(far.sessions.abandoned))
        await until(lambda: far.servers[1]._rejoined == {})


async def test_a_node_that_drains_takes_no_prompt_for_others() -> None:
    local = Local()
    local.draining = True
    async with sessions_of(Found(Node("b", "b-1", "127.0.0.1:1")), local) as sessions:
        with pytest.raises(Draining):
            await sessions.send(ALICE, "s", SendMessage("hello"))


async def test_a_node_that_goes_tells_of_the_turns_that_have_ended(far: Far) -> None:
    run = far.sessions.run
    async with linked(far) as link:
        turn = await sent(link)
        events = turn.events()
        run.publish(SessionEvent("e1", "assistant.message", b"{}"))
        run.resolve(DONE)
        await far.servers[0].aclose()
        assert [event.id async for event in events] == ["e1"]
        assert await turn.wait() == DONE


async def test_a_turn_whose_node_goes_ends_as_the_ledger_says(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_LOOK", 0.01)
    rows: list[TurnRow | None] = [QUEUED, replace(QUEUED, status=TurnStatus.INTERRUPTED)]

    async def read(key: SessionKey, turn_id: str) -> TurnRow | None:
        return rows.pop(0)

    async with linked(far) as link:
        turn = await sent(link, read)
        await far.servers[0].aclose()
        assert (await turn.wait()).status is TurnStatus.INTERRUPTED
        rows.append(None)
        with pytest.raises(NotFound):
            await turn.wait()


async def sent(link: PeerLink, read: Any = None) -> RemoteTurn:
    async def rejoin(turn: TurnRow, after: str | None) -> Source:
        raise NotFound("it is not to be found again")

    turn = RemoteTurn(link, read, rejoin, reader_bytes=1 << 20)
    link.begin(turn.stream)
    params = {"who": shapes.to_wire(ALICE), "session": "s", "message": {"prompt": "hello"}, "stream": turn.stream.id}
    turn.accepted(shapes.turn_row_of(await link.request(shapes.SEND, params)))
    return turn


@pytest.mark.parametrize(
    "params",
    [
        {"who": {"tenant": "acme"}, "session": "s"},
        {
            "who": {"tenant": "acme", "user": "alice"},
            "session": "s",
            "name": "set_member",
            "arguments": ["bob", "king"],
        },
        {"who": {"tenant": "acme", "user": "alice"}, "session": "s", "name": "levitate"},
        {"session": "s"},
    ],
)
async def test_what_a_node_of_another_release_asks_is_refused_and_nothing_else(
    far: Far, params: dict[str, Any]
) -> None:
    async with linked(far) as link:
        with pytest.raises(Invalid):
            await link.request(shapes.CALL, params)
        # Fields that we do not know mean nothing.
        who = {**shapes.to_wire(ALICE), "mood": "good"}
        await link.request(shapes.CALL, {"who": who, "session": "s", "name": "delete", "urgent": True})
    assert far.sessions.deleted == 1


def test_an_error_that_we_do_not_know_is_an_error() -> None:
    error = shapes.error_of({"code": "levitating", "detail": "too high", "retry_after": None, "extra": {"meters": 3}})
    assert (error.code, error.detail, error.extra) == ("turn_failed", "too high", {"meters": 3})
    assert isinstance(shapes.error_of(shapes.error_to_wire(SessionMoved("moved"))), SessionMoved)


async def test_a_link_whose_opening_is_given_up_is_closed() -> None:
    arrived: asyncio.Future[asyncio.StreamReader] = asyncio.get_running_loop().create_future()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        arrived.set_result(reader)

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        node = Node("b", "b-1", f"127.0.0.1:{server.sockets[0].getsockname()[1]}", peer_token="secret")
        links = PeerLinks(own=lambda: "a-1", timeout=10, silence=10)
        opening = asyncio.create_task(links.to(node))
        reader = await arrived
        await reader.readuntil(b"connect")
        links.nodes_gone(frozenset({"b-1"}))
        with pytest.raises(PeerGone):
            await opening
        with suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 10)  # its end
        await links.aclose()
        writers[0].transport.abort()
    assert links._links == {}
    assert links._opening == {}


@pytest.mark.parametrize("address", ["", "somewhere", ":4321", "host:", "host:many", "host:-1"])
def test_an_address_that_is_none_is_of_a_node_that_cannot_be_reached(address: str) -> None:
    with pytest.raises(PeerGone):
        address_of(Node("b", "b-1", address))


def test_addresses() -> None:
    assert address_of(Node("b", "b-1", "host:4321")) == ("host", 4321)
    assert address_of(Node("b", "b-1", "[::1]:4321")) == ("::1", 4321)
