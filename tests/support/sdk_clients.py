"""The official SDKs as clients, and the endpoints that they connect to.

An endpoint is whatever an SDK takes for a Copilot CLI server. Tests of the SDKs know nothing else of it, so that
they say of each kind the same: `direct_endpoint` is the CLI itself, `gateway_endpoint` is Aerodrome.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from copilot import CopilotClient, RuntimeConnection, Tool, ToolInvocation, ToolResult

from aerodrome.demo.completions import ChatRequest
from aerodrome.demo.model import ModelServer
from support.cli import OFFLINE, TOKEN, launch_spec, launcher
from support.hop import hop
from support.host import LASTING, host
from support.relay import relaying

MODEL = "gpt-4.1"
#: The tools of a session in the SDK's mode "empty" when a test does not say which.
TOOLS = ("builtin:ask_user", "custom:*")
#: Seconds until something that must come counts as missing.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    #: "direct", "stored", "gateway" or "forwarded".
    kind: str
    #: "host:port".
    address: str
    #: What the SDK gives as its connection token.
    token: str
    #: What each create and resume must bring along, as arguments of the Python SDK. The CLI knows no model but the
    #: session's own; the gateway has its configuration, and its clients send nothing.
    credentials: Mapping[str, Any] = field(default_factory=dict)


def gateway(endpoint: Endpoint) -> bool:
    """Whether Aerodrome answers. What is different then is so on purpose (docs/gateway.md)."""
    return endpoint.kind in ("gateway", "forwarded")


@asynccontextmanager
async def direct_endpoint(directory: Path, command: Path, model: ModelServer) -> AsyncIterator[Endpoint]:
    """A Copilot CLI of its own, with nothing between but a relay, which saves time."""
    env = {**OFFLINE, "COPILOT_PROVIDER_BASE_URL": model.base_url}
    process = await launcher().launch(launch_spec(directory, command, env=env), timeout=60)
    try:
        provider = {"type": "openai", "base_url": model.base_url, "api_key": "test-key"}
        async with relaying(*process.address) as address:
            yield Endpoint("direct", address, TOKEN, {"provider": provider})
    finally:
        process.terminate()
        await process.wait()
        await process.cleanup()


@asynccontextmanager
async def gateway_endpoint(directory: Path, model: ModelServer) -> AsyncIterator[Endpoint]:
    """A node whose gateway stands where the CLI would; `alice@acme` connects, with an API key for token."""
    async with host(directory, model, coordination=LASTING) as running:
        yield Endpoint("gateway", running.gateway_address, await running.key("alice", "acme"))


@asynccontextmanager
async def forwarded_endpoint(directory: Path, model: ModelServer) -> AsyncIterator[Endpoint]:
    """As `gateway_endpoint`, but every session runs at another node."""
    async with hop(directory, model, coordination=LASTING) as nodes:
        yield Endpoint("forwarded", nodes.front.gateway_address, await nodes.front.key("alice", "acme"))
        # Else it would say of the other kind what it says of this one.
        assert nodes.front.node.pool.runtimes == []


class Client:
    """A `CopilotClient` of the Python SDK, connected; use `connected`."""

    def __init__(self, sdk: Any, endpoint: Endpoint, mode: str) -> None:
        self.sdk = sdk
        self.mode = mode
        self._endpoint = endpoint
        self._chats: list[Chat] = []

    async def create(self, **options: Any) -> Chat:
        """A new session; options are those of `create_session`."""
        chat = Chat()
        defaults = {"model": MODEL, "session_id": f"s-{uuid.uuid4()}"}
        chat.session = await self.sdk.create_session(**self._options(chat, {**defaults, **options}))
        self._chats.append(chat)
        return chat

    async def resume(self, session_id: str, **options: Any) -> Chat:
        chat = Chat()
        chat.session = await self.sdk.resume_session(session_id, **self._options(chat, options))
        self._chats.append(chat)
        return chat

    def forget(self) -> None:
        """The server has gone: there is nothing to detach from."""
        self._chats.clear()

    async def vanish(self) -> None:
        """Close the connection without a word."""
        await self.sdk.force_stop()

    async def leave(self) -> None:
        """Detach from every session and close the connection.

        As `CopilotClient.stop`, which blocks the loop for a second besides: it waits for its reader before it closes
        the socket that the reader reads from.
        """
        try:
            for chat in self._chats:
                await chat.session.disconnect()
        finally:
            await self.sdk.force_stop()

    def _options(self, chat: Chat, options: dict[str, Any]) -> dict[str, Any]:
        tools = {"available_tools": list(TOOLS)} if self.mode == "empty" else {}
        return {**tools, **self._endpoint.credentials, "on_event": chat.take, **options}


@asynccontextmanager
async def connected(endpoint: Endpoint, *, mode: str = "empty", **options: Any) -> AsyncIterator[Client]:
    """A client; options are those of `CopilotClient`."""
    connection = RuntimeConnection.for_uri(endpoint.address, connection_token=endpoint.token)
    client = Client(CopilotClient(connection=connection, mode=mode, **options), endpoint, mode)
    try:
        await client.sdk.start()
        yield client
    finally:
        await client.leave()


class Chat:
    """One client's side of a session, and the events that it has seen."""

    def __init__(self) -> None:
        self.session: Any = None
        #: Since the last `send`, oldest first.
        self.events: list[Any] = []
        self._news = asyncio.Event()

    @property
    def id(self) -> str:
        return str(self.session.session_id)

    def take(self, event: Any) -> None:
        self.events.append(event)
        self._news.set()

    def data(self, kind: str) -> list[Any]:
        """What the events of this type said."""
        return [event.data for event in self.events if event.type.value == kind]

    async def until(self, kind: str, times: int = 1) -> Any:
        """Wait for an event of this type, or so many of them; returns what the last said."""
        try:
            async with asyncio.timeout(PATIENCE):
                while len(found := self.data(kind)) < times:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            seen = [event.type.value for event in self.events]
            raise AssertionError(f"no {kind} (times {times}) within {PATIENCE:g} s, but {seen}") from None
        return found[times - 1]

    async def send(self, prompt: str, **options: Any) -> str:
        """Returns the id of the message. Forgets the events of earlier turns."""
        self.events.clear()
        return str(await self.session.send(prompt, **options))

    async def turn(self, prompt: str, **options: Any) -> str:
        """Send, wait for the end of the turn; the last answer."""
        await self.send(prompt, **options)
        await self.until("session.idle")
        return self.answer

    @property
    def answer(self) -> str:
        return str(self.answers[-1])

    @property
    def answers(self) -> list[str]:
        """The texts of the assistant, without the messages that only call tools."""
        return [data.content for data in self.data("assistant.message") if data.content]

    async def prompts_seen(self) -> list[str]:
        """The user prompts that the model is sent with this one, without this one."""
        seen = json.loads(await self.turn("[[turns]]"))
        assert seen[-1] == "[[turns]]"
        return list(seen[:-1])


def requests_of(model: ModelServer, prompt: str) -> list[ChatRequest]:
    """What the model was sent in the turns with this prompt, oldest first. The CLI may put a notice before it."""
    return [request for request in model.requests if request.prompt.endswith(prompt)]


def system_message(request: ChatRequest) -> str:
    return "\n".join(str(message["content"]) for message in request.messages if message["role"] == "system")


def custom_tool(name: str, handler: Any = None, **options: Any) -> Any:
    """A tool of the client with one argument, `x`; without a handler it answers what it was given."""

    async def echo(invocation: ToolInvocation) -> ToolResult:
        return ToolResult(text_result_for_llm=f"{name} got {invocation.arguments['x']}")

    schema = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}
    return Tool(name=name, description=f"Does {name}", parameters=schema, handler=handler or echo, **options)
