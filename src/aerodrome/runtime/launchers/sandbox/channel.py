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


class KeeperChannel:
    """One request at a time; the others wait. Closing it ends the keeper, and with it the runtime."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._lock = asyncio.Lock()
        self._last = 0
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
                    if answer.get("id", self._last) == self._last:
                        break
                    _close(descriptors)  # of a request that was cancelled
            except OSError as error:
                raise RuntimeUnavailable(f"the sandbox has ended: {error}") from error
        if "error" in answer:
            _close(descriptors)
            raise RuntimeUnavailable(f"the sandbox: {answer['error']}")
        return answer, descriptors

    def tell(self, request: dict[str, Any]) -> None:
        """A request whose answer nobody waits for."""
        with contextlib.suppress(OSError):  # it has ended, which is what such requests are for
            self._socket.send(json.dumps({"id": -1, **request}).encode())

    def close(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(ConnectionResetError("the runtime is being ended"))
        self._socket.close()

    async def _receive(self) -> tuple[dict[str, Any], list[int]]:
        loop = asyncio.get_running_loop()
        ready = self._ready = loop.create_future()
        descriptor = self._socket.fileno()
        loop.add_reader(descriptor, lambda: None if ready.done() else ready.set_result(None))
        ready.add_done_callback(lambda _: loop.remove_reader(descriptor))
        await ready
        data, descriptors, _, _ = socket.recv_fds(self._socket, _MOST, _DESCRIPTORS)
        if not data:
            raise ConnectionResetError("it closed the connection")
        answer: dict[str, Any] = json.loads(data)
        return answer, descriptors


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
