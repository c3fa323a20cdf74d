"""What an unmodified SDK client sees when the runtime behind it dies, hangs, or is taken from under its sessions:
nothing but a slower answer, or one clear error.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from copilot import ToolInvocation, ToolResult
from copilot._jsonrpc import JsonRpcError

from aerodrome.demo.model import ModelServer
from aerodrome.gateway.upstream import Upstream
from aerodrome.model import SessionKey
from aerodrome.sessions.live import LiveSession
from support.cli import hold_for_hung
from support.hop import Hop, hop
from support.host import LASTING, Host, host, until
from support.sdk_clients import Chat, Endpoint, connected, custom_tool

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]

CALL = '[[tool: look {"x": "there"}]]'


@pytest.fixture(scope="module", params=["gateway", "forwarded"])
def endpoint_kind(request: pytest.FixtureRequest) -> str:
    """The suite's `model` is one for each, so that the gates are shut again."""
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(endpoint_kind: str, model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hop]:
    """One node where clients connect, and one where their sessions run, with a warm runtime in reserve; or one that is
    both."""
    directory, runtime = tmp_path_factory.mktemp("node"), {"warm": 1}
    if endpoint_kind == "forwarded":
        async with hop(directory, model, coordination=LASTING, runtime=runtime) as two:
            yield two
    else:
        async with host(directory, model, coordination=LASTING, runtime=runtime) as running:
            yield Hop(running, running)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(nodes: Hop) -> Host:
    """Where the sessions run."""
    return nodes.back


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def endpoint(nodes: Hop) -> Endpoint:
    return Endpoint("gateway", nodes.front.gateway_address, await nodes.front.key())


def live(node: Host, chat: Chat) -> LiveSession:
    found = node.node.sessions.find_live(SessionKey("acme", chat.id))
    assert found is not None
    return found


def kill(node: Host, chat: Chat, number: signal.Signals = signal.SIGKILL) -> int:
    """Hit the runtime that has the session; returns its pid."""
    activation = live(node, chat).activation
    assert activation is not None
    assert activation.runtime.pid is not None
    os.kill(activation.runtime.pid, number)
    return activation.runtime.pid


async def hibernate(node: Host, chat: Chat) -> None:
    """Put it to sleep, as idle time would."""
    await until(lambda: live(node, chat).evictable)  # the client is told of a turn's end before it is recorded
    assert await node.node.sessions.hibernate(live(node, chat))


def free_tool(name: str = "look", handler: Any = None) -> Any:
    return custom_tool(name, handler, skip_permission=True)


class EveryEvent:
    """All events of a chat, over all turns."""

    def __init__(self, chat: Chat) -> None:
        self.seen: list[Any] = []
        chat.session.on(self.seen.append)

    @property
    def repeated(self) -> list[str]:
        return [str(event) for event, times in Counter(event.id for event in self.seen).items() if times > 1]

    def stored(self) -> list[str]:
        """Ids of those that belong to the history."""
        return [str(event.id) for event in self.seen if not event.ephemeral]


async def history(chat: Chat) -> list[str]:
    """What was said, as the session's own history has it."""
    said = {"user.message": "user", "assistant.message": "assistant"}
    events = await chat.session.get_events()
    return [f"{said[e.type.value]}: {e.data.content}" for e in events if e.type.value in said and e.data.content]


async def test_a_kill_between_turns_is_not_noticed(node: Host, endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool()])
        every = EveryEvent(chat)
        await chat.turn("My name is Ada")
        pid = kill(node, chat)
        assert "Ada" in await chat.turn("What is my name?")
        assert kill(node, chat) != pid
        assert await chat.turn(CALL) == "tool said: look got there"
        assert every.repeated == []
        assert [line for line in await history(chat) if line.startswith("user")] == [
            "user: My name is Ada",
            "user: What is my name?",
            f"user: {CALL}",
        ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_turn_whose_runtime_dies_or_hangs_is_answered_all_the_same(
    node: Host, endpoint: Endpoint, model: ModelServer, number: signal.Signals
) -> None:
    gate = f"held-{number.name}"
    async with connected(endpoint) as client:
        chat = await client.create(streaming=True)
        every = EveryEvent(chat)
        await chat.turn("one")
        message_id = await chat.send(f"[[gate: {gate}]] two")
        await model.gate_reached(gate)
        hold_for_hung(node.runtime())
        kill(node, chat, number)
        model.open_gate(gate)
        await chat.until("session.idle")
        assert chat.answers == ["echo: two"]
        assert chat.data("session.error") == []
        # The client knows the message by the id that it was given, whatever the second runtime calls it.
        assert {data.message_id for data in chat.data("user.message")} == {message_id}
        assert chat.data("assistant.message")[-1].originating_message_id == message_id
        assert every.repeated == []
        assert await history(chat) == [
            "user: one",
            "assistant: echo: one",
            f"user: [[gate: {gate}]] two",
            "assistant: echo: two",
        ]


async def test_the_sdk_s_own_waiting_ends_with_the_repeated_turn(
    node: Host, endpoint: Endpoint, model: ModelServer
) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        waiting = asyncio.create_task(chat.session.send_and_wait("[[gate: waited]] for", timeout=30))
        await model.gate_reached("waited")
        kill(node, chat)
        model.open_gate("waited")
        assert (await waiting).data.content == "echo: for"
        schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
        waiting = asyncio.create_task(
            chat.session.send_and_wait('[[gate: structured]] [[say: {"a": "b"}]]', response_schema=schema, timeout=30)
        )
        await model.gate_reached("structured")
        kill(node, chat)
        model.open_gate("structured")
        assert (await waiting).data.content == '{"a": "b"}'


async def test_a_turn_in_which_a_tool_had_run_is_reported(node: Host, endpoint: Endpoint) -> None:
    called, answer = asyncio.Event(), asyncio.Event()

    async def look(invocation: ToolInvocation) -> ToolResult:
        called.set()
        await answer.wait()
        return ToolResult(text_result_for_llm="seen")

    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool(handler=look)])
        every = EveryEvent(chat)
        await chat.turn("one")
        waiting = asyncio.create_task(chat.session.send_and_wait(CALL, timeout=30))
        await called.wait()
        kill(node, chat)
        with pytest.raises(Exception, match="the runtime was lost in mid-turn"):
            await waiting
        (error,) = [event.data for event in every.seen if event.type.value == "session.error"]
        assert error.error_type == "turn_interrupted"
        await until(lambda: every.seen[-1].type.value == "session.idle")
        # The answer to the lost runtime's call goes nowhere, and the next call works.
        answer.set()
        assert await chat.turn(CALL) == "tool said: seen"
        assert await chat.prompts_seen() == ["one", CALL]
        assert every.repeated == []


async def test_callbacks_of_the_client_work_after_a_loss(node: Host, endpoint: Endpoint) -> None:
    hooked: list[str] = []
    asked: list[str] = []

    async def on_pre_tool_use(given: Any, invocation: Any) -> None:
        hooked.append(given["toolName"])

    async def on_user_input(given: Any, invocation: Any) -> Any:
        asked.append(given["question"])
        return {"answer": "blue", "wasFreeform": True}

    def on_permission(request: Any, invocation: Any) -> Any:
        from copilot.generated.rpc import PermissionDecisionApproveOnce

        asked.append("permission")
        return PermissionDecisionApproveOnce()

    async with connected(endpoint) as client:
        chat = await client.create(
            tools=[custom_tool("look")],
            hooks={"on_pre_tool_use": on_pre_tool_use},
            on_user_input_request=on_user_input,
            on_permission_request=on_permission,
        )
        for _ in range(2):
            assert await chat.turn(CALL) == "tool said: look got there"
            assert "blue" in await chat.turn('[[tool: ask_user {"question": "Which colour?"}]]')
            kill(node, chat)
        assert await chat.turn(CALL) == "tool said: look got there"
        assert asked == ["permission", "Which colour?"] * 2 + ["permission"]
        assert hooked == ["look", "ask_user"] * 2 + ["look"]


async def test_a_call_in_flight_fails_or_is_repeated(node: Host, endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn("[[tokens: 200]] one")
        await chat.turn("[[tokens: 200]] two")
        hold_for_hung(node.runtime())
        process = node.runtime().pid
        assert process is not None
        os.kill(process, signal.SIGSTOP)
        await until(lambda: psutil.Process(process).status() == psutil.STATUS_STOPPED)
        # It cannot answer either: a read is asked again of the next runtime, anything else might have happened.
        reading = asyncio.create_task(chat.session.get_events())
        changing = asyncio.create_task(chat.session.rpc.history.compact())
        assert len([e for e in await reading if e.type.value == "user.message"]) == 2
        with pytest.raises(JsonRpcError) as caught:
            await changing
        assert caught.value.data["code"] == "turn_interrupted"
        assert caught.value.data["retryable"] is True
        # Nothing of either call keeps the session in its runtime.
        await until(lambda: live(node, chat).evictable)
        assert await chat.turn("three") == "echo: three"


async def test_hibernation_is_not_noticed(node: Host, endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool()])
        every = EveryEvent(chat)
        await chat.turn("My name is Ada")
        await chat.session.set_model("gpt-4.1-mini")
        await hibernate(node, chat)
        assert live(node, chat).activation is None
        assert "Ada" in await chat.turn("What is my name?")
        await hibernate(node, chat)
        assert await chat.turn(CALL) == "tool said: look got there"
        # What was changed since the session was opened is not undone by opening it again.
        assert (await chat.session.rpc.model.get_current()).model_id == "gpt-4.1-mini"
        assert every.repeated == []
        assert [event for event in every.seen if event.type.value in ("session.resume", "session.shutdown")] == []


async def test_a_session_that_is_opened_over_http_while_its_client_sleeps_has_the_client_s_tools(
    node: Host, endpoint: Endpoint
) -> None:
    alice = await node.user("alice")
    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool()])
        await chat.turn("one")
        await hibernate(node, chat)
        assert await alice.text(chat.id, CALL) == "tool said: look got there"
        await until(lambda: bool(chat.data("session.idle")))


async def test_a_runtime_with_more_sessions_than_it_may_have_is_shared_in_turns(tmp_path: Path) -> None:
    runtime = {"max_sessions": 1, "max_runtimes": 1}
    async with ModelServer() as model, host(tmp_path, model, coordination=LASTING, runtime=runtime) as small:
        endpoint = Endpoint("gateway", small.gateway_address, await small.key())
        async with connected(endpoint) as client:
            chats = [await client.create() for _ in range(3)]
            for number, chat in enumerate(chats):
                await chat.turn(f"My name is N{number}")
            for number, chat in enumerate(chats):
                assert f"N{number}" in await chat.turn("What is my name?")
            assert len(small.node.pool.runtimes) == 1


async def test_what_a_client_asked_for_holds_in_the_next_runtime(node: Host, endpoint: Endpoint) -> None:
    from copilot.rpc import ModeSetRequest
    from copilot.session_events import SessionMode

    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn("one")
        await chat.session.rpc.mode.set(ModeSetRequest(mode=SessionMode.PLAN))
        kill(node, chat)
        await chat.turn("two")
        assert await chat.session.rpc.mode.get() == SessionMode.PLAN


async def test_an_interest_that_was_given_up_is_not_taken_up_again(
    node: Host, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from copilot.rpc import RegisterEventInterestParams, ReleaseEventInterestParams

    asked: list[tuple[str, Any]] = []
    ask = Upstream.request

    async def noted(self: Upstream, method: str, params: Any, **more: Any) -> Any:
        if self.runtime is not None:
            asked.append((method, params.get("eventType")))
        return await ask(self, method, params, **more)

    async with connected(endpoint) as client:
        chat = await client.create()
        log = chat.session.rpc.event_log
        given_up = await log.register_interest(RegisterEventInterestParams(event_type="mcp.oauth_required"))
        await log.register_interest(RegisterEventInterestParams(event_type="sampling.requested"))
        await log.release_interest(ReleaseEventInterestParams(handle=given_up.handle))
        await chat.turn("one")
        await hibernate(node, chat)
        monkeypatch.setattr(Upstream, "request", noted)
        await chat.turn("two")
    interests = [event for method, event in asked if method == "session.eventLog.registerInterest"]
    assert interests == ["sampling.requested"]


async def test_a_server_that_the_client_has_disabled_is_not_back_in_the_next_runtime(
    node: Host, endpoint: Endpoint
) -> None:
    from copilot.rpc import MCPDisableRequest

    async with connected(endpoint) as client:
        servers = {"m": {"type": "http", "url": "https://mcp.invalid/mcp", "tools": ["*"]}}
        chat = await client.create(mcp_servers=servers)

        async def status() -> str:
            listed = await chat.session.rpc.mcp.list()
            (found,) = [server for server in listed.servers if server.name == "m"]
            return str(found.status.value)

        assert await status() != "disabled"
        await chat.session.rpc.mcp.disable(MCPDisableRequest(server_name="m"))
        assert await status() == "disabled"
        await chat.turn("one")
        await hibernate(node, chat)
        assert await status() == "disabled"
        kill(node, chat)
        assert await status() == "disabled"
