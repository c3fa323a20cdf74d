"""The server as the application sees it: addresses, start, stop."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import cast

import pytest

from aerodrome.errors import ConfigError
from aerodrome.http.api import create_app
from aerodrome.http.protocol import GatheringTransport
from aerodrome.http.server import HttpServer
from aerodrome.http.shutdown import Signal
from support.http_front import EVENTS, MESSAGES, Front, request
from support.scripted_sessions import Keys, Probe, ScriptedAdministration, ScriptedSessions, event


def server_on(host: str, port: int) -> HttpServer:
    return HttpServer(create_app(ScriptedSessions(), Keys(), Probe(), ScriptedAdministration()), host, port)


async def test_a_port_in_use_is_a_configuration_error(front: Front) -> None:
    with pytest.raises(ConfigError, match=r"server\.http = '127\.0\.0\.1:\d+': .*another aerodrome"):
        await server_on("127.0.0.1", front.port).start()


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
async def test_an_address_that_is_not_ours_is_a_configuration_error(host: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.http"):
        await server_on(host, 0).start()


async def test_signals_are_left_to_the_application() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    server = server_on("127.0.0.1", 0)
    await server.start()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    await server.stop(0)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_stopping_is_quick_when_nothing_is_in_flight_and_safe_twice(front: Front) -> None:
    idle = await front.raw()
    kept = await front.raw(request("GET", "/health"))
    assert (await kept.response())[0] == 200
    async with asyncio.timeout(20):
        await asyncio.gather(front.server.stop(30), front.server.stop(30))
        await front.server.stop(30)
    assert await idle.is_closed()
    assert await kept.is_closed()
    with pytest.raises(OSError, match="Connect"):
        await front.raw()
    # The address is free again.
    with socket.create_server((front.host, front.port)):
        pass


async def test_a_server_that_was_not_started_can_be_stopped() -> None:
    await server_on("127.0.0.1", 0).stop(1)


async def test_a_stopping_server_is_not_ready(front: Front) -> None:
    front.sessions.autofinish = None
    busy = await front.raw(request("POST", MESSAGES, "Content-Type: application/json", body=b'{"prompt":"Hi"}'))
    probe = await front.raw(request("GET", "/health"))
    await probe.response()
    while not front.sessions.turns:
        await front.sessions.called.wait()
    stopping = asyncio.create_task(front.server.stop(30))
    await probe.send(request("GET", "/ready"))
    status, _, document = await probe.response()
    assert (status, document["code"]) == (503, "draining")
    front.sessions.turns[0].finish()
    assert (await busy.response())[0] == 200
    await stopping


async def test_a_request_that_hangs_behind_the_front_door_does_not_hold_the_server(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def hang(*args: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(front.sessions, "get", hang)
    client = await front.raw(request("GET", "/api/v1/sessions/s1"))
    await reached.wait()
    async with asyncio.timeout(20):
        await front.server.stop(0.05)
    assert await client.is_closed()


async def test_a_reader_that_fetches_nothing_does_not_hold_the_server(front: Front) -> None:
    client = await front.raw(request("GET", EVENTS))
    await client.head()
    client.stop_reading()
    front.sessions.streams[0].put(*[event(number, content="x" * 20_000) for number in range(500)])
    async with asyncio.timeout(20):
        await front.server.stop(0.1)


def test_a_signal_calls_back_once_and_later_subscribers_at_once() -> None:
    happened = Signal()
    calls: list[str] = []
    happened.subscribe(lambda: calls.append("first"))
    unsubscribe = happened.subscribe(lambda: calls.append("gone"))
    unsubscribe()
    happened.set()
    happened.set()
    happened.subscribe(lambda: calls.append("late"))
    assert calls == ["first", "late"]


class _Recording:
    """As much of a transport as is needed to see what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 100


async def test_what_is_written_in_one_go_leaves_as_one_piece() -> None:
    below = _Recording()
    transport = GatheringTransport(cast("asyncio.Transport", below), asyncio.get_running_loop())
    transport.write(b"head ")
    transport.write(b"body")
    assert (below.written, transport.get_write_buffer_size()) == ([], 109)
    await asyncio.sleep(0)
    assert (below.written, transport.get_write_buffer_size()) == ([b"head body"], 100)
    # What was written before the end goes out before it; a connection that is cut takes nothing more.
    transport.write(b"last")
    transport.close()
    assert (below.written[1:], below.closed) == ([b"last"], True)
    await asyncio.sleep(0)
    below.closed = False
    transport.write(b"never")
    transport.abort()
    await asyncio.sleep(0)
    assert below.written == [b"head body", b"last"]
