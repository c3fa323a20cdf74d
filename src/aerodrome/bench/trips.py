"""Round trips on a plain blocking socket: as little of a client as possible, so that what is measured is the rest."""

from __future__ import annotations

import json
import socket
import time
from itertools import count
from typing import Any, Self

from aerodrome.bench import stub
from aerodrome.wire.framing import FrameDecoder, encode_frame

_TIMEOUT = 30.0
#: Requests that go out in one piece, and such pieces that are under way.
_BATCH = 16
_BATCHES = 8


class Trips:
    """A connection on which the stub, or whoever stands before it, is asked. All calls block."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=_TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._numbers = count(10**8)
        self._answer_bytes = len(stub.answer(b"%d" % 10**8))
        self._event_bytes = len(stub.event())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def open_session(self) -> None:
        """As a client of the gateway does first. Events of the session's opening are read too."""
        decoder = FrameDecoder()
        for number, method, params in (
            (1, "connect", {"token": "bench"}),
            (2, "session.create", {"sessionId": stub.SESSION}),
        ):
            asked: dict[str, Any] = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            self._socket.sendall(encode_frame(json.dumps(asked).encode()))
            answers = [json.loads(body) for body in decoder.feed(self._socket.recv(1 << 16))]
            if len(answers) != 1 or "result" not in answers[0]:
                raise AssertionError(f"{method} was answered {answers}")

    def timed(self, trips: int) -> list[float]:
        """One after the other; seconds that each took."""
        times = []
        for _ in range(trips):
            frame = stub.request(next(self._numbers))
            began = time.perf_counter()
            self._socket.sendall(frame)
            self._read(self._answer_bytes)
            times.append(time.perf_counter() - began)
        return times

    def piped(self, seconds: float) -> int:
        """As many as there is time for, with many under way; how many there were."""
        return self._keep_full(seconds, stub.METHOD, _BATCH, self._answer_bytes)

    def told(self, seconds: float) -> int:
        """The same with few that are each answered behind the events of a turn; how many events there were."""
        answer_bytes = self._answer_bytes + stub.EVENTS * self._event_bytes
        return stub.EVENTS * self._keep_full(seconds, stub.EVENTFUL, 1, answer_bytes)

    def _keep_full(self, seconds: float, method: str, batch: int, answer_bytes: int) -> int:
        end = time.perf_counter() + seconds
        trips = 0
        for _ in range(_BATCHES):
            self._send(method, batch)
        while time.perf_counter() < end:
            self._read(batch * answer_bytes)
            self._send(method, batch)
            trips += batch
        self._read(_BATCHES * batch * answer_bytes)
        return trips + _BATCHES * batch

    def _send(self, method: str, batch: int) -> None:
        self._socket.sendall(b"".join(stub.request(next(self._numbers), method) for _ in range(batch)))

    def _read(self, length: int) -> None:
        while length > 0:
            data = self._socket.recv(length)
            if not data:
                raise EOFError("the connection was closed")
            length -= len(data)
