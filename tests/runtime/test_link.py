"""The link over real sockets, against a scripted peer."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from aerodrome.runtime.link import Link, LinkClosed, RemoteError, RequestRefused
from aerodrome.wire import envelope
from aerodrome.wire.framing import encode_frame
from support.peer import Owner, Peer, linked

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
async def pair(owner: Owner) -> AsyncIterator[tuple[Link, Peer]]:
    async with linked(owner) as both:
        yield both


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


# --- requests ---


async def test_a_request_is_answered(pair: tuple[Link, Peer]) -> None:
    link, peer = pair
    asking = asyncio.create_task(link.request("ping", {"a": "ü\u2028"}, timeout=30))
    request = await peer.receive()
    assert request == {"jsonrpc": "2.0", "id": request["id"], "method": "ping", "params": {"a": "ü\u2028"}}
    peer.answer(request, {"pong": [1, None]})
    assert await asking == {"pong": [1, None]}


async def test_answers_find_their_requests_in_any_order(pair: tuple[Link, Peer]) -> None:
    link, peer = pair
    asking = [asyncio.create_task(link.request("double", n, timeout=30)) for n in range(500)]
    requests = [await peer.receive() for _ in asking]
    assert len({request["id"] for request in requests}) == 500
    for request in reversed(requests):
        peer.answer(request, request["params"] * 2)
    assert await asyncio.gather(*asking) == [n * 2 for n in range(500)]


async def test_a_refusal_is_an_error_with_its_code(pair: tuple[Link, Peer]) -> None:
    link, peer = pair
    asking = asyncio.create_task(link.request("open", {}, timeout=30))
    request = await peer.receive()
    peer.send({"id": request["id"], "error": {"code": -32603, "message": "Session not found: x"}})
    with pytest.raises(RemoteError, match="open: Session not found: x") as caught:
        await asking
    assert (caught.value.method, caught.value.code) == ("open", -32603)


async def test_a_request_that_the_runtime_would_not_answer_is_not_sent(pair: tuple[Link, Peer]) -> None:
    link, peer = pair
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(RemoteError, match="nested deeper"):
        await link.request("send", {"attachments": deep}, timeout=30)
    asking = asyncio.create_task(link.request("send", "half a \ud83d character", timeout=30))
    request = await peer.receive()
    assert request["params"] == "half a \ufffd character"
    peer.answer(request, None)
    assert await asking is None


async def test_an_answer_larger_than_a_frame_is_an_error_and_the_link_goes_on() -> None:
    async with linked(Owner(), max_frame=1000) as (link, peer):
        asking = asyncio.create_task(link.request("history", {}, timeout=30))
        peer.answer(await peer.receive(), "x" * 50_000)
        with pytest.raises(RemoteError, match="over the limit"):
            await asking
        asking = asyncio.create_task(link.request("ping", {}, timeout=30))
        peer.answer(await peer.receive(), "pong")
        assert await asking == "pong"


async def test_a_request_larger_than_a_frame_is_refused_and_its_session_told() -> None:
    owner = Owner()
    async with linked(owner, max_frame=1000) as (_, peer):
        peer.ask(7, "sessionFs.appendFile", {"sessionId": "s1", "content": "x" * 50_000})
        assert (await peer.receive())["error"]["message"].endswith("(limits.max_frame)")
        assert [session for session, _ in owner.oversized] == ["s1"]


async def test_requests_that_wait_for_people_do_not_keep_the_link_from_being_read() -> None:
    owner, gate = Owner(), asyncio.Event()

    async def perform(method: str, params: Any) -> Any:
        if method == "userInput.request":
            await gate.wait()
        return method

    owner.perform = perform
    async with linked(owner, max_inbound=2, held=frozenset({"userInput.request"})) as (_, peer):
        for number in range(10):
            peer.ask(number, "userInput.request", {})
        await asyncio.sleep(0)
        peer.ask(99, "sessionFs.readFile", {})
        assert (await peer.receive())["id"] == 99
        gate.set()


async def test_the_deadline_passes_and_the_late_answer_is_dropped(pair: tuple[Link, Peer]) -> None:
    link, peer = pair
    with pytest.raises(TimeoutError):
        await link.request("slow", {}, timeout=0.01)
    late = await peer.receive()
    asking = asyncio.create_task(link.request("next", {}, timeout=30))
    request = await peer.receive()
    peer.answer(late, "too late")
    peer.answer(late, "twice")
    peer.send({"id": 10_000, "result": "to nobody"})
    peer.send({"id": None, "error": {"code": -32700, "message": "parse error"}})
    peer.answer(request, "in time")
    assert await asking == "in time"


async def test_a_cancelled_request_leaves_nothing_behind(pair: tuple[Link, Peer]) -> None:
    link, peer = pair
    asking = asyncio.create_task(link.request("slow", {}, timeout=30))
    request = await peer.receive()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    peer.answer(request, "too late")
    assert await echo(link, peer) == "still here"
    assert link._pending == {}


async def echo(link: Link, peer: Peer) -> Any:
    asking = asyncio.create_task(link.request("echo", "still here", timeout=30))
    request = await peer.receive()
    peer.answer(request, request["params"])
    return await asking


# --- the end of the connection ---


@pytest.mark.parametrize(
    ("last_bytes", "reason"),
    [
        (b"", "the runtime closed the connection"),
        (b"Content-Length: 10\r\n\r\n{", "within a frame"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "broken framing from the runtime: .*without a colon"),
        (b"x" * 10_000, "broken framing from the runtime: no end of header"),
        (b"Content-Length: 1000000000000\r\n\r\n", "over the limit"),
    ],
)
async def test_all_who_wait_learn_of_the_end_once(
    pair: tuple[Link, Peer], owner: Owner, last_bytes: bytes, reason: str
) -> None:
    link, peer = pair
    asking = [asyncio.create_task(link.request(f"m{n}", {}, timeout=30)) for n in range(20)]
    for _ in asking:
        await peer.receive()
    peer.writer.write(last_bytes)
    peer.writer.write_eof()
    for task in asking:
        with pytest.raises(LinkClosed, match=reason):
            await task
    with pytest.raises(LinkClosed, match=reason):
        await link.request("after", {}, timeout=30)
    await link.aclose()
    assert len(owner.closed) == 1
    assert link.closed


async def test_a_reset_connection_is_an_end(pair: tuple[Link, Peer], owner: Owner) -> None:
    link, peer = pair
    asking = asyncio.create_task(link.request("m", {}, timeout=30))
    await peer.receive()
    peer.writer.transport.abort()
    with pytest.raises(LinkClosed):
        await asking
    assert len(owner.closed) == 1


async def test_what_came_before_garbage_counts(pair: tuple[Link, Peer], owner: Owner) -> None:
    link, peer = pair
    asking = asyncio.create_task(link.request("m", {}, timeout=30))
    request = await peer.receive()
    answer = b'{"jsonrpc":"2.0","id":%d,"result":"whole"}' % request["id"]
    peer.writer.write(encode_frame(answer) + b"garbage\r\n\r\n")
    assert await asking == "whole"
    await until(lambda: link.closed)
    assert "broken framing" in owner.closed[0]


async def test_a_frame_far_over_the_limit_ends_the_link(owner: Owner) -> None:
    async with linked(owner, max_frame=1000) as (link, peer):
        peer.writer.write(b"Content-Length: 100000\r\n\r\n")
        await until(lambda: link.closed)
        assert "100000 bytes is over the limit of 1000" in owner.closed[0]


async def test_a_body_that_is_no_message_is_passed_over(pair: tuple[Link, Peer]) -> None:
    link, peer = pair
    for body in (b"", b"[]", b"{", b"\xff", b'{"id":{}}'):
        peer.writer.write(encode_frame(body))
    assert await echo(link, peer) == "still here"


async def test_aborting_tells_the_reason_at_once(pair: tuple[Link, Peer], owner: Owner) -> None:
    link, peer = pair
    asking = asyncio.create_task(link.request("m", {}, timeout=30))
    await peer.receive()
    link.abort("it hangs")
    assert owner.closed == ["it hangs"]
    with pytest.raises(LinkClosed, match="m: it hangs"):
        await asking
    with pytest.raises(EOFError):
        await peer.receive()


async def test_closing_twice_ends_everything_it_has_begun(owner: Owner) -> None:
    begun = asyncio.Event()
    ended: list[str] = []

    async def perform(method: str, params: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(method)

    owner.perform = perform
    before = asyncio.all_tasks()
    async with linked(owner) as (link, peer):
        peer.ask(1, "forever")
        asking = asyncio.create_task(link.request("m", {}, timeout=30))
        await begun.wait()
        await asyncio.gather(link.aclose(), link.aclose())
        await link.aclose()
        assert ended == ["forever"]
        assert link._connection._socket is None
        assert owner.closed == ["the link was closed"]
        with pytest.raises(LinkClosed):
            await asking
        with pytest.raises(LinkClosed):
            await link.request("after", {}, timeout=30)
    left = {task for task in asyncio.all_tasks() - before if "link" in task.get_name()}
    assert left == set()


async def test_once_closed_the_connection_has_gone(pair: tuple[Link, Peer]) -> None:
    link, peer = pair
    await link.aclose()
    assert link._connection._socket is None
    with pytest.raises(EOFError):
        await peer.receive()


async def test_an_error_nobody_waits_for_any_more_is_not_reported(pair: tuple[Link, Peer]) -> None:
    link, peer = pair
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    asking = asyncio.create_task(link.request("m", {}, timeout=30))
    await peer.receive()
    asking.cancel()
    link.abort("gone")
    with pytest.raises(asyncio.CancelledError):
        await asking
    del asking
    gc.collect()
    assert complaints == []


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can get the port meanwhile
        with pytest.raises(LinkClosed, match=r"no connection to 127\.0\.0\.1:"):
            await Link.connect("127.0.0.1", taken.getsockname()[1], Owner(), timeout=30)


async def test_nobody_accepts() -> None:
    """A listener whose queue is full answers no SYN: only the deadline ends the wait."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = []
        try:
            for _ in range(3):
                filler = socket.socket()
                fillers.append(filler)
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            with pytest.raises(LinkClosed, match="time-out"):
                await Link.connect("127.0.0.1", full.getsockname()[1], Owner(), timeout=0.1)
        finally:
            for filler in fillers:
                filler.close()


# --- what the runtime asks ---


async def test_requests_of_the_runtime_are_served_at_the_same_time(pair: tuple[Link, Peer], owner: Owner) -> None:
    _, peer = pair
    started: list[int] = []
    all_started = asyncio.Event()

    async def perform(method: str, params: int) -> int:
        started.append(params)
        if len(started) == 20:
            all_started.set()
        await all_started.wait()
        return params * 2

    owner.perform = perform
    for n in range(20):
        peer.ask(f"id-{n}", params=n)
    answers = [await peer.receive() for _ in range(20)]
    assert started == list(range(20))
    assert {a["id"]: a["result"] for a in answers} == {f"id-{n}": n * 2 for n in range(20)}


async def test_a_refusal_and_a_crash_are_answered_as_errors(pair: tuple[Link, Peer], owner: Owner) -> None:
    _, peer = pair

    async def perform(method: str, params: Any) -> Any:
        if method == "refused":
            raise RequestRefused(envelope.METHOD_NOT_FOUND, "not offered")
        if method == "unspeakable":
            return object()
        raise RuntimeError("secret detail")

    owner.perform = perform
    for method, code, text in (
        ("refused", envelope.METHOD_NOT_FOUND, "not offered"),
        ("crash", envelope.INTERNAL_ERROR, "crash failed"),
        ("unspeakable", envelope.INTERNAL_ERROR, "unspeakable failed"),
    ):
        peer.ask(1, method)
        assert (await peer.receive())["error"] == {"code": code, "message": text}


async def test_notifications_come_in_order_and_one_that_fails_stops_nothing(
    pair: tuple[Link, Peer], owner: Owner
) -> None:
    link, peer = pair

    def fail() -> None:
        if len(owner.notifications) == 3:
            raise RuntimeError("a bug of one session")

    owner.on_notified = fail
    for n in range(10):
        peer.send({"method": "event", "params": n})
    assert await echo(link, peer) == "still here"
    assert owner.notifications == [("event", n) for n in range(10)]


async def test_nothing_is_told_after_the_end(pair: tuple[Link, Peer], owner: Owner) -> None:
    link, peer = pair
    owner.on_notified = lambda: link.abort("enough")
    peer.writer.write(encode_frame(b'{"method":"event","params":1}') * 10)
    await until(lambda: link.closed)
    assert owner.notifications == [("event", 1)]


# --- flow control ---


async def test_a_runtime_that_asks_too_much_has_to_wait(owner: Owner) -> None:
    may_answer = asyncio.Event()
    serving = 0

    async def perform(method: str, params: Any) -> None:
        nonlocal serving
        serving += 1
        await may_answer.wait()

    owner.perform = perform
    async with linked(owner, max_inbound=4) as (_, peer):
        for n in range(4):
            peer.ask(n)
        await until(lambda: serving == 4)
        # More than the buffers of the system and of the transports hold.
        peer.writer.write(encode_frame(b'{"method":"event","params":"%b"}' % (b"x" * MIB)) * 32)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(peer.writer.drain(), 0.3)
        assert owner.notifications == []
        may_answer.set()
        await asyncio.wait_for(peer.writer.drain(), 30)
        await until(lambda: len(owner.notifications) == 32)
        assert {(await peer.receive())["id"] for _ in range(4)} == {0, 1, 2, 3}


async def test_a_runtime_that_asks_for_much_at_a_time_has_to_wait(owner: Owner) -> None:
    """Few requests of many bytes fill a node's memory as well."""
    may_answer = asyncio.Event()
    serving: list[str] = []

    async def perform(method: str, params: Any) -> None:
        serving.append(method)
        await may_answer.wait()

    owner.perform = perform
    async with linked(owner, max_inbound_bytes=2 * MIB) as (link, peer):
        for n in range(20):
            peer.ask(n, "sessionFs.writeFile", {"content": "x" * MIB})
        await until(lambda: len(serving) == 2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(peer.writer.drain(), 0.3)
        assert len(serving) == 2
        assert not link.connection.reading
        may_answer.set()
        assert {(await peer.receive())["id"] for _ in range(20)} == set(range(20))
        assert link.connection.reading


async def test_a_runtime_that_does_not_read_has_little_buffered_for_it(pair: tuple[Link, Peer]) -> None:
    link, peer = pair
    requests = [link.request("big", "x" * MIB, timeout=0.3) for _ in range(100)]
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert all(isinstance(outcome, TimeoutError) for outcome in outcomes)
    # What had to wait for room in the buffer was given up without being written.
    asking = asyncio.create_task(link.request("last", {}, timeout=30))
    written = 0
    while (request := await peer.receive())["method"] == "big":
        written += 1
    assert 0 < written < 90
    peer.answer(request, "read")
    assert await asking == "read"


async def test_who_waits_to_write_learns_of_the_end(pair: tuple[Link, Peer]) -> None:
    link, peer = pair
    filling = [asyncio.create_task(link.request("big", "x" * MIB, timeout=30)) for _ in range(30)]
    await until(lambda: not link._writable.is_set())
    peer.writer.transport.abort()
    outcomes = await asyncio.gather(*filling, return_exceptions=True)
    assert all(isinstance(outcome, LinkClosed) for outcome in outcomes)


# --- latency ---


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="the kernel has no such option")
async def test_no_exchange_waits_for_a_delayed_ack(owner: Owner) -> None:
    """In an exchange of requests and answers the kernel falls back to delayed ACKs; the link asks again."""
    quick: list[int] = []

    async def perform(method: str, params: Any) -> None:
        return None

    owner.perform = perform
    async with linked(owner) as (link, peer):
        sock = link._connection._socket
        assert sock is not None
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        owner.on_notified = lambda: quick.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))
        for n in range(10):
            assert await echo(link, peer) == "still here"
            peer.ask(n)
            await peer.receive()
        delayed_again = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 0
        peer.send({"method": "event"})
        await until(lambda: len(quick) == 1)
        assert quick == [1]
        # Else this test would prove nothing on this kernel.
        assert delayed_again or pytest.skip("the kernel keeps quick ACKs by itself")


# --- resting between the pieces of an answer ---


def told(event_type: str, *, ephemeral: bool = True) -> dict[str, Any]:
    event = {"type": event_type, "data": {}, "id": "e", "ephemeral": ephemeral}
    return {"method": "session.event", "params": {"sessionId": "s", "event": event}}


def send_compact(peer: Peer, *messages: dict[str, Any]) -> None:
    """In one piece, and spelled as the CLI does."""
    bodies = [json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode() for message in messages]
    peer.writer.write(b"".join(map(encode_frame, bodies)))


async def test_behind_a_piece_of_an_answer_the_link_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome.runtime.link.REST", 3600)
    seen: list[str] = []
    async with linked(Owner(), on_event=lambda _, event: seen.append(event.type)) as (link, peer):
        transport = link._connection._transport
        assert transport is not None
        # Nothing else makes it rest, also together with a piece: what comes with it may be waited for.
        send_compact(peer, told("assistant.message"))
        send_compact(peer, told("assistant.message_delta"), told("session.idle"))
        await until(lambda: len(seen) == 3)
        assert transport.is_reading()
        send_compact(peer, told("assistant.message_delta"), told("assistant.streaming_delta"))
        await until(lambda: len(seen) == 5)
        assert not transport.is_reading()
        send_compact(peer, told("session.idle"))
        link._rested()
        await until(lambda: len(seen) == 6)
        send_compact(peer, told("assistant.message_delta"))
        await until(lambda: not transport.is_reading())
        # Whatever is asked meanwhile is sent, and a link at rest is closed like any other.
        asking = asyncio.create_task(link.request("m", {}, timeout=30))
        assert (await peer.receive())["method"] == "m"
        await link.aclose()
        with pytest.raises(LinkClosed):
            await asking
        assert link._resting is None


async def test_the_end_of_a_rest_is_no_end_of_back_pressure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome.runtime.link.REST", 3600)
    owner, may_answer = Owner(), asyncio.Event()

    async def perform(method: str, params: Any) -> None:
        await may_answer.wait()

    owner.perform = perform
    async with linked(owner, max_inbound=1, on_event=lambda *_: None) as (link, peer):
        transport = link._connection._transport
        assert transport is not None
        send_compact(peer, told("assistant.message_delta"))
        await until(lambda: link._resting is not None)
        link.on_bodies([b'{"jsonrpc":"2.0","id":1,"method":"m"}'])
        link._rested()
        assert not transport.is_reading()
        send_compact(peer, told("assistant.message_delta"))
        may_answer.set()
        await peer.receive()
        # And back again: the request is answered, and reads go on, until the next piece.
        await until(lambda: link._resting is not None)
        link._rested()
        assert transport.is_reading()
