"""A node under a service manager: sockets that outlive it, and what it says of itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from aerodrome.demo.model import ModelServer
from support.host import Host, host, until
from support.nodes import eventually
from support.sdk_clients import Endpoint, connected
from support.server import new_key, write_config

pytestmark = pytest.mark.cli

#: What a manager does between fork and exec: sockets from descriptor 3 on, and the variables that say so.
_MANAGER = """
import os, sys
sockets = [int(each) for each in sys.argv[1].split(",")]
spare = [os.dup2(each, 50 + number) for number, each in enumerate(sockets)]
for number, each in enumerate(spare):
    os.dup2(each, 3 + number, inheritable=True)
os.environ |= {"LISTEN_FDS": str(len(spare)), "LISTEN_FDNAMES": "http:gateway", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "aerodrome", "serve", "--config", sys.argv[2]])
"""


class Manager:
    """Holds the sockets of a node, starts it, and hears what it says."""

    def __init__(self, directory: Path) -> None:
        self.listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(directory / "notify"))
        self._notify.setblocking(False)
        self._path = directory / "notify"

    @property
    def addresses(self) -> list[str]:
        return ["{}:{}".format(*each.getsockname()) for each in self.listeners]

    async def hear(self) -> str:
        async with asyncio.timeout(60):
            return (await asyncio.get_running_loop().sock_recv(self._notify, 1000)).decode()

    @asynccontextmanager
    async def running(self, config: Path) -> AsyncIterator[asyncio.subprocess.Process]:
        descriptors = [each.fileno() for each in self.listeners]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _MANAGER,
            ",".join(map(str, descriptors)),
            str(config),
            pass_fds=descriptors,
            stdout=asyncio.subprocess.DEVNULL,
            env={**os.environ, "NOTIFY_SOCKET": str(self._path)},
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def close(self) -> None:
        for each in (*self.listeners, self._notify):
            each.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


def handed_on(pid: int) -> set[str]:
    """Variables of the manager that the children of this process have. A child that is about to become another
    program still has those of its parent."""
    found: set[str] = set()
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            found |= {name for name in child.environ() if name.startswith(("LISTEN_", "NOTIFY_"))}
    return found


async def test_sockets_of_the_manager_are_listened_on_and_outlive_the_node(tmp_path: Path, manager: Manager) -> None:
    async with ModelServer() as model, httpx.AsyncClient(timeout=60) as client:
        config = write_config(tmp_path, model.base_url, ttl="15s")
        key = await new_key(config)
        http, gateway = manager.addresses

        async def ask(prompt: str) -> str:
            headers = {"Authorization": f"Bearer {key}"}
            answer = await client.post(f"http://{http}/api/v1/ask", headers=headers, json={"prompt": prompt})
            assert answer.status_code == 200, answer.text
            return str(answer.json()["message"]["content"])

        async with manager.running(config) as first:
            assert (await manager.hear()).splitlines() == ["READY=1", f"STATUS=serving {http}"]
            assert await ask("[[say: one]]") == "one"
            async with connected(Endpoint("gateway", gateway, key)) as sdk:
                chat = await sdk.create()
                await chat.send("[[say: two]]")
                await chat.until("session.idle")
                assert chat.answer == "two"
            # Nothing of it is handed on to what the node starts.
            await eventually(lambda: not handed_on(first.pid))
            first.send_signal(signal.SIGTERM)
            assert (await manager.hear()).startswith("STOPPING=1")
            assert await asyncio.wait_for(first.wait(), 60) == 0
        # Nobody is there, and nobody is turned away.
        waiting = asyncio.create_task(ask("[[say: three]]"))
        async with manager.running(config):
            assert await asyncio.wait_for(waiting, 60) == "three"


async def test_sockets_that_nobody_can_tell_apart_stop_the_start(tmp_path: Path, manager: Manager) -> None:
    config = write_config(tmp_path, "http://127.0.0.1:9/v1")
    wrong = _MANAGER.replace("http:gateway", "http:http")
    descriptors = [each.fileno() for each in manager.listeners]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        wrong,
        ",".join(map(str, descriptors)),
        str(config),
        pass_fds=descriptors,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"FileDescriptorName" in err


async def test_a_node_that_leaves_says_so_before_it_turns_anybody_away(tmp_path: Path) -> None:
    """For `server.drain_delay`, so that load balancers pass it over in time."""
    async with ModelServer() as model, host(tmp_path, model, server={"drain_delay": "4s"}) as running:
        alice = await running.user()
        await alice.open("s")
        assert await alice.text("s", "[[say: one]]") == "one"
        draining = asyncio.create_task(running.node.drain())
        await eventually(lambda: says_that_it_leaves(running))
        assert not running.node.sessions.draining
        assert await alice.text("s", "[[say: two]]") == "two"
        await until(lambda: running.node.sessions.draining)
        refused = await alice.http.post("/sessions/s/messages", json={"prompt": "[[say: three]]"})
        assert (refused.status_code, json.loads(refused.content)["code"]) == (503, "draining")
        await draining


async def says_that_it_leaves(running: Host) -> bool:
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.get(f"{running.url}/ready")
    return answer.status_code == 503 and answer.json()["code"] == "draining"
