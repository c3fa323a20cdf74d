"""The proxy of a sandbox, without one: what it passes on, and to whom."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import structlog

from aerodrome.app.sandbox import sandbox_options
from aerodrome.config.settings import Settings
from aerodrome.runtime.launchers.sandbox.egress import Egress, Network, Target
from aerodrome.runtime.launchers.sandbox.proxy import EgressProxy, Refused, read_head

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def proxy(egress: Egress, upstream: Target | None = None, **options: int) -> AsyncIterator[int]:
    listener = socket.socket()
    # Of those that it accepts, too: what a program does not read stays with the proxy, not the kernel.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port: int = listener.getsockname()[1]
    running = EgressProxy("rt-1", egress, upstream, **options)
    await running.start(listener)
    try:
        yield port
    finally:
        await running.aclose()


async def exchange(port: int, *pieces: bytes) -> bytes:
    """All that is answered to these pieces; the second is sent when the first has been answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        answered = b""
        for number, piece in enumerate(pieces):
            writer.write(piece)
            if number + 1 < len(pieces):
                answered += await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(30):
            return answered + await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def telling(seen: list[bytes]) -> Serve:
    """A server that keeps the head of the request, and answers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    return serve


async def test_a_plain_request_reaches_what_is_named_without_what_is_the_proxys() -> None:
    seen: list[bytes] = []
    async with (
        listening(telling(seen)) as server,
        proxy(Egress(Network.NONE, frozenset({Target("127.0.0.1", server)}))) as port,
    ):
        head = f"POST http://127.0.0.1:{server}/v1?a=b HTTP/1.1\r\nHost: x\r\nProxy-Authorization: secret\r\n"
        answer = await exchange(port, f"{head}Connection: keep-alive\r\nX: y\r\n\r\n".encode())
    assert answer.endswith(b"ok")
    assert seen == [b"POST /v1?a=b HTTP/1.1\r\nHost: x\r\nX: y\r\nConnection: close\r\n\r\n"]


async def test_a_tunnel_is_what_is_sent_in_it() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"heard: " + await reader.readline())
        writer.close()

    async with listening(echo) as server, proxy(Egress(Network.NONE, frozenset({Target("localhost", server)}))) as port:
        answer = await exchange(port, f"CONNECT localhost:{server} HTTP/1.1\r\n\r\n".encode(), b"anything\n")
    assert answer == b"HTTP/1.1 200 Connection established\r\n\r\nheard: anything\n"


@pytest.mark.parametrize("network", [Network.NONE, Network.OPEN])
async def test_a_name_that_leads_to_this_machine_is_refused(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is a name of the public internet, as far as its letters go."""
    seen: list[bytes] = []

    async def look_up(host: str, port: int, **_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        assert host == "rebound.example"
        return [(0, 0, 0, "", ("8.8.8.8", port)), (0, 0, 0, "", ("127.0.0.1", port))]

    async with listening(telling(seen)) as server, proxy(Egress(network)) as port:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
        reader, writer = await asyncio.open_connection(sock=_connected(port))
        writer.write(f"GET http://rebound.example:{server}/ HTTP/1.1\r\n\r\n".encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 403 ")
        writer.close()
    assert seen == []


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


async def test_all_that_is_elsewhere_goes_by_the_operators_proxy() -> None:
    seen: list[bytes] = []

    async def operators(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 403 No\r\n\r\n" if b"bad" in seen[-1] else b"HTTP/1.1 200 OK\r\n\r\n")
        await reader.read(1)
        writer.close()

    async with listening(operators) as by, proxy(Egress(Network.PROXY), Target("127.0.0.1", by)) as port:
        passed = await exchange(port, b"CONNECT good.example:443 HTTP/1.1\r\n\r\n", b"x")
        refused = await exchange(port, b"CONNECT bad.example:443 HTTP/1.1\r\n\r\n")
        here = await exchange(port, b"CONNECT 127.0.0.1:443 HTTP/1.1\r\n\r\n")
    assert passed.startswith(b"HTTP/1.1 200 ")
    assert refused.startswith(b"HTTP/1.1 502 ")
    assert here.startswith(b"HTTP/1.1 403 ")
    assert seen == [b"CONNECT good.example:443 HTTP/1.1", b"CONNECT bad.example:443 HTTP/1.1"]


@pytest.mark.parametrize(
    "head",
    [
        *("", "GET / HTTP/1.1", "GET ftp://x/ HTTP/1.1", "CONNECT x HTTP/1.1", "CONNECT x:99999 HTTP/1.1"),
        *("GET http://x:y/ HTTP/1.1", "GET http:///x HTTP/1.1", "\xff\xfe \xff \xff", "GET"),
        # What a proxy behind this one might read as two requests, or as one to somebody else.
        *("CONNECT a\tHTTP/1.1\n\nX:443 HTTP/1.1", "CONNECT a\nHost:b:443 HTTP/1.1", "CONNECT a@b:443 HTTP/1.1"),
        *("CONNECT a/b:443 HTTP/1.1", "CONNECT a#b:443 HTTP/1.1", "CONNECT [::1]x:443 HTTP/1.1"),
        *("GET http://a%0ab/ HTTP/1.1", "GET http://a/ HTTP/1.1\nX:y", "GET\n http://a/ HTTP/1.1"),
        *("GET http://a\x0bb/ HTTP/1.1", "GET http://a/x\ny HTTP/1.1", f"CONNECT {'a' * 300}:443 HTTP/1.1"),
    ],
)
def test_what_is_no_request_is_refused(head: str) -> None:
    with pytest.raises(Refused, match="does not understand"):
        read_head(head.encode("latin-1") + b"\r\n\r\n")


async def test_who_opens_many_connections_gets_no_more_than_there_are() -> None:
    async with proxy(Egress(Network.NONE)) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(70)]
        async with asyncio.timeout(30):
            ended = await asyncio.gather(*(_ended(reader) for reader, _ in held[64:]))
        assert all(ended)
        for _, writer in held:
            writer.close()


async def test_every_session_of_a_runtime_has_its_connections(tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {"provider": {"type": "openai", "base_url": "http://127.0.0.1:9/v1"}, "runtime": {"max_sessions": 100}}
    )
    options = sandbox_options(settings, tmp_path)
    gate = asyncio.Event()

    async def held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.close()

    async with (
        listening(held) as server,
        proxy(Egress(Network.NONE, frozenset({Target("127.0.0.1", server)})), connections=options.connections) as port,
    ):
        tunnels = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        for reader, writer in tunnels:
            writer.write(f"CONNECT 127.0.0.1:{server} HTTP/1.1\r\n\r\n".encode())
            assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        gate.set()
        for _, writer in tunnels:
            writer.close()


async def test_who_does_not_read_an_answer_holds_no_more_than_a_connection_and_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aerodrome.runtime.launchers.sandbox.proxy._LINGER", 1.0)

    async def long_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(bytes(60_000))
        writer.close()

    async with (
        listening(long_answer) as server,
        proxy(Egress(Network.NONE, frozenset({Target("127.0.0.1", server)}))) as port,
    ):
        silent = [_deaf() for _ in range(100)]
        loop = asyncio.get_running_loop()
        held = 0
        for number, each in enumerate(silent):
            await loop.sock_connect(each, ("127.0.0.1", port))
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(each, f"GET http://127.0.0.1:{server}/ HTTP/1.1\r\n\r\n".encode())
            if number % 10 == 9:
                held = max(held, _established(port))
        async with asyncio.timeout(60):
            while count := _established(port):
                held = max(held, count)
                await asyncio.sleep(0.01)  # nobody announces it
        for each in silent:
            each.close()
    assert 0 < held < 70  # 64, and some that are being refused


def _deaf() -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.setblocking(False)
    return connection


def _established(port: int) -> int:
    """Connections that this process has accepted on the port, and holds."""
    held = psutil.Process().net_connections("tcp")
    return len([each for each in held if each.laddr.port == port and each.status != psutil.CONN_LISTEN])


async def test_many_refusals_do_not_fill_the_log() -> None:
    with structlog.testing.capture_logs() as logged:
        async with proxy(Egress(Network.NONE)) as port:
            for _ in range(150):
                assert b" 403 " in await exchange(port, b"CONNECT a.example:443 HTTP/1.1\r\n\r\n")
    refusals = [line for line in logged if line["event"] == "sandbox.refused"]
    assert len(refusals) == 100
    assert refusals[-1]["last"]


async def test_who_connects_again_and_again_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome.runtime.launchers.sandbox.proxy._RATE", 20)
    monkeypatch.setattr("aerodrome.runtime.launchers.sandbox.proxy._AT_ONCE", 4)
    began = time.monotonic()
    async with proxy(Egress(Network.NONE)) as port:
        for _ in range(16):
            assert b" 403 " in await exchange(port, b"CONNECT a.example:443 HTTP/1.1\r\n\r\n")
    assert time.monotonic() - began >= (16 - 4) / 20


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
def test_a_public_address_of_this_machine_is_this_machine() -> None:
    """In a network of its own, in which the machine has the address."""
    done = subprocess.run(
        ["unshare", "-Urn", sys.executable, "-c", OWN_ADDRESS], capture_output=True, text=True, check=False, timeout=100
    )
    if done.stderr.startswith("unshare: "):  # it may not, or may and then has no rights in it
        pytest.skip(done.stderr)
    assert (done.stdout, done.stderr) == ("403\n", "")


#: Gives the loopback interface an address of the public internet, listens there, and asks the proxy for it.
OWN_ADDRESS = """
import asyncio, fcntl, socket, struct
from aerodrome.runtime.launchers.sandbox.egress import Egress, Network
from aerodrome.runtime.launchers.sandbox.proxy import EgressProxy

def give(name, address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        where = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
        fcntl.ioctl(any_socket, 0x8916, struct.pack("16s16s8x", name, where))
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", name, 1))

async def main():
    give(b"lo", "127.0.0.1")
    give(b"lo:1", "9.9.9.9")
    mine = socket.create_server(("9.9.9.9", 0))
    listener = socket.create_server(("127.0.0.1", 0))
    where = listener.getsockname()
    proxy = EgressProxy("rt-1", Egress(Network.OPEN))
    await proxy.start(listener)
    reader, writer = await asyncio.open_connection(*where)
    writer.write(f"CONNECT 9.9.9.9:{mine.getsockname()[1]} HTTP/1.1\\r\\n\\r\\n".encode())
    print((await reader.readline()).split()[1].decode())
    writer.close()
    await proxy.aclose()
    mine.close()

asyncio.run(main())
"""


async def _ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True
