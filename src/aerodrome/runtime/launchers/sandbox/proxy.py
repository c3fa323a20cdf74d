"""The one way out of a sandbox with a network of its own: an HTTP proxy of the node, which `egress` decides for.

It listens on a socket that belongs to the sandbox's network and to nobody else's, so that whoever connects is known.
A tunnel (``CONNECT``) is relayed as it is. Of a plain request the first line is rewritten and the connection is closed
behind the answer: what follows on it would be for the same address, which has been allowed, or for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.runtime.launchers.sandbox.egress import Egress, Target, Verdict, is_public, target

log = structlog.get_logger(__name__)

#: Bytes of the head of a request.
_MAX_HEAD = 1 << 15
#: Connections of one sandbox at a time.
CONNECTIONS = 64
#: Seconds for a head to arrive, and for a connection outwards.
_HEAD_TIMEOUT, _CONNECT_TIMEOUT = 15.0, 15.0
#: Seconds for the program inside to take the rest of an answer; what it leaves is memory and a descriptor of the node.
_LINGER = 15.0
#: Connections of a sandbox a second, in the long run, and how many may come at once: each takes time of the node's
#: event loop, and a loop of a shell makes thousands.
_RATE, _AT_ONCE = 200, 400
#: Refusals of a sandbox that are logged. More of them tell nothing new, and whoever is inside could fill a disk.
_LOGGED = 100
_PIECE = 1 << 16
#: A name or an address as it may be told to others: by anything else one request could be made into two.
_HOST = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9._-]{1,16})?")
_METHOD = re.compile(r"[A-Z]{1,32}")
_VERSIONS = ("HTTP/1.0", "HTTP/1.1")
#: What the proxy says and does by itself, not passed on.
_OWN_HEADERS = (b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive")


class Refused(Exception):
    """With the status line and the reason, for the program inside."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Request(NamedTuple):
    host: str
    port: int
    #: What is sent first on the connection outwards; empty for a tunnel.
    first: bytes
    tunnel: bool


def read_head(head: bytes) -> Request:
    """Raises `Refused`."""
    line, _, rest = head.partition(b"\r\n")
    try:
        method, where, version = line.decode("ascii").split(" ")
        if not _METHOD.fullmatch(method) or version not in _VERSIONS or not where.isprintable():
            raise ValueError("not a request of HTTP/1")
        if method == "CONNECT":
            host, port = target(where)
            return Request(_host(host), port, b"", tunnel=True)
        parts = urlsplit(where)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("not the absolute address of an http resource")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        first = f"{method} {path} {version}\r\n".encode() + _without_own_headers(rest) + b"Connection: close\r\n\r\n"
        return Request(_host(parts.hostname.lower()), parts.port or 80, first, tunnel=False)
    except ValueError as error:
        raise Refused("400 Bad Request", f"a request that this proxy does not understand: {error}") from None


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError("not the name of a host")
    return text


def _without_own_headers(headers: bytes) -> bytes:
    lines = headers.removesuffix(b"\r\n\r\n").split(b"\r\n")
    kept = [line for line in lines if line and line.partition(b":")[0].strip().lower() not in _OWN_HEADERS]
    return b"".join(line + b"\r\n" for line in kept)


class EgressProxy:
    """Args:
    upstream: The operator's own proxy, by which all goes out that does not stay on this machine.
    connections: Most at a time.
    """

    def __init__(
        self, runtime: str, egress: Egress, upstream: Target | None = None, *, connections: int = CONNECTIONS
    ) -> None:
        self.egress = egress
        self._runtime = runtime
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._tasks = TaskOwner(f"egress {runtime}")
        self._connections = 0
        self._most = connections
        self._refused = 0
        #: Monotonic time from which on connections are early; each moves it.
        self._early = 0.0

    async def start(self, listener: socket.socket) -> None:
        """The socket is the proxy's from here on."""
        # In two steps: one that is cancelled half-way would leave a server that nobody knows.
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=_MAX_HEAD, start_serving=False)
        await self._server.start_serving()

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._tasks.aclose()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine function: its task would be the event loop's, and nobody would end it.
        if self._tasks.closed or self._connections >= self._most:
            writer.transport.abort()
        else:
            self._connections += 1
            self._tasks.start(self._serve(reader, writer), "connection")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._in_time()
            async with asyncio.timeout(_HEAD_TIMEOUT):
                request = read_head(await reader.readuntil(b"\r\n\r\n"))
            outer_reader, outer_writer = await self._connect(request)
            try:
                if request.tunnel:
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                outer_writer.write(request.first)
                await _relay(reader, writer, outer_reader, outer_writer)
            finally:
                outer_writer.transport.abort()
        except Refused as refused:
            body = f"{refused}\n".encode()
            head = f"HTTP/1.1 {refused.status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
            with contextlib.suppress(OSError):
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a time-out is the first; one of the two ends has gone
        except asyncio.CancelledError:
            writer.transport.abort()  # the sandbox is ending, and nobody waits for it to read
            raise
        finally:
            try:
                await _closed(writer)
            finally:
                self._connections -= 1

    async def _in_time(self) -> None:
        """Wait as long as more connections have come than may."""
        now = time.monotonic()
        self._early = max(self._early, now - _AT_ONCE / _RATE) + 1 / _RATE
        await asyncio.sleep(max(0.0, self._early - now))

    async def _connect(self, request: Request) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = request.host, request.port
        verdict = self.egress.decide(host, port)
        if verdict is Verdict.REFUSED:
            self._refused += 1
            if self._refused <= _LOGGED:
                log.info("sandbox.refused", runtime=self._runtime, host=host, port=port, last=self._refused == _LOGGED)
            raise Refused("403 Forbidden", f"the sandbox may not connect to {host}:{port} (sandbox.network)")
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                if self._upstream is not None and (verdict is Verdict.BY_PROXY or not _is_loopback(host)):
                    return await self._by_proxy(self._upstream, host, port)
                if verdict is Verdict.NAMED:
                    return await asyncio.open_connection(host, port)
                return await _open_public(host, port)
        except OSError as error:
            raise Refused("502 Bad Gateway", f"no connection to {host}:{port}: {str(error) or 'time-out'}") from None

    async def _by_proxy(self, by: Target, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(by.host, by.port)
        try:
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            writer.write(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            if answer.split(b" ", 2)[1:2] != [b"200"]:
                raise Refused("502 Bad Gateway", f"the proxy refuses {host}:{port}")
        except BaseException as error:
            writer.transport.abort()
            if isinstance(error, asyncio.IncompleteReadError | asyncio.LimitOverrunError):
                raise Refused("502 Bad Gateway", "the proxy does not answer") from None
            raise
        return reader, writer


async def _open_public(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to an address that was looked at: a name may lead to another one each time it is looked up."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(address[4][0]) for address in found]
    if not addresses or not all(is_public(address) and not _is_own(address) for address in addresses):
        raise Refused("403 Forbidden", f"{host} is not on the public internet (sandbox.network)")
    return await _first_of(addresses, port)


def _is_own(address: str) -> bool:
    """Whether an address of the public internet is one of this machine, where the node's ports are."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # nothing is sent; what is here is reached from itself
        except OSError:
            return False  # there is no way to it
        return bool(probe.getsockname()[0] == address)


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection of the sandbox, which may not read what is left to send."""
    writer.close()
    try:
        async with asyncio.timeout(_LINGER):
            await writer.wait_closed()
    except OSError:
        pass  # a time-out is one, and that it has gone already another
    finally:
        writer.transport.abort()


async def _first_of(addresses: Sequence[str], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    *others, last = dict.fromkeys(addresses)
    for address in others:
        with contextlib.suppress(OSError):
            return await asyncio.open_connection(address, port)
    return await asyncio.open_connection(last, port)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


async def _relay(
    inner_reader: asyncio.StreamReader,
    inner_writer: asyncio.StreamWriter,
    outer_reader: asyncio.StreamReader,
    outer_writer: asyncio.StreamWriter,
) -> None:
    async with asyncio.TaskGroup() as group:
        outwards = group.create_task(_pump(inner_reader, outer_writer), name="egress out")
        await _pump(outer_reader, inner_writer)
        outwards.cancel()  # who was asked has said all: nobody hears what the other end still has to say


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # one of the two ends has gone, and the other direction notices, too
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
