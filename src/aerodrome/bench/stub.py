"""The least that can stand where a CLI does: a peer that speaks the framing and answers everything at once.

`python -m aerodrome.bench.stub` answers ``{}`` with its address (see `children`). A request whose `method` is
`EVENTFUL` is answered behind `EVENTS` session events, about as many and as large as those of a turn (docs/facts.md,
"Wire"). All messages of one kind are equally long, so that whoever reads them can count bytes.
"""

from __future__ import annotations

import asyncio
import json
import re
from itertools import count
from typing import Any

import uvloop

from aerodrome.bench.children import serve
from aerodrome.runtime.frames import FrameConnection
from aerodrome.wire.framing import encode_frame

SESSION = "bench"
METHOD = "session.name.get"
EVENTFUL = "session.usage.getMetrics"
EVENTS = 30
_EVENT_BYTES = 1_200
_ID = re.compile(rb'"id":("[^"]*"|\d+)')
_NUMBERS = count(10**11)


def request(number: int, method: str = METHOD) -> bytes:
    """A frame; give numbers with as many digits each."""
    body = f'{{"jsonrpc":"2.0","id":{number},"method":"{method}","params":{{"sessionId":"{SESSION}"}}}}'
    return encode_frame(body.encode())


def answer(number: bytes) -> bytes:
    return encode_frame(b'{"jsonrpc":"2.0","id":%b,"result":{"name":"as before"}}' % number)


def event() -> bytes:
    """One that has not been told before."""
    said = {"content": "x" * _EVENT_BYTES}
    told = {"type": "assistant.message_delta", "data": said, "id": f"event-{next(_NUMBERS)}", "parentId": None}
    message = {"jsonrpc": "2.0", "method": "session.event", "params": {"sessionId": SESSION, "event": told}}
    return encode_frame(json.dumps(message, separators=(",", ":")).encode())


_BEFORE, _, _BEHIND = event().partition(b"event-%d" % 10**11)


class _Peer:
    """A `FrameOwner`."""

    def __init__(self) -> None:
        self.connection = FrameConnection(self)

    def on_bodies(self, bodies: list[bytes]) -> None:
        frames = []
        for body in bodies:
            found = _ID.search(body)
            assert found is not None
            if EVENTFUL.encode() in body:
                frames += [b"%bevent-%d%b" % (_BEFORE, next(_NUMBERS), _BEHIND) for _ in range(EVENTS)]
            frames.append(answer(found[1]))
        self.connection.write(b"".join(frames))

    def on_closed(self, reason: str) -> None:
        pass

    def on_paused(self, paused: bool) -> None:
        pass


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Peer().connection, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]

    async def address(command: dict[str, Any]) -> dict[str, Any]:
        return {"host": host, "port": port}

    await serve(address)
    server.close()


if __name__ == "__main__":
    uvloop.run(main())
