"""The node's end of the sockets that it shares with a runtime's keeper: a request, then its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from typing import Any

from aerodrome.errors import RuntimeUnavailable

#: Bytes of the largest answer, and most descriptors beside it.
_MOST, _DESCRIPTORS = 1 << 16, 4

#: How errors begin that the keeper has reported.
IN_IT = "the sandbox: "


class KeeperChannel:
    """One request at a time; the others wait. Closing it ends the keeper, and with it the runtime."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._lock = asyncio.Lock()
        self._last = 0
        self._over: str | None = None
        self._ready: asyncio.Future[None] | None = None

    async def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        """The answer and the descriptors that came with it, which are the caller's to close.

        Raises:
            RuntimeUnavailable: The keeper could not do it, or has ended.
        """
        async with self._lock:
            self._last += 1
            try:
                self._socket.send(json.dumps({"id": self._last, **request}).encode())
                while True:
                    answer, descriptors = await self._receive()
                    if answer.get("id", self._last) == self._last and "over" not in answer:
                        break
                    _close(descriptors)  # of a request that was cancelled
            except OSError as error:
                raise RuntimeUnavailable(f"the sandbox has ended: {error}") from error
        if "error" in answer:
            _close(descriptors)
            raise RuntimeUnavailable(f"{IN_IT}{answer['error']}")
        return answer, descriptors

    def tell(self, request: dict[str, Any]) -> None:
        """A request whose answer nobody waits for."""
        with contextlib.suppress(OSError):  # it has ended, which is what such requests are for
            self._socket.send(json.dumps({"id": -1, **request}).encode())

    def over(self) -> str | None:
        """The limit that the runtime has passed, if it was ended for that."""
        with contextlib.suppress(OSError, ValueError):  # there is no more
            if self._over is None and self._ready is not None:
                # Whoever waits for an answer is to read it; it is here before the end that it explains is noticed.
                self._over = json.loads(self._socket.recv(_MOST, socket.MSG_PEEK)).get("over")
            while self._over is None and self._ready is None:
                # It may be behind answers that nobody has waited for.
                data, descriptors, _, _ = socket.recv_fds(self._socket, _MOST, _DESCRIPTORS)
                _close(descriptors)
                self._over = json.loads(data).get("over")
        return self._over

    def close(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(ConnectionResetError("the runtime is being ended"))
        self._stop_reading()
        self._socket.close()

    def _stop_reading(self) -> None:
        # Not once it is closed: the number may be somebody else's by then.
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())

    async def _receive(self) -> tuple[dict[str, Any], list[int]]:
        loop = asyncio.get_running_loop()
        ready = self._ready = loop.create_future()
        loop.add_reader(self._socket.fileno(), lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            self._ready = None
            self._stop_reading()
        data, descriptors, flags, _ = socket.recv_fds(self._socket, _MOST, _DESCRIPTORS)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # else it would be in every program that uvloop starts
        if not data:
            raise ConnectionResetError("it closed the connection")
        if flags & socket.MSG_CTRUNC:
            _close(descriptors)
            raise RuntimeUnavailable("what the sandbox hands over cannot be taken: this node has too many files open")
        answer: dict[str, Any] = json.loads(data)
        self._over = self._over or answer.get("over")
        return answer, descriptors


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
