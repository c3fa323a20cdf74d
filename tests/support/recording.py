"""What clients and a server say to each other: a relay between them that writes down every message."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aerodrome.wire import envelope
from aerodrome.wire.framing import FrameDecoder
from support.relay import Tap, relaying


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
    def __init__(self) -> None:
        #: Where clients connect to, "host:port".
        self.address = ""
        self.messages: list[Recorded] = []

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

    def new_tap(self) -> Tap:
        """What listens to one connection."""
        decoders = {True: FrameDecoder(), False: FrameDecoder()}

        def tap(link: int, up: bool, data: bytes) -> None:
            for body in decoders[up].feed(data):
                envelope.decode(body)
                self.messages.append(Recorded(link, up, json.loads(body)))

        return tap


@asynccontextmanager
async def recording(host: str, port: int) -> AsyncIterator[Recorder]:
    """A relay to this server; clients connect to the recorder's `address`."""
    recorder = Recorder()
    async with relaying(host, port, recorder.new_tap) as recorder.address:
        yield recorder
