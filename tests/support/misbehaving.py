"""A client that breaks the rules of the wire, one rule at a time, against any address.

Each misdeed is a function of a `RawClient`. What became of the connection tells `RawClient.fate`; that nobody else
suffers is for the test to see, with a client that behaves. Those that any server may treat alike are in `BAD_BODIES`,
`BAD_HEADERS` and `UNFINISHED`; the other functions return what came of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

from aerodrome.wire.framing import FrameDecoder, encode_frame

_PIECE = 1 << 16


class Fate(Enum):
    """What a server did with a connection."""

    #: It answers.
    ALIVE = "alive"
    CLOSED = "closed"
    #: It neither answers nor closes.
    SILENT = "silent"


@dataclass(slots=True)
class RawClient:
    """A socket, and as much of the protocol as one wants; use `raw`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    #: What came that nobody has asked for yet.
    received: deque[dict[str, Any]] = field(default_factory=deque)
    # A server may send more than ours would take.
    _decoder: FrameDecoder = field(default_factory=lambda: FrameDecoder(max_frame=1 << 30))
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1000))

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send(self, message: Any) -> None:
        """One frame."""
        await self.write(encode_frame(json.dumps(message).encode()))

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises `ConnectionError` when the server has closed."""
        while not self.received:
            data = await self.reader.read(_PIECE)
            if not data:
                raise ConnectionResetError("closed by the server")
            self.received.extend(json.loads(body) for body in self._decoder.feed(data))
        return self.received.popleft()

    async def answer_to(self, request_id: int | str | None) -> dict[str, Any]:
        """The next answer with this id; what comes before it is dropped."""
        while True:
            message = await self.receive()
            if "method" not in message and message.get("id") == request_id:
                return message

    async def request(self, method: str, params: Any = None) -> dict[str, Any]:
        """The whole answer, be it a result or an error."""
        request_id = next(self._ids)
        await self.send({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}})
        return await self.answer_to(request_id)

    async def connect(self, token: str) -> dict[str, Any]:
        return await self.request("connect", {"token": token, "supportedTaskKinds": []})

    async def fate(self, patience: float = 20.0) -> Fate:
        """Whether a ping is answered, or the connection closed, within so many seconds."""
        try:
            async with asyncio.timeout(patience):
                await self.request("ping")
        except TimeoutError:
            return Fate.SILENT
        except OSError:
            return Fate.CLOSED
        return Fate.ALIVE

    def reset(self) -> None:
        """Close with an RST in place of a FIN."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


@asynccontextmanager
async def raw(address: str, token: str | None = None) -> AsyncIterator[RawClient]:
    """A connection to "host:port", past `connect` if there is a token."""
    host, _, port = address.rpartition(":")
    client = RawClient(*await asyncio.open_connection(host, int(port)))
    try:
        if token is not None:
            answer = await client.connect(token)
            assert "result" in answer, answer
        yield client
    finally:
        client.writer.transport.abort()


Misdeed = Callable[[RawClient], Awaitable[None]]


async def half_a_header(client: RawClient) -> None:
    await client.write(b"Content-Len")


async def half_a_body(client: RawClient) -> None:
    await client.write(b'Content-Length: 100\r\n\r\n{"jsonrpc": "2.0"')


async def endless_header(client: RawClient) -> None:
    """More header than anybody needs, without its end."""
    await client.write(b"X-Padding: " + b"x" * 65536)


async def header_without_length(client: RawClient) -> None:
    await client.write(b"Content-Type: application/json\r\n\r\n{}")


async def length_that_is_no_number(client: RawClient) -> None:
    await client.write(b"Content-Length: lots\r\n\r\n{}")


async def negative_length(client: RawClient) -> None:
    await client.write(b"Content-Length: -5\r\n\r\n{}")


async def huge_length(client: RawClient) -> None:
    """A petabyte is announced, and not sent."""
    await client.write(b"Content-Length: 1000000000000000\r\n\r\n{")


async def two_lengths(client: RawClient) -> None:
    await client.write(b"Content-Length: 2\r\nContent-Length: 200\r\n\r\n{}")


async def body_that_is_no_json(client: RawClient) -> None:
    await client.write(encode_frame(b"GET / HTTP/1.1"))


async def body_that_is_no_utf8(client: RawClient) -> None:
    await client.write(encode_frame(b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"message": "\xff"}}'))


async def empty_body(client: RawClient) -> None:
    await client.write(encode_frame(b""))


async def lone_surrogate(client: RawClient) -> None:
    await client.write(encode_frame(rb'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"message": "\ud800"}}'))


async def json_that_is_no_message(client: RawClient) -> None:
    values: list[Any] = [42, "ping", None, True, [], {}, {"jsonrpc": "2.0"}, {"id": 1}, {"id": {}, "method": "ping"}]
    for value in values:
        await client.send(value)


async def method_that_is_no_string(client: RawClient) -> None:
    await client.send({"jsonrpc": "2.0", "id": 1, "method": 7, "params": {}})


async def batch(client: RawClient) -> None:
    ping = {"jsonrpc": "2.0", "method": "ping", "params": {}}
    await client.send([{**ping, "id": 1}, {**ping, "id": 2}])


async def params_that_are_none(client: RawClient) -> None:
    wrong: list[Any] = [None, 7, "x", [1], [[]]]
    for params in wrong:
        await client.send({"jsonrpc": "2.0", "id": 1, "method": "session.send", "params": params})


async def deep_nesting(client: RawClient, depth: int = 50_000) -> None:
    nested = b"[" * depth + b"]" * depth
    await client.write(encode_frame(b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": %b}}' % nested))


async def responses_to_nobody(client: RawClient) -> None:
    for request_id in (1, "x", None, -1, 10**30):
        await client.send({"jsonrpc": "2.0", "id": request_id, "result": {}})
        await client.send({"jsonrpc": "2.0", "id": request_id, "error": {"code": 1, "message": "no"}})


async def unknown_methods(client: RawClient) -> None:
    for method in ("", "no.such.method", "session.", "x" * 10_000, "$/cancelRequest"):
        await client.send({"jsonrpc": "2.0", "id": 1, "method": method, "params": {}})
        await client.send({"jsonrpc": "2.0", "method": method, "params": {}})


#: Whole frames that make no sense: the connection goes on, or is closed.
BAD_BODIES: tuple[Misdeed, ...] = (
    body_that_is_no_json,
    body_that_is_no_utf8,
    empty_body,
    lone_surrogate,
    json_that_is_no_message,
    method_that_is_no_string,
    batch,
    params_that_are_none,
    deep_nesting,
    responses_to_nobody,
    unknown_methods,
)
#: Nothing tells where the next frame begins: the connection is closed.
BAD_HEADERS: tuple[Misdeed, ...] = (header_without_length, length_that_is_no_number, negative_length, endless_header)
#: As far as the server may know, the rest is still to come.
UNFINISHED: tuple[Misdeed, ...] = (half_a_header, half_a_body, huge_length, two_lengths)


async def request_before_connect(client: RawClient, method: str = "session.list") -> dict[str, Any]:
    """On a connection without token; the answer."""
    return await client.request(method)


async def wrong_token_then_right(client: RawClient, token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both answers."""
    return await client.connect(f"not-{token}"), await client.connect(token)


async def same_id_twice(client: RawClient) -> list[dict[str, Any]]:
    """Two requests in flight with one id; their answers."""
    for text in ("first", "second"):
        await client.send({"jsonrpc": "2.0", "id": 7, "method": "ping", "params": {"message": text}})
    return [await client.answer_to(7), await client.answer_to(7)]


async def pings_without_reading(client: RawClient, count: int = 10_000, size: int = 0) -> int:
    """So many pings, each with a text of `size` that comes back, while nothing is read; then the number of answers.

    A server may stop reading meanwhile, so writing ends as soon as it would wait for long.
    """
    ping = {"jsonrpc": "2.0", "method": "ping", "params": {"message": "x" * size}}
    transport = cast("asyncio.Transport", client.writer.transport)
    transport.pause_reading()
    client.writer.write(b"".join(encode_frame(json.dumps({**ping, "id": number}).encode()) for number in range(count)))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(client.writer.drain(), 2.0)
    transport.resume_reading()
    answered = 0
    while answered < count:
        answered += "result" in await client.receive()
    return answered


async def half_close(client: RawClient) -> list[dict[str, Any]]:
    """A request, and then the end of what will be written; all that comes before the server closes."""
    await client.send({"jsonrpc": "2.0", "id": 5, "method": "ping", "params": {}})
    client.writer.write_eof()
    messages = []
    with contextlib.suppress(OSError):
        while True:
            messages.append(await client.receive())
    return messages
