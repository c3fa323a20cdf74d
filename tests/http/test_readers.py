"""Readers that are many, slow, or gone without a word: what they cost, and that only they pay for it."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from aerodrome.http.limits import HttpLimits
from aerodrome.http.protocol import GuardedProtocol
from aerodrome.model import Principal, Role
from aerodrome.sessions.api import Message
from support.http_front import EVENTS, MESSAGES, Front, RawClient, parse_events, request
from support.scripted_sessions import ScriptedStream, event

FOLLOW = request("GET", EVENTS)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Two for each of a thousand readers, where a process may have so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this machine gives a process {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def no_help_from_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux cuts stalled peers off as well, not every system does."""
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)


async def follow(front: Front) -> tuple[RawClient, ScriptedStream]:
    client = await front.raw(FOLLOW)
    assert (await client.head())[0] == 200
    return client, front.sessions.streams[-1]


@pytest.mark.usefixtures("many_descriptors")
async def test_a_thousand_idle_readers_connect_quickly_and_cost_little(front: Front) -> None:
    before = len(asyncio.all_tasks())
    started = time.process_time()
    clients = []
    for _ in range(20):
        clients += await asyncio.gather(*[follow(front) for _ in range(50)])
    # Ten times what it takes, of this process's own time.
    assert time.process_time() - started < 10
    assert len(asyncio.all_tasks()) - before <= 3 * 1000

    for stream in front.sessions.streams:
        stream.put(event(1))
    async with asyncio.timeout(30):
        arrived = await asyncio.gather(*[client.event() for client, _ in clients])
    assert {item[0] for item in arrived} == {"e1"}


@pytest.mark.parametrize("limits", [HttpLimits(write_timeout=1.0)])
@pytest.mark.usefixtures("no_help_from_the_kernel")
async def test_a_reader_that_stops_reading_is_cut_off_and_the_others_get_everything(front: Front) -> None:
    front.sessions.stream_capacity = 500
    slow, slow_stream = await follow(front)
    slow.stop_reading()
    quick, quick_stream = await follow(front)
    held = 0

    async def produce() -> int:
        nonlocal held
        number = 0
        while not slow_stream.closed.is_set():
            for _ in range(20):
                number += 1
                happened = event(number, content="x" * 1000)
                slow_stream.put(happened)
                quick_stream.put(happened)
            held = max(held, front.server.unsent_bytes)
            # As the runtime does: a burst, then a pause.
            await asyncio.sleep(0.001)
        quick_stream.end()
        return number

    async with asyncio.timeout(60):
        producing = asyncio.create_task(produce())
        received = await quick.events()
        sent = await producing
        assert await slow.is_closed()
    assert [item[0] for item in received] == [f"e{number}" for number in range(1, sent + 1)]
    assert slow_stream.taken < sent
    # A full transport buffer and what one send puts on top of it, for two connections.
    assert 64 * 1024 < held < 2 * (64 * 1024 + 70 * 1024)


@pytest.mark.parametrize("limits", [HttpLimits(write_timeout=2.0)])
async def test_a_slow_reader_that_goes_on_reading_is_not_cut_off(front: Front) -> None:
    front.sessions.messages = [Message(f"m{number}", "user", "x" * 10_000, 1.0) for number in range(1000)]
    client = await front.raw(request("GET", MESSAGES + "?limit=1000"))
    status, headers = await client.head()
    assert status == 200
    remaining = int(headers["content-length"])
    assert remaining > 10_000_000
    # Slower than the time-out altogether, never silent for so long.
    for _ in range(10):
        remaining -= len(await client.reader.readexactly(min(remaining, 1_000_000)))
        await asyncio.sleep(0.25)
    await client.reader.readexactly(remaining)


@pytest.mark.parametrize("limits", [HttpLimits(write_timeout=0.3)])
@pytest.mark.usefixtures("no_help_from_the_kernel")
async def test_a_reader_that_takes_nothing_of_an_ordinary_answer_is_cut_off(front: Front) -> None:
    front.sessions.messages = [Message(f"m{number}", "user", "x" * 10_000, 1.0) for number in range(1000)]
    client = await front.raw()
    client.stop_reading()
    await client.send(request("GET", MESSAGES + "?limit=1000"))
    async with asyncio.timeout(20):
        while not front.server.connections:
            await asyncio.sleep(0.01)
        while front.server.connections:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("limits", [HttpLimits(read_timeout=0.3)])
@pytest.mark.parametrize("start", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: t"])
async def test_a_connection_that_never_asks_is_closed(front: Front, start: bytes) -> None:
    client = await front.raw(start)
    assert await client.is_closed()


@pytest.mark.parametrize(
    ("limits", "who", "refusal"),
    [
        (
            HttpLimits(max_readers_per_user=2),
            "aero_alice",
            (429, "rate_limited", "this user reads 2 streams of events already"),
        ),
        (
            HttpLimits(max_readers=2),
            "aero_bob",
            (503, "capacity", "2 streams of events are read from this node already"),
        ),
    ],
)
async def test_one_more_reader_than_allowed_is_refused(front: Front, who: str, refusal: tuple[int, str, str]) -> None:
    await front.sessions.set_member(Principal("acme", "alice"), "s1", "bob", Role.READER)
    first, stream = await follow(front)
    await follow(front)
    third = await front.raw(request("GET", EVENTS, key=who))
    status, headers, document = await third.response()
    assert (status, document["code"], document["detail"]) == refusal
    assert headers["retry-after"] == "1"
    assert len(front.sessions.streams) == 2  # nothing was done for it
    first.abort()
    await asyncio.wait_for(stream.closed.wait(), 20)
    await third.send(request("GET", EVENTS, key=who))
    assert (await third.head())[0] == 200


async def test_a_reader_that_is_refused_takes_no_place(front: Front) -> None:
    for _ in range(3):
        response = await front.client.get("/api/v1/sessions/none/events")
        assert response.status_code == 404
    assert front.readers.count == 0


@pytest.mark.parametrize("limits", [HttpLimits(keep_alive=0.3)])
async def test_a_connection_that_asks_no_more_is_closed(front: Front) -> None:
    client = await front.raw(request("GET", "/health"))
    assert (await client.response())[0] == 200
    assert await client.is_closed()


def test_a_proxy_closes_its_idle_connections_before_we_do() -> None:
    # 60 s are what load balancers of clouds and ingress controllers keep one for.
    assert HttpLimits().keep_alive > 60


@pytest.mark.parametrize("limits", [HttpLimits(write_timeout=0.3, read_timeout=0.3, keep_alive=0.3)])
async def test_a_stream_outlives_the_time_outs_of_requests(front: Front) -> None:
    client, stream = await follow(front)
    await asyncio.sleep(0.5)
    stream.put(event(1))
    assert parse_events((await client.chunk()).decode())[0][0] == "e1"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such option")
async def test_the_kernel_gives_up_on_a_peer_that_vanished(
    front: Front, limits: HttpLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing on one machine can vanish without a word, so this looks at the option and not at its effect.
    made: list[int] = []
    plain = GuardedProtocol.connection_made

    def connection_made(self: GuardedProtocol, transport: asyncio.Transport) -> None:
        plain(self, transport)
        sock = transport.get_extra_info("socket")
        made.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    monkeypatch.setattr(GuardedProtocol, "connection_made", connection_made)
    await follow(front)
    assert made == [limits.write_timeout * 1000]
