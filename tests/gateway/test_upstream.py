"""A client's link to a runtime, with a script at the other end."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aerodrome.gateway.upstream import Upstream
from aerodrome.runtime.ports import Runtime
from aerodrome.telemetry.meter import Traffic
from aerodrome.wire import envelope
from support.peer import Peer
from support.waiting import until


class Owner:
    """Hears of nothing but the answers."""

    upstream_traffic = Traffic()

    def on_runtime_bodies(self, link: Upstream, bodies: list[bytes]) -> None:
        for body in bodies:
            link.settle(envelope.decode(body))

    def on_runtime_closed(self, link: Upstream) -> None: ...

    def on_runtime_paused(self, paused: bool) -> None: ...

    def on_asking(self) -> None: ...


async def test_a_session_is_let_go_of_when_its_opening_is_answered() -> None:
    """Asked both at the same time, a runtime may take up the end first, and keep the session."""
    arrived: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *ends: arrived.set_result(Peer(*ends)), "127.0.0.1", 0)

    async def connect() -> socket.socket:
        connection = socket.create_connection(server.sockets[0].getsockname())
        connection.setblocking(False)
        return connection

    made: Any = SimpleNamespace(id="rt-1", token="t", connect=connect, adopt=lambda connection: None)
    async with server, asyncio.TaskGroup() as tasks:
        connecting = tasks.create_task(Upstream.open(Owner(), cast("Runtime", made), {}, timeout=30, max_frame=1 << 20))
        peer = await arrived
        peer.answer(await peer.receive(), {})
        link = await connecting
        opening = tasks.create_task(link.request("session.resume", {"sessionId": "s"}))
        opened = await peer.receive()
        opening.cancel()
        tasks.create_task(link.request("session.detach", {"sessionId": "s"}))
        tasks.create_task(link.request("session.detach", {"sessionId": "other"}))
        other = await peer.receive()
        assert (opened["method"], other["params"]) == ("session.resume", {"sessionId": "other"})
        assert link.asking
        peer.answer(opened, {})
        detached = await peer.receive()
        assert (detached["method"], detached["params"]) == ("session.detach", {"sessionId": "s"})
        for each in (other, detached):
            peer.answer(each, {"success": True})
    assert not link.asking
    with pytest.raises(TimeoutError):
        await link.request("session.resume", {"sessionId": "s"}, timeout=0.01)
    await until(lambda: not link.asking)  # nobody waits for it, and the client may be slow again
    link.connection.abort("the test is over")
    peer.writer.transport.abort()
