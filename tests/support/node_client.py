"""The official Node SDK, in a process of its own that plays scenarios (tests/gateway/node).

The SDK is installed from its lock when it is not there yet: without optional dependencies, which are the CLI once for
each platform, 200 MB, and without the scripts of packages. `npm` finds its registry in its own configuration.

The lock was made by `npm install --omit-lockfile-registry-resolved`; then the optional packages were taken out of it,
and out of what `@github/copilot-sdk` and `koffi` list as optional, because `npm ci` refuses a lock that has not all
of them, and a registry need not have them all.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from support.sdk_clients import Endpoint, requests_of

DIRECTORY = Path(__file__).parents[1] / "gateway" / "node"
#: Seconds that one scenario may take.
PATIENCE = 90.0
# A scenario's answer is one line.
_LINE_LIMIT = 1 << 24
_INSTALL = ("ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund")


@pytest.fixture(scope="session")
def node() -> str:
    """The program, with the SDK installed for it."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        pytest.skip("these tests need Node.js 20 with npm")
    with (DIRECTORY / "package.json").open() as package:
        # Another run of the tests may be installing.
        fcntl.flock(package, fcntl.LOCK_EX)
        if not _is_installed():
            done = subprocess.run([npm, *_INSTALL], cwd=DIRECTORY, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"the Node SDK could not be installed:\n{done.stdout}{done.stderr}"
    return found


def _is_installed() -> bool:
    """Whether the packages that are there are those of the lock."""
    try:
        wanted = json.loads((DIRECTORY / "package-lock.json").read_text())["packages"]
        there = json.loads((DIRECTORY / "node_modules" / ".package-lock.json").read_text())["packages"]
    except FileNotFoundError:
        return False
    return {path: entry["version"] for path, entry in wanted.items() if path} == {
        path: entry["version"] for path, entry in there.items()
    }


class NodeClient:
    """Plays one scenario at a time; use `playing`."""

    def __init__(self, process: asyncio.subprocess.Process, model: ModelServer) -> None:
        #: Called with the name of each step that a scenario announces.
        self.on_step: Callable[[str], None] = lambda _: None
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._model = model

    async def play(self, scenario: str, **options: Any) -> Any:
        """What the scenario returns.

        Raises:
            AssertionError: It failed, or did not end in time.
        """
        self.send({"scenario": scenario, "options": options})
        try:
            async with asyncio.timeout(PATIENCE):
                while "ask" in (message := await self._receive()):
                    self.send({"reply": await self._perform(message["ask"], *message["arguments"])})
        except TimeoutError:
            raise AssertionError(f"{scenario} did not end within {PATIENCE:g} s") from None
        assert "error" not in message, message["error"]
        return message["result"]

    def send(self, message: Any) -> None:
        self._stdin.write(json.dumps(message).encode() + b"\n")

    async def _receive(self) -> Any:
        line = await self._stdout.readline()
        assert line, "the process has ended"
        return json.loads(line)

    async def _perform(self, what: str, argument: str) -> Any:
        match what:
            case "openGate":
                self._model.open_gate(argument)
            case "gateReached":
                await self._model.gate_reached(argument)
            case "gateLeft":
                await self._model.gate_left(argument)
            case "step":
                self.on_step(argument)
            case "requests":
                return [
                    {"model": r.model, "tools": r.tools, "headers": r.headers, "messages": r.messages}
                    for r in requests_of(self._model, argument)
                ]
            case _:
                raise AssertionError(what)
        return None


@asynccontextmanager
async def playing(node: str, endpoint: Endpoint, model: ModelServer) -> AsyncIterator[NodeClient]:
    process = await asyncio.create_subprocess_exec(
        *(node, str(DIRECTORY / "conformance.mjs")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
    )
    client = NodeClient(process, model)
    try:
        provider = endpoint.credentials.get("provider")
        wire = provider and {"type": "openai", "baseUrl": provider["base_url"], "apiKey": provider["api_key"]}
        client.send({"address": endpoint.address, "token": endpoint.token, "provider": wire})
        yield client
    finally:
        # A scenario that hangs keeps it from reading the end of its input.
        if process.returncode is None:
            process.kill()
        await process.communicate()
