"""Sessions of the official Python SDK, on CLIs of their own and at gateways, to compare with.

They get what a node's sessions get: the same tools, the SDK's own `mode="empty"` (of which the node's forced
parameters are the equivalent), answers in one piece, and the environment in which a node starts its runtimes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aerodrome._util.xdg import runtime_packages
from aerodrome.bench.lab import MODEL, TRIM_VARIABLE, BareCli, Lab, NodeProcess
from aerodrome.errors import Invalid
from aerodrome.runtime.launchers.process import PASSED_ON


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What an SDK takes for a Copilot CLI server."""

    #: HOST:PORT.
    address: str
    token: str
    tools: list[str]
    #: The model's address, which sessions bring along, for a CLI. A gateway has its own configuration.
    model_url: str | None = None

    @classmethod
    def of_cli(cls, lab: Lab, cli: BareCli) -> Endpoint:
        return cls(f"{cli.host}:{cli.port}", cli.token, lab.tools, lab.model_url)

    @classmethod
    async def of_node(cls, lab: Lab, node: NodeProcess) -> Endpoint:
        return cls(node.gateway, await node.key(), lab.tools)


class SdkSession:
    """A client, and one session in which it takes turns."""

    def __init__(self, client: Any, options: dict[str, Any]) -> None:
        self._client = client
        self._options = options
        self._session: Any = None
        self._others: list[Any] = []

    async def open(self) -> None:
        self._session = await self._client.create_session(**self._options)

    async def another(self) -> SdkSession:
        """Another session on the same client."""
        session = SdkSession(self._client, self._options)
        await session.open()
        return session

    async def turn(self, prompt: str) -> str:
        answer = await self._session.send_and_wait(prompt)
        return str(answer.data.content)

    async def ping(self) -> None:
        await self._client.ping()

    async def create(self) -> None:
        """One more session."""
        self._others.append(await self._client.create_session(**self._options))

    async def forget(self) -> None:
        """Leave the sessions that `create` made: the CLI unloads them then; a host would keep them loaded, and is told
        to delete them."""
        for session in self._others:
            await session.disconnect()
            if "provider" not in self._options:
                await self._client.delete_session(session.session_id)
        self._others.clear()


@asynccontextmanager
async def over_tcp(lab: Lab) -> AsyncIterator[SdkSession]:
    """Connected by TCP to a CLI that listens."""
    async with lab.bare_cli() as cli, connected(Endpoint.of_cli(lab, cli), lab.new_directory("sdk")) as session:
        yield session


@asynccontextmanager
async def connected(endpoint: Endpoint, directory: Path) -> AsyncIterator[SdkSession]:
    """Connected by TCP to whatever listens there."""
    copilot = _sdk()
    uri = copilot.RuntimeConnection.for_uri(endpoint.address, connection_token=endpoint.token)
    client = copilot.CopilotClient(connection=uri, mode="empty", base_directory=str(directory))
    # `stop` would hold up the loop for a second: it waits for its reader before it closes what that reads from.
    async with _session(client, endpoint.tools, endpoint.model_url, client.force_stop) as session:
        yield session


@asynccontextmanager
async def over_stdio(lab: Lab) -> AsyncIterator[SdkSession]:
    """With a CLI as its child, over pipes."""
    copilot = _sdk()
    home = lab.new_directory("stdio")
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    env |= {
        "HOME": str(home),
        "COPILOT_PKG_CACHE_HOME": str(runtime_packages()),
        "COPILOT_DISABLE_KEYTAR": "1",
        TRIM_VARIABLE: "131072",
    }
    client = copilot.CopilotClient(
        connection=copilot.RuntimeConnection.for_stdio(path=str(lab.cli.path)),
        mode="empty",
        base_directory=str(home / "copilot"),
        working_directory=str(home),
        log_level="error",
        env=env | lab.cli_env,
    )
    async with _session(client, lab.tools, lab.model_url, client.stop) as session:
        yield session


@asynccontextmanager
async def _session(
    client: Any, tools: list[str], model_url: str | None, stop: Callable[[], Awaitable[None]]
) -> AsyncIterator[SdkSession]:
    options = {
        "on_permission_request": _sdk().PermissionHandler.approve_all,
        "model": MODEL,
        "available_tools": tools,
        "streaming": False,
    }
    if model_url is not None:
        options["provider"] = {"type": "openai", "base_url": model_url, "api_key": "bench"}
    await client.start()
    try:
        session = SdkSession(client, options)
        await session.open()
        yield session
    finally:
        await stop()


def _sdk() -> Any:
    try:
        import copilot
    except ImportError:
        raise Invalid("this benchmark compares with the official SDK: pip install 'aerodrome[sdk]'") from None
    return copilot
