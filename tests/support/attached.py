"""Copilot CLI servers of somebody else: real ones, started by the test, which share a volume."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from aerodrome._util.xdg import runtime_packages
from aerodrome.app.node import Node
from aerodrome.demo.model import ModelServer
from support.cli import OFFLINE
from support.host import Host, make_settings

TOKEN = "the-token-of-others"


class Server:
    """A running one."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, state: Path) -> None:
        self.process = process
        self.port = port
        self._state = state

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """With -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def lose_files(self) -> None:
        """It lives, and can load no session any more."""
        self._state.unlink()
        self._state.write_text("no directory")

    def suspend(self) -> None:
        psutil.Process(self.process.pid).suspend()

    def resume(self) -> None:
        psutil.Process(self.process.pid).resume()


class Servers:
    """Starts them; those that are left are killed at the end.

    Args:
        volume: Its directories are the `session-state` of the tenants' servers.
    """

    def __init__(self, cli: Path, directory: Path, volume: Path) -> None:
        self.volume = volume
        self._cli = cli
        self._directory = directory
        self._started: list[Server] = []

    async def start(
        self,
        *,
        tenant: str = "acme",
        token: str = TOKEN,
        port: int = 0,
        own_files: bool = False,
        host: str = "127.0.0.1",
    ) -> Server:
        """Args:
        own_files: Its `session-state` is not on the volume.
        """
        home = self._directory / f"theirs-{len(self._started)}"
        copilot = home / "copilot"
        copilot.mkdir(parents=True)
        if not own_files:
            state = self.volume / tenant
            state.mkdir(parents=True, exist_ok=True)
            (copilot / "session-state").symlink_to(state)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "COPILOT_HOME": str(copilot),
            "COPILOT_PKG_CACHE_HOME": str(runtime_packages()),
            "COPILOT_CONNECTION_TOKEN": token,
            "COPILOT_DISABLE_KEYTAR": "1",
            **OFFLINE,
        }
        arguments = ["--headless", "--no-auto-update", "--no-auto-login", "--host", host, "--port", str(port)]
        process = subprocess.Popen(
            [str(self._cli), *arguments], env=environment, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        listening = await asyncio.wait_for(asyncio.to_thread(_port, process), 60)
        server = Server(process, listening, copilot / "session-state")
        self._started.append(server)
        return server

    def close(self) -> None:
        for server in self._started:
            if server.alive:
                server.process.send_signal(signal.SIGKILL)
            server.process.wait(30)
            if server.process.stdout is not None:
                server.process.stdout.close()


def _port(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    said = b""
    while line := process.stdout.readline():
        said += line
        if found := re.search(rb"listening on port (\d+)", line):
            return int(found[1])
    raise AssertionError(f"the Copilot CLI did not start: {said.decode()}")


class Names:
    """Implements `runtime.attached.ports.Resolver` by a table that tests change."""

    def __init__(self, **addresses: Sequence[str]) -> None:
        self.addresses: dict[str, Sequence[str]] = dict(addresses)

    async def resolve(self, host: str) -> Sequence[str]:
        if host not in self.addresses:
            if host.replace(".", "").isdigit():
                return [host]
            raise OSError("no such name")
        return self.addresses[host]


@asynccontextmanager
async def attached_host(
    data_dir: Path,
    model: ModelServer,
    volume: Path,
    servers: Sequence[Any] = (),
    *,
    resolver: Names | None = None,
    runtime: dict[str, Any] | None = None,
    **sections: dict[str, Any],
) -> AsyncIterator[Host]:
    """A node with these servers attached, which starts no runtimes of its own unless it has to."""
    settings = attached_settings(data_dir, model, volume, servers, runtime=runtime, **sections)
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(Node(settings, resolver=resolver))
        yield Host(node, stack)


def attached_settings(
    data_dir: Path,
    model: ModelServer,
    volume: Path,
    servers: Sequence[Any],
    *,
    runtime: dict[str, Any] | None = None,
    **sections: dict[str, Any],
) -> Any:
    return make_settings(
        data_dir,
        model.base_url,
        state={"url": f"volume:{volume}"},
        runtime={
            "attach": list(servers),
            "attach_tokens": {"default": TOKEN},
            "attach_refresh": "200ms",
            # A slow machine is no server that hangs.
            "ping_timeout": "20s",
            **(runtime or {}),
        },
        **{"coordination": {"ttl": "20s"}, **sections},
    )


def of_acme(server: Server, **more: Any) -> dict[str, Any]:
    return {"address": server.address, "tenant": "acme", **more}
