"""A node whose runtimes are in sandboxes, and a hostile user of it: what they run there and what comes of it."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aerodrome.app.launch import check_sandbox
from aerodrome.demo.model import ModelServer
from aerodrome.errors import RuntimeUnavailable
from support.host import Host, User, host, make_settings

#: This test's own Python, which is made readable inside.
PYTHON = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
#: For scripts that run inside: `tried(f)` is what came of it, in a word.
PRELUDE = """
import json, os, socket, sys
def tried(attempt):
    try:
        attempt()
        return "done"
    except OSError as error:
        return type(error).__name__
"""
#: Tools that reach the host; no `allow_unsandboxed`.
SECTIONS: dict[str, dict[str, Any]] = {
    # What uses a machine up makes others slow as well: that is no sign that they hang, or are dead.
    "coordination": {"heartbeat": "1s", "ttl": "60s"},
    "runtime": {"launcher": "sandbox", "warm": 1, "start_timeout": "60s", "ping_timeout": "30s"},
    "isolation": {"default": "user"},
    "policy": {"host_tools": ["bash"]},
    "sandbox": {"read_only": [sys.base_prefix]},
}


@pytest.fixture(scope="session")
def allowed() -> None:
    """Leaves tests out where no sandbox can be made, which the doctor would say."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            asyncio.run(_try(Path(directory)))
        except RuntimeUnavailable as error:
            pytest.skip(error.detail)


async def _try(directory: Path) -> None:
    await check_sandbox(make_settings(directory, "http://127.0.0.1:9/v1"))


@asynccontextmanager
async def sandboxed(directory: Path, model: ModelServer, **sections: dict[str, Any]) -> AsyncIterator[Host]:
    merged = {name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in {*SECTIONS, *sections}}
    async with host(directory, model, **merged) as running:
        yield running


class Shell:
    """A user with a session in which the model does what the user says: run a command with the tool `bash`."""

    def __init__(self, user: User, session: str) -> None:
        self.user = user
        self.session = session

    @classmethod
    async def of(cls, running: Host, name: str, tenant: str = "acme", session: str | None = None) -> Shell:
        shell = cls(await running.user(name, tenant), session or f"shell-of-{name}")
        await shell.user.open(shell.session, tools=["bash"])
        return shell

    async def send(self, command: str) -> Any:
        """The response to the prompt; whatever the tool asks is allowed."""
        arguments = json.dumps({"command": command, "description": "run it", "initial_wait": 200})
        # From before the prompt on: nobody is told of what was asked before.
        async with self.user.events(self.session) as events:
            approving = asyncio.create_task(self._approve(events))
            try:
                return await self.user.http.post(
                    f"/sessions/{self.session}/messages",
                    json={"prompt": f"[[tool: bash {arguments}]]"},
                    timeout=250,
                )
            finally:
                approving.cancel()
                await asyncio.wait({approving})

    async def run(self, command: str) -> str:
        """What the command has written, and its exit code, as far as the model is told: 500 characters."""
        response = await self.send(command)
        assert response.status_code == 200, response.text
        return str(response.json()["message"]["content"]).removeprefix("tool said: ")

    async def send_python(self, script: str) -> Any:
        """The response to the prompt that has a Python script run."""
        return await self.send(_python(script))

    async def _approve(self, events: AsyncIterator[dict[str, Any]]) -> None:
        async for event in events:
            if event["event"] == "permission.requested":
                request = event["data"]["data"]["requestId"]
                await self.user.http.post(f"/sessions/{self.session}/requests/{request}", json={"decision": "approve"})

    async def python(self, script: str) -> Any:
        """What a Python script run by the tool prints: JSON."""
        said = await self.run(_python(script))
        try:
            return json.JSONDecoder().raw_decode(said)[0]
        except ValueError:
            raise AssertionError(said) from None


async def ended_because(shell: Shell, response: Any, setting: str) -> None:
    """The turn says which limit was passed, and the user's next runtime works."""
    problem = response.json()
    assert problem["code"] == "turn_interrupted", problem
    assert setting in problem["detail"], problem
    assert "back" in await shell.run("echo back")


def _python(script: str) -> str:
    return f"{PYTHON} - <<'END_OF_SCRIPT'\n{PRELUDE}{script}\nEND_OF_SCRIPT"
