"""A relay between a client and a server that writes down every message that passes, and changes none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aerodrome._util.tasks import TaskOwner
from aerodrome.wire import envelope
from aerodrome.wire.framing import FrameDecoder

_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Recorded:
    #: Number of the connection, from 0.
    link: int
    #: From the client to the server.
    up: bool
    message: dict[str, Any]

    @property
    def method(self) -> str | None:
        return self.message.get("method")

    @property
    def params(self) -> Any:
        return self.message.get("params")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and its answer if there was one."""

    link: int
    up: bool
    method: str
    params: Any
    #: The answer's message: `result` or `error` is in it.
    answer: dict[str, Any] | None

    @property
    def result(self) -> Any:
        assert self.answer is not None, f"{self.method} was not answered"
        assert "error" not in self.answer, f"{self.method}: {self.answer['error']}"
        return self.answer["result"]


class Recorder:
    """Connections are accepted at `address` as long as `recording` is open."""

    def __init__(self, address: str, upstream: tuple[str, int]) -> None:
        self.address = address
        self.messages: list[Recorded] = []
        self._upstream = upstream
        self._links = 0
        self._owner = TaskOwner("recording")

    def requests(self, *, up: bool, link: int | None = None) -> list[Exchange]:
        """The requests of one side in the order in which they came, with their answers."""
        return [e for e in self._exchanges() if e.up is up and link in (None, e.link)]

    def notifications(self, *, link: int | None = None) -> list[Recorded]:
        """What the server told without being asked."""
        return [r for r in self.messages if not r.up and r.method and "id" not in r.message and link in (None, r.link)]

    def events(self, *, link: int | None = None) -> list[dict[str, Any]]:
        """The session events that a connection was sent, oldest first."""
        return [r.params["event"] for r in self.notifications(link=link) if r.method == "session.event"]

    def _exchanges(self) -> Iterator[Exchange]:
        for at, request in enumerate(self.messages):
            if request.method is None or "id" not in request.message:
                continue
            answer = next(
                (
                    later.message
                    for later in self.messages[at:]
                    if later.link == request.link
                    and later.up is not request.up
                    and later.method is None
                    and later.message.get("id") == request.message["id"]
                ),
                None,
            )
            yield Exchange(request.link, request.up, request.method, request.params, answer)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._owner.start(self._relay(self._links, reader, writer), "link")
        self._links += 1

    async def aclose(self) -> None:
        await self._owner.aclose()

    async def _relay(self, link: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self._upstream)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(link, True, reader, server_writer))
                group.create_task(self._pump(link, False, server_reader, writer))
        finally:
            writer.transport.abort()
            server_writer.transport.abort()

    async def _pump(self, link: int, up: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = FrameDecoder()
        try:
            while data := await reader.read(_PIECE):
                for body in decoder.feed(data):
                    envelope.decode(body)
                    self.messages.append(Recorded(link, up, json.loads(body)))
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            # One side is gone, and so is the link.
            writer.transport.abort()


@asynccontextmanager
async def recording(host: str, port: int) -> AsyncIterator[Recorder]:
    """A relay to this server; clients connect to the recorder's `address` ("host:port")."""
    holder: list[Recorder] = []
    server = await asyncio.start_server(lambda r, w: holder[0].accept(r, w), "127.0.0.1", 0)
    async with server:
        own_host, own_port = server.sockets[0].getsockname()[:2]
        recorder = Recorder(f"{own_host}:{own_port}", (host, port))
        holder.append(recorder)
        try:
            yield recorder
        finally:
            await recorder.aclose()
