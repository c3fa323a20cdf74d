"""Ways to the host that the real CLI has, and that policy closes.

Each test first shows that a bare CLI goes that way: a test that could not fail would prove nothing. One CLI for all.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aerodrome.demo.model import ModelServer
from aerodrome.model import ISOLATED_TOOLS, Isolation
from aerodrome.policy.methods import checked_params, refusal
from aerodrome.policy.open_params import OpenContext, client_open_params, forced_options, runtime_open_params
from aerodrome.policy.profiles import Profile
from aerodrome.policy.remote_servers import BUILT_IN
from aerodrome.policy.session_params import Credentials, ToolPolicy
from aerodrome.policy.shapes import Refusal
from aerodrome.runtime.probe import ProbeModel, ProbeSession
from aerodrome.runtime.supervisor import ManagedRuntime
from support.cli import launcher, runtime_options
from support.waiting import until

pytestmark = [pytest.mark.cli, pytest.mark.timeout(90), pytest.mark.asyncio(loop_scope="module")]

TOOL = {"name": "look", "description": "looks", "parameters": {"type": "object", "properties": {}}}
WITH_AN_AGENT = '[[tool: task {"description": "d", "prompt": "go", "agent_type": "a", "name": "n", "mode": "sync"}]]'
_ids = itertools.count()


class Session(ProbeSession):
    """A session without files, and what was said of it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.id = f"s{next(_ids)}"
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._world = world

    async def on_request(self, method: str, params: dict[str, Any]) -> Any:
        self.asked.append((method, params))

    async def call(self, method: str, **params: Any) -> Any:
        return await self._world.runtime.control.request(method, {**params, "sessionId": self.id})

    async def allowed(self, method: str, **params: Any) -> Any:
        """As a client may call it."""
        assert refusal(method, Profile.ISOLATED) is None
        checked = checked_params(method, Profile.ISOLATED, {"sessionId": self.id, **params})
        assert not isinstance(checked, Refusal), checked.reason
        return await self.call(method, **{name: value for name, value in checked.items() if name != "sessionId"})

    async def offered(self, prompt: str = "hi") -> list[list[str]]:
        """Take a turn; the tools of each request to the model."""
        self.idle.clear()
        before = len(self._world.model.requests)
        await self.call("session.send", prompt=prompt)
        async with asyncio.timeout(60):
            await self.idle.wait()
        requests = self._world.model.requests[before:]
        return [[tool["function"]["name"] for tool in request.body.get("tools") or ()] for request in requests]


@dataclass
class World:
    runtime: ManagedRuntime
    model: ModelServer

    @property
    def provider(self) -> dict[str, Any]:
        return {"type": "openai", "baseUrl": self.model.base_url, "apiKey": "k"}

    async def bare(self, **params: Any) -> Session:
        """A session with the parameters of a client that talks to the CLI itself."""
        session = self._bound()
        workspace = str(self.runtime.workspace)
        given = {"provider": self.provider, "model": "gpt-4.1", "workingDirectory": workspace, **params}
        await session.call("session.create", **given)
        return session

    async def isolated(self, **params: Any) -> Session:
        """The same, through policy."""
        session = self._bound()
        kept = client_open_params(params, False, Profile.ISOLATED, Isolation.TENANT, ToolPolicy())
        assert not isinstance(kept, Refusal), kept.reason
        return await self.opened(session, kept)

    async def opened(self, session: Session, kept: dict[str, Any]) -> Session:
        context = OpenContext(
            Profile.ISOLATED,
            Isolation.TENANT,
            ToolPolicy(),
            Credentials(provider=self.provider, model="gpt-4.1"),
            str(self.runtime.workspace),
        )
        await session.call("session.create", **runtime_open_params(kept, context))
        await session.call("session.options.update", **(forced_options(Profile.ISOLATED) or {}))
        return session

    async def isolated_unchecked(self, **params: Any) -> Session:
        """As if the client's parameters had been let in: what is forced has to hold alone."""
        return await self.opened(self._bound(), params)

    def _bound(self) -> Session:
        session = Session(self)
        self.runtime.control.bind(session.id, session)
        return session


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(cli: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    probe = ProbeModel()
    await probe.start()
    # One for all: that the machine is slow for a moment must not end it.
    options = replace(runtime_options(tmp_path_factory.mktemp("policy"), cli), ping_timeout=20.0)
    runtime = ManagedRuntime("rt-1", options)
    try:
        async with ModelServer() as model:
            await runtime.start(launcher(), probe)
            yield World(runtime, model)
    finally:
        await runtime.stop()
        await probe.aclose()


# --- commands ---


def hook(marker: Path) -> dict[str, Any]:
    action = {"type": "command", "bash": f"touch {marker}"}
    return {"sessionStart": [action], "userPromptSubmitted": [action]}


def stdio(marker: Path) -> dict[str, Any]:
    return {"m": {"type": "stdio", "command": "sh", "args": ["-c", f"touch {marker}"], "tools": ["*"]}}


def hook_directory(marker: Path) -> dict[str, Any]:
    directory = marker.parent / "hooks"
    directory.mkdir()
    (directory / "hooks.json").write_text(json.dumps({"version": 1, "hooks": hook(marker)}))
    return {"hookDirectories": [str(directory)]}


def plugin_directory(marker: Path) -> dict[str, Any]:
    directory = marker.parent / "plugin"
    directory.mkdir()
    (directory / "plugin.json").write_text(json.dumps({"name": "p", "version": "1.0.0", "description": "d"}))
    (directory / ".mcp.json").write_text(json.dumps({"mcpServers": stdio(marker)}))
    return {"pluginDirectories": [str(directory)]}


def agent(**fields: Any) -> dict[str, Any]:
    return {"customAgents": [{"name": "a", "prompt": "p", "description": "d", **fields}], "agent": "a"}


COMMANDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "mcpServers": lambda marker: {"mcpServers": stdio(marker)},
    "customAgents[0].mcpServers": lambda marker: agent(mcpServers=stdio(marker)),
    "customAgents[0].hooks": lambda marker: agent(hooks=hook(marker)),
    "hookDirectories": hook_directory,
    "pluginDirectories": plugin_directory,
}


@pytest.mark.parametrize("named", COMMANDS)
async def test_no_parameter_of_a_client_runs_a_command_on_the_host(world: World, tmp_path: Path, named: str) -> None:
    params = COMMANDS[named](tmp_path / "ran")
    session = await world.bare(**params)
    await session.offered(WITH_AN_AGENT)
    await until((tmp_path / "ran").exists)
    said = client_open_params(params, False, Profile.ISOLATED, Isolation.TENANT, ToolPolicy())
    assert isinstance(said, Refusal)
    assert f"`{named}" in said.reason


async def test_no_key_command_of_a_client_runs(world: World, tmp_path: Path) -> None:
    provider = {"type": "openai", "baseUrl": world.model.base_url, "apiKeyCommand": f"touch {tmp_path}/ran; echo k"}
    await (await world.bare(provider=provider)).offered()
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    for params in ({"provider": provider}, {"providers": [{"name": "p", **provider}]}):
        said = client_open_params(params, False, Profile.ISOLATED, Isolation.TENANT, ToolPolicy())
        assert isinstance(said, Refusal)
    await (await world.isolated_unchecked(provider=provider)).offered()
    assert not (tmp_path / "ran").exists()


async def test_what_is_forced_holds_alone(world: World, tmp_path: Path) -> None:
    """Were the check of a client's parameters to fail, the parameters that are built still leave these out."""
    marker = tmp_path / "ran"
    files = {"enableFileHooks": True, "enableConfigDiscovery": True, "workingDirectory": str(tmp_path)}
    session = await world.isolated_unchecked(**hook_directory(marker), **plugin_directory(marker), **files)
    (tools,) = await session.offered()
    assert not marker.exists()
    assert set(tools) <= set(ISOLATED_TOOLS)


# --- tools ---


async def test_an_isolated_client_is_offered_no_tool_of_the_host(world: World) -> None:
    (bare,) = await (await world.bare()).offered()
    assert "bash" in bare
    (tools,) = await (await world.isolated(tools=[TOOL], requestUserInput=True)).offered()
    assert {"look", "ask_user", "task"} <= set(tools)
    assert set(tools) <= {*ISOLATED_TOOLS, "look"}


async def test_an_agent_gets_no_tool_that_its_session_does_not_have(world: World) -> None:
    wants = agent(tools=["bash", "builtin:bash", "*"])
    bare = await (await world.bare(**wants, availableTools=["builtin:bash", "builtin:task"])).offered(WITH_AN_AGENT)
    assert any("bash" in tools for tools in bare)
    session = await world.isolated(**wants)
    await session.allowed("session.agent.deselect")
    for tools in [*await session.offered(WITH_AN_AGENT), *await session.offered()]:
        assert set(tools) <= set(ISOLATED_TOOLS)


async def test_tools_are_not_added_while_a_session_runs(world: World) -> None:
    bare = await world.bare(availableTools=["builtin:task"])
    for available in (["builtin:bash"], None):
        await bare.call("session.options.update", availableTools=available)
        assert "bash" in (await bare.offered())[0]
    session = await world.isolated(availableTools=["builtin:task"])
    said = checked_params("session.options.update", Profile.ISOLATED, {"availableTools": ["builtin:bash"]})
    assert isinstance(said, Refusal)
    await session.allowed("session.options.update", availableTools=None)
    await session.allowed("session.options.update", excludedTools=[])
    assert await session.offered() == [["task"]]


async def test_a_session_without_tools_stays_without_whatever_it_excludes(world: World) -> None:
    assert "bash" in (await (await world.bare(availableTools=None)).offered())[0]
    session = await world.isolated(availableTools=[], tools=[TOOL])
    assert await session.offered() == [[]]
    await session.allowed("session.options.update", excludedTools=[])
    assert await session.offered() == [[]]


async def test_a_tool_of_the_client_is_called_in_the_place_of_one_of_the_hosts(world: World, tmp_path: Path) -> None:
    mine = {**TOOL, "name": "bash", "overridesBuiltInTool": True, "skipPermission": True}
    session = await world.isolated(tools=[mine])
    call = f'[[tool: bash {{"command": "touch {tmp_path}/ran", "description": "d"}}]] [[then]] [[say: done]]'
    await session.call("session.send", prompt=call)
    async with asyncio.timeout(60):
        while not (pending := (await session.allowed("session.tools.listPendingRequests"))["items"]):
            await asyncio.sleep(0.01)
        await session.allowed("session.tools.handlePendingToolCall", requestId=pending[0]["requestId"], result="mine")
        await session.idle.wait()
    assert world.model.requests[-1].body["messages"][-1]["content"] == "mine"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (["bash"], ["bash"]),
        (["builtin:task", "custom:*"], ["task", "look"]),
        (["custom:bash", "mcp:bash", "BUILTIN:bash", " bash", "builtin:b*", "*", "look"], ["look"]),
    ],
)
async def test_filters_are_spelled_as_we_think(world: World, filters: list[str], found: list[str]) -> None:
    assert await (await world.bare(availableTools=filters, tools=[TOOL])).offered() == [found]


# --- what the host says of itself ---


async def test_the_environment_of_the_host_is_not_sent_to_a_clients_servers(world: World) -> None:
    home = str(world.runtime.home)
    async with listener() as (address, received):
        server = {"type": "http", "url": f"{address}?at=${{HOME}}", "headers": {"X-Home": "$HOME"}}
        await (await world.bare(mcpServers={"m": server}, availableTools=["mcp:*"])).offered()
        head = await received.get()
    assert f"?at={home}" in head
    assert f"x-home: {home}" in head.lower()
    changes: list[dict[str, Any]] = [{"headers": {}}, {"url": "https://mcp.example/"}]
    for change in changes:
        params = {"mcpServers": {"m": {**server, **change}}}
        said = client_open_params(params, False, Profile.ISOLATED, Isolation.TENANT, ToolPolicy())
        assert isinstance(said, Refusal)
        assert "`$`" in said.reason


async def test_a_server_may_lead_the_runtime_anywhere(world: World) -> None:
    """Which is why a name that is allowed is no border: a firewall is (docs/security.md)."""
    async with listener() as (inside, received):
        for answer in (
            f"307 Temporary Redirect\r\nLocation: {inside}/here",
            f'401 Unauthorized\r\nWWW-Authenticate: Bearer resource_metadata="{inside}/here"',
        ):
            async with listener(answer) as (outside, _):
                server = {"type": "http", "url": outside}
                await (await world.bare(mcpServers={"m": server}, availableTools=["mcp:*"])).offered()
                assert "/mcp/here" in await received.get()


@asynccontextmanager
async def listener(answer: str = "404 Not Found") -> AsyncIterator[tuple[str, asyncio.Queue[str]]]:
    """An HTTP server that has one answer; its address, and the heads of the requests it gets."""
    received: asyncio.Queue[str] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.put_nowait((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(f"HTTP/1.1 {answer}\r\n".encode() + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp", received


@pytest.mark.parametrize("action", ["transform", "append", "preserve"])
async def test_the_system_message_does_not_describe_the_host(world: World, action: str) -> None:
    message = {"mode": "customize", "sections": {"environment_context": {"action": action, "content": "."}}}
    bare = await world.bare(systemMessage=message)
    await bare.offered()
    assert str(world.runtime.workspace) in system_message(world) + str(bare.asked)
    session = await world.isolated(systemMessage=message)
    await session.offered()
    assert str(world.runtime.workspace) not in system_message(world) + str(session.asked)


def system_message(world: World) -> str:
    return str(world.model.requests[-1].body["messages"][0]["content"])


async def test_the_servers_that_the_runtime_brings_along_are_known(world: World) -> None:
    found = await world.runtime.control.request("mcp.listBuiltinServerNames", {})
    assert sorted(found["names"]) == sorted(BUILT_IN)


# --- methods ---


async def test_commands_of_the_runtime_reach_the_host_and_are_not_for_isolated_clients(world: World) -> None:
    session = await world.bare(availableTools=["builtin:task"])
    await session.call("session.commands.invoke", name="add-dir", input="/etc")
    assert "/etc" in (await session.call("session.permissions.paths.list"))["directories"]
    assert refusal("session.commands.invoke", Profile.ISOLATED) is not None


async def test_a_shell_of_the_runtime_is_not_for_isolated_clients(world: World, tmp_path: Path) -> None:
    session = await world.bare(availableTools=["builtin:task"])
    await session.call("session.shell.exec", command=f"touch {tmp_path}/ran")
    await until((tmp_path / "ran").exists)
    assert refusal("session.shell.exec", Profile.ISOLATED) is not None


@pytest.mark.parametrize("prompt", ["/add-dir /etc", "!touch {}/ran", "@/etc/hosts say"])
async def test_a_prompt_is_a_prompt_whatever_it_begins_with(world: World, tmp_path: Path, prompt: str) -> None:
    """Commands, shell lines and mentions of files are made by the terminal, not by the runtime."""
    session = await world.isolated()
    assert await session.offered(prompt.format(tmp_path))
    assert prompt.format(tmp_path) in str(world.model.requests[-1].body["messages"][-1]["content"])
    assert "/etc" not in (await session.call("session.permissions.paths.list"))["directories"]
    assert "localhost" not in str(world.model.requests[-1].body["messages"][-1]["content"])
    assert not (tmp_path / "ran").exists()
