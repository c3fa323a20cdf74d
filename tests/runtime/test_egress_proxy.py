"""The proxy of a sandbox, without one: what it passes on, and to whom."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from aerodrome.runtime.launchers.sandbox.egress import Egress, Network, Target
from aerodrome.runtime.launchers.sandbox.proxy import EgressProxy, Refused, read_head

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def proxy(egress: Egress, upstream: Target | None = None) -> AsyncIterator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port: int = listener.getsockname()[1]
    running = EgressProxy("rt-1", egress, upstream)
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


async def _ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True
