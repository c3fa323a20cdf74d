"""The control link, with a scripted runtime at the other end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aerodrome.events import SessionEvent
from aerodrome.runtime.control import ControlLink
from support.peer import Peer
from support.waiting import until

MIB = 1 << 20


class Files:
    """The binding of a session of which every file is large."""

    def __init__(self) -> None:
        self.read = 0

    def on_event(self, event: SessionEvent) -> None: ...

    def on_oversized(self, complaint: str) -> None: ...

    async def on_file_operation(self, operation: str, params: dict[str, Any]) -> Any:
        self.read += 1
        await asyncio.sleep(0)
        return {"content": "x" * 4 * MIB}

    async def on_request(self, method: str, params: dict[str, Any]) -> Any: ...


@asynccontextmanager
async def controlled() -> AsyncIterator[tuple[ControlLink, Peer]]:
    arrived: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *ends: arrived.set_result(Peer(*ends)), "127.0.0.1", 0)

    async def dial() -> socket.socket:
        connection = socket.create_connection(server.sockets[0].getsockname())
        connection.setblocking(False)
        return connection

    control = ControlLink(lambda reason: None, 10.0)
    async with server:
        opening = asyncio.create_task(control.open(dial, "token", "/workspace"))
        peer = await arrived
        peer.answer(await peer.receive(), {"protocolVersion": 3, "version": "1.0"})
        peer.answer(await peer.receive(), {})
        await opening
        try:
            yield control, peer
        finally:
            await control.aclose()
            peer.writer.transport.abort()


async def test_a_runtime_that_does_not_take_what_it_has_asked_for_has_little_read_for_it() -> None:
    """Else small requests for large files would fill a node's memory."""
    files = Files()
    async with controlled() as (control, peer):
        control.bind("s", files)
        assert control._link is not None
        for number in range(50):
            peer.ask(number, "sessionFs.readFile", {"sessionId": "s", "path": "/state/large"})
        await until(lambda: control._link is not None and control._link.connection.paused)
        for _ in range(20):
            await asyncio.sleep(0)
        assert files.read < 10
        assert {(await peer.receive())["id"] for _ in range(50)} == set(range(50))
        assert files.read == 50


async def test_a_session_is_let_go_of_when_its_opening_is_answered() -> None:
    """Asked both at the same time, a runtime may take up the end first, and keep the session."""
    async with controlled() as (control, peer), asyncio.TaskGroup() as tasks:
        opening = tasks.create_task(control.request("session.resume", {"sessionId": "s"}))
        opened = await peer.receive()
        opening.cancel()
        tasks.create_task(control.request("session.detach", {"sessionId": "s"}))
        tasks.create_task(control.request("session.detach", {"sessionId": "other"}))
        other = await peer.receive()
        assert (opened["method"], other["params"]) == ("session.resume", {"sessionId": "other"})
        peer.answer(opened, {})
        detached = await peer.receive()
        assert (detached["method"], detached["params"]) == ("session.detach", {"sessionId": "s"})
        for each in (other, detached):
            peer.answer(each, {"success": True})
