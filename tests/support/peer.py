"""The other end of a link, as a script: what the test makes it read and write."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from msgspec import Raw, UnsetType

from aerodrome.runtime.link import Link
from aerodrome.wire import envelope
from aerodrome.wire.framing import FrameDecoder, encode_frame


class Peer:
    """Accepts one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._decoder = FrameDecoder()
        self._messages: deque[dict[str, Any]] = deque()

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises `EOFError` when the link has closed."""
        while not self._messages:
            data = await self._reader.read(1 << 20)
            if not data:
                raise EOFError
            self._messages.extend(json.loads(body) for body in self._decoder.feed(data))
        return self._messages.popleft()

    def send(self, message: dict[str, Any]) -> None:
        self.writer.write(encode_frame(json.dumps({"jsonrpc": "2.0", **message}).encode()))

    def answer(self, request: dict[str, Any], result: Any) -> None:
        self.send({"id": request["id"], "result": result})

    def ask(self, request_id: int | str, method: str = "m", params: Any = None) -> None:
        self.send({"id": request_id, "method": method, "params": params})

    async def serve(self, perform: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
        """Answer requests, each when it is done, until the link closes."""

        async def one(request: dict[str, Any]) -> None:
            self.answer(request, await perform(request))

        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    group.create_task(one(await self.receive()))
                except EOFError:
                    return


class Owner:
    """A link's handler that remembers what it was told."""

    def __init__(self) -> None:
        self.notifications: list[tuple[str, Any]] = []
        self.closed: list[str] = []
        self.oversized: list[tuple[str | None, str]] = []
        self.perform: Callable[[str, Any], Awaitable[Any]] | None = None
        self.on_notified: Callable[[], None] | None = None

    def on_notification(self, method: str, params: Raw | UnsetType) -> None:
        self.notifications.append((method, envelope.decode_value(params)))
        if self.on_notified is not None:
            self.on_notified()

    async def on_request(self, method: str, params: Raw | UnsetType) -> Any:
        assert self.perform is not None
        return await self.perform(method, envelope.decode_value(params))

    def on_oversized(self, session_id: str | None, complaint: str) -> None:
        self.oversized.append((session_id, complaint))

    def on_closed(self, reason: str) -> None:
        self.closed.append(reason)


@asynccontextmanager
async def linked(owner: Owner, **options: Any) -> AsyncIterator[tuple[Link, Peer]]:
    """A link and its peer, connected over loopback."""
    arrived: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set_result(Peer(reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        link = await Link.connect(host, port, owner, timeout=30, **options)
        peer = await arrived
        try:
            yield link, peer
        finally:
            await link.aclose()
            peer.writer.transport.abort()
