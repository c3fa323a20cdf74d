"""Native clients with the profile `sandboxed`: commands past every tool, in the sandbox all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.host import until
from support.misbehaving import raw
from support.sandbox import sandboxed
from support.sdk_clients import Endpoint, connected

pytestmark = pytest.mark.cli


async def test_a_client_runs_commands_in_its_own_workspace_only(tmp_path: Path, model: ModelServer) -> None:
    policy = {"profile": "sandboxed", "host_tools": []}
    async with sandboxed(tmp_path, model, policy=policy) as running:
        endpoint = Endpoint("gateway", running.gateway_address, await running.key("alice"))
        async with connected(endpoint) as client:
            chat = await client.create(session_id="s1")
            assert "echo: hello" in await chat.turn("hello")
            async with raw(endpoint.address, endpoint.token) as other:
                resumed = await other.request("session.resume", {"sessionId": "s1"})
                assert "result" in resumed, resumed
                command = f"pwd > where; id -u >> where; ls {tmp_path} /root /var >> where 2>&1; echo end >> where"
                answer = await other.request("session.shell.exec", {"sessionId": "s1", "command": command})
                assert "result" in answer, answer
            (workspace,) = (tmp_path / "workspaces").iterdir()
            said = workspace / "files/where"
            await until(lambda: said.exists() and said.read_text().endswith("end\n"), timeout=60)
            assert said.read_text().startswith("/workspace\n1000\n")
            assert said.read_text().count("No such file or directory") >= 2
