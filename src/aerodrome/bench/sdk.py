"""Sessions of the official Python SDK on CLIs of their own, to compare with.

They get what a node's sessions get: the same tools, the SDK's own `mode="empty"` (of which the node's forced
parameters are the equivalent), answers in one piece, and the environment in which a node starts its runtimes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aerodrome._util.xdg import runtime_packages
from aerodrome.bench.lab import MODEL, TRIM_VARIABLE, Lab
from aerodrome.errors import Invalid
from aerodrome.runtime.launchers.process import PASSED_ON


class SdkSession:
    def __init__(self, session: Any) -> None:
        self._session = session

    async def turn(self, prompt: str) -> str:
        answer = await self._session.send_and_wait(prompt)
        return str(answer.data.content)


@asynccontextmanager
async def over_tcp(lab: Lab) -> AsyncIterator[SdkSession]:
    """Connected by TCP to a CLI that listens."""
    copilot = _sdk()
    async with lab.bare_cli() as cli:
        uri = copilot.RuntimeConnection.for_uri(f"{cli.host}:{cli.port}", connection_token=cli.token)
        client = copilot.CopilotClient(connection=uri, mode="empty", base_directory=str(lab.new_directory("sdk")))
        async with _session(lab, client) as session:
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
    async with _session(lab, client) as session:
        yield session


@asynccontextmanager
async def _session(lab: Lab, client: Any) -> AsyncIterator[SdkSession]:
    await client.start()
    try:
        session = await client.create_session(
            on_permission_request=_sdk().PermissionHandler.approve_all,
            model=MODEL,
            provider={"type": "openai", "base_url": lab.model_url, "api_key": "bench"},
            available_tools=lab.tools,
            streaming=False,
        )
        yield SdkSession(session)
    finally:
        await client.stop()


def _sdk() -> Any:
    try:
        import copilot
    except ImportError:
        raise Invalid("this benchmark compares with the official SDK: pip install 'aerodrome[sdk]'") from None
    return copilot
