"""What comes between a server and its use: whatever it is, it is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aerodrome.errors import StoreUnavailable
from aerodrome.runtime.attached.entry import AttachEntry
from aerodrome.runtime.attached.runtime import AttachedOptions, AttachedRuntime
from aerodrome.runtime.attached.server import AttachedServer
from aerodrome.runtime.release import PINNED
from aerodrome.statestore.backends.sqlite import SqliteFileStore
from aerodrome.statestore.backends.volume import VolumeFileStore
from support.databases import database
from support.peer import Peer
from support.waiting import until


@pytest.fixture
async def endpoint(tmp_path: Path) -> AsyncIterator[tuple[str, int]]:
    """Of a server that sees what is in `tmp_path`/share."""

    handlers: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        handlers.add(handler)

        async def perform(request: dict[str, Any]) -> Any:
            if request["method"] == "connect":
                return {"ok": True, "protocolVersion": 3, "version": PINNED.version}
            if request["method"] == "session.getMetadata":
                return {"session": {"a": 1} if (tmp_path / "share" / request["params"]["sessionId"]).exists() else None}
            return {}

        await Peer(reader, writer).serve(perform)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[:2]
    server.close()
    # Each ends when it has seen that its connection is gone; cut off by the end of the loop it would leave its socket.
    if handlers:
        await asyncio.wait(handlers, timeout=60)


class Owner:
    """Fails, in each of its methods, as often as it is told to."""

    def __init__(self, *failures: Exception, volume: VolumeFileStore | None = None) -> None:
        self.failures = list(failures)
        self.connections = 0
        self._volume = volume

    def connected(self, server: AttachedServer) -> None:
        self.connections += 1
        if self.failures:
            raise self.failures.pop()

    def lost(self, server: AttachedServer, runtime: AttachedRuntime) -> None:
        if self.failures:
            raise self.failures.pop()

    def observed(self, server: AttachedServer, answered: bool, seconds: float) -> None: ...

    async def sees_volume(self, runtime: AttachedRuntime, tenant: str) -> bool:
        if self.failures:
            raise self.failures.pop()
        if (volume := self._volume) is None:
            return True
        return await runtime.sees(lambda has: volume.check_sight(tenant, has))


def attached(endpoint: tuple[str, int], owner: Owner, tenant: str | None = "acme") -> AttachedServer:
    async def soon(seconds: float) -> None:
        await asyncio.sleep(0.001)

    entry = AttachEntry(*endpoint, tenant=tenant)
    return AttachedServer("server", endpoint, entry, AttachedOptions(), owner, sleep=soon)


async def end(running: asyncio.Task[None]) -> None:
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_share_that_is_mounted_later_is_found(tmp_path: Path, endpoint: tuple[str, int]) -> None:
    async with database(tmp_path / "s.db") as db:
        fence = SqliteFileStore(db)
        await fence.open()
        volume = VolumeFileStore(tmp_path / "volume", fence)
        await volume.open()
        (tmp_path / "volume" / "acme").symlink_to(tmp_path / "share")
        server = attached(endpoint, Owner(volume=volume))
        running = asyncio.create_task(server.run())
        await until(lambda: "is it mounted?" in server.reason)
        (tmp_path / "share").mkdir()
        await until(lambda: server.runtime is not None)
        assert server.reason == ""
        assert list((tmp_path / "share").iterdir()) == []
        await end(running)
        await volume.aclose()


@pytest.mark.parametrize(
    "error", [StoreUnavailable("it is away"), FileExistsError("x"), RuntimeError("a bug")], ids=str
)
async def test_no_error_ends_the_tries_to_connect(endpoint: tuple[str, int], error: Exception) -> None:
    owner = Owner(*[error] * 3)
    server = attached(endpoint, owner)
    running = asyncio.create_task(server.run())
    await until(lambda: server.runtime is not None and not owner.failures)
    assert server.reason == ""
    await end(running)


async def test_no_error_of_its_owner_ends_it(endpoint: tuple[str, int]) -> None:
    owner = Owner(RuntimeError("a bug"))
    server = attached(endpoint, owner, tenant=None)
    running = asyncio.create_task(server.run())
    await until(lambda: owner.connections == 2 and server.runtime is not None)
    # And as one is lost.
    owner.failures.append(RuntimeError("another"))
    assert server.runtime is not None
    await server.runtime.aclose()
    await until(lambda: owner.connections == 3 and server.runtime is not None)
    await end(running)
