"""What connections and sessions are to the CLI itself: the lines of docs/facts.md on which the gateway is built.

Always against the CLI, never against the gateway, which exists to make some of this different.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from copilot import ToolInvocation, ToolResult
from copilot._jsonrpc import JsonRpcError
from copilot.rpc import HandlePendingToolCallRequest, SessionsForkRequest

from aerodrome.demo.model import ModelServer
from support.recording import Recorder, recording
from support.sdk_clients import TOOLS, Chat, Client, Endpoint, connected, custom_tool, direct_endpoint
from support.session_fs import stored_endpoint
from support.waiting import until

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]

CALL = '[[tool: look {"x": "there"}]]'


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    """In place of the one that belongs to an endpoint of the suite."""
    with ModelServer.in_thread() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def direct(cli: Path, model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Endpoint]:
    async with direct_endpoint(tmp_path_factory.mktemp("direct"), cli, model) as found:
        yield found


@asynccontextmanager
async def two_links(direct: Endpoint) -> AsyncIterator[tuple[Recorder, Client, Client]]:
    """Two clients, the first on link 0 of the recorder and the second on link 1."""
    host, _, port = direct.address.rpartition(":")
    async with recording(host, int(port)) as recorder:
        relayed = replace(direct, address=recorder.address)
        async with connected(relayed) as first, connected(relayed) as second:
            yield recorder, first, second


async def attach(client: Client, session_id: str, **params: Any) -> Any:
    """The barest of resumes, without the parameters that the SDK adds."""
    return await client.sdk._client.request("session.resume", {"sessionId": session_id, **params})


async def settle(*clients: Client) -> None:
    """What the server had sent to them before is here."""
    for client in clients:
        await client.sdk.ping()


async def all_told(recorder: Recorder, *links: int) -> None:
    """These connections have been told all that follows an open of the session by one of them. The last comes when it
    is ready, which may be behind the answer."""
    last = "session.managed_settings_resolved"
    await until(lambda: all(last in types(recorder.events(link=link)) for link in links))


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


# Attaching and detaching.


async def test_a_resume_replays_nothing_and_is_told_to_all(direct: Endpoint) -> None:
    async with two_links(direct) as (recorder, first, second):
        one = await first.create()
        await one.turn("of old")
        recorder.messages.clear()
        await attach(second, one.id)
        told = ["session.resume", "session.managed_settings_resolved"]
        await all_told(recorder, 0, 1)
        await settle(first, second)
        assert types(recorder.events(link=0)) == told
        assert types(recorder.events(link=1)) == told
        # It is part of the history, and each further one is as well.
        await attach(second, one.id)
        assert types_of(await one.session.get_events()).count("session.resume") == 2


async def test_a_resume_with_disable_resume_is_told_to_nobody(direct: Endpoint) -> None:
    async with two_links(direct) as (recorder, first, second):
        one = await first.create()
        await one.turn("before")
        history = types_of(await one.session.get_events())
        recorder.messages.clear()
        await attach(second, one.id, disableResume=True)
        await settle(first, second)
        assert recorder.events() == []
        assert types_of(await one.session.get_events()) == history
        # It is attached all the same.
        await one.turn("after")
        await settle(second)
        assert types(recorder.events(link=1)) == types(recorder.events(link=0))


async def test_a_session_without_a_turn_is_attached_to_as_well(direct: Endpoint) -> None:
    async with two_links(direct) as (recorder, first, second):
        one = await first.create()
        await attach(second, one.id, disableResume=True)
        await first.vanish()
        await second.sdk._client.request("session.send", {"sessionId": one.id, "prompt": "carry on"})
        await idle(recorder, link=1)
        answers = [event["data"] for event in recorder.events(link=1) if event["type"] == "assistant.message"]
        assert answers[-1]["content"] == "echo: carry on"


@pytest.mark.parametrize(("method", "again"), [("session.detach", True), ("session.destroy", False)])
async def test_to_detach_concerns_the_own_connection_only(direct: Endpoint, method: str, again: bool) -> None:
    async with two_links(direct) as (recorder, first, second):
        one = await first.create()
        recorder.messages.clear()
        await attach(second, one.id)
        await all_told(recorder, 0, 1)
        recorder.messages.clear()
        assert await second.sdk._client.request(method, {"sessionId": one.id}) == {"success": True}
        # It is not attached any more.
        assert await second.sdk._client.request(method, {"sessionId": one.id}) == {"success": again}
        assert await one.turn("still here") == "echo: still here"
        await settle(second)
        assert recorder.events(link=1) == []
        # The life of sessions is told to every connection, attached or not.
        assert {found.method for found in recorder.notifications(link=1)} == {"session.lifecycle"}


async def test_the_last_to_detach_is_told_of_the_end_before_the_answer(direct: Endpoint) -> None:
    async with two_links(direct) as (recorder, first, _):
        one = await first.create()
        await all_told(recorder, 0)
        recorder.messages.clear()
        await one.session.disconnect()
        down = [found for found in recorder.messages if not found.up and found.method != "session.lifecycle"]
        assert [found.params["event"]["type"] if found.method else "answer" for found in down] == [
            "session.shutdown",
            "answer",
        ]


async def test_a_session_with_a_name_needs_no_turn_to_be_resumed(direct: Endpoint) -> None:
    async with connected(direct) as client:
        named, nameless = await client.create(name="Named"), await client.create()
        await named.session.disconnect()
        await nameless.session.disconnect()
        await client.resume(named.id)
        with pytest.raises(JsonRpcError, match="Session not found"):
            await client.resume(nameless.id)


# What the CLI asks of connections.


async def test_requests_of_the_cli_are_numbered_for_each_connection(direct: Endpoint) -> None:
    async def answer(_: Any, __: Any) -> Any:
        return {"answer": "yes", "wasFreeform": True}

    async with two_links(direct) as (recorder, first, second):
        for client in (first, second):
            chat = await client.create(on_user_input_request=answer)
            await chat.turn('[[tool: ask_user {"question": "Sure?"}]]')
        asked = [
            (found.link, found.message["id"]) for found in recorder.messages if found.method == "userInput.request"
        ]
        assert asked == [(0, 1), (1, 1)]


async def test_what_is_asked_at_the_same_time_is_taken_up_in_any_order(direct: Endpoint) -> None:
    """About two of three times, otherwise than it came."""
    sent = ["one", "two", "three"]

    async def taken_up(client: Client, *, at_once: bool) -> list[str]:
        one, found = await client.create(), list[str]()
        one.session.on(lambda event: found.append(event.data.content) if event.type.value == "user.message" else None)
        asking = []
        for text in sent:
            params = {"sessionId": one.id, "prompt": text}
            asking.append(asyncio.ensure_future(client.sdk._client.request("session.send", params)))
            if not at_once:
                await asking[-1]
        await asyncio.gather(*asking)
        await until(lambda: len(found) == len(sent))
        return found

    async with connected(direct) as client, asyncio.timeout(120):
        assert all([await taken_up(client, at_once=False) == sent for _ in range(10)])
        while await taken_up(client, at_once=True) == sent:
            pass


async def test_a_detach_that_comes_with_the_opening_may_be_taken_up_first(direct: Endpoint) -> None:
    """One or two of four times; the session then stays loaded."""
    async with connected(direct) as client, asyncio.timeout(120):
        one = await client.create()
        await one.turn("hello")
        request, params = client.sdk._client.request, {"sessionId": one.id}

        async def is_loaded() -> bool:
            try:
                await request("session.mode.get", params)
            except JsonRpcError:
                return False
            return True

        for _ in range(10):
            await request("session.resume", params)
            assert await is_loaded()
            await request("session.detach", params)
            assert not await is_loaded()
        while not await is_loaded():
            await asyncio.gather(request("session.resume", params), request("session.detach", params))


async def test_hooks_are_asked_one_connection_after_the_other(direct: Endpoint) -> None:
    order: list[str] = []

    def hook(name: str) -> Any:
        async def called(_: Any, __: Any) -> None:
            order.append(f"{name} asked")
            await asyncio.sleep(0)
            order.append(f"{name} answers")

        return called

    async with two_links(direct) as (_, first, second):
        one = await first.create(hooks={"on_user_prompt_submitted": hook("first")})
        await second.resume(one.id, hooks={"on_user_prompt_submitted": hook("second")})
        await one.turn("hooked")
        assert order == ["first asked", "first answers", "second asked", "second answers"]


async def test_a_question_goes_to_all_at_once_and_the_loser_is_not_told(direct: Endpoint) -> None:
    both_asked, late = asyncio.Event(), asyncio.Event()

    async def first_answer(_: Any, __: Any) -> Any:
        await both_asked.wait()
        return {"answer": "in time", "wasFreeform": True}

    async def late_answer(_: Any, __: Any) -> Any:
        both_asked.set()
        await late.wait()
        return {"answer": "too late", "wasFreeform": True}

    async with two_links(direct) as (recorder, first, second):
        one = await first.create(on_user_input_request=first_answer)
        await second.resume(one.id, on_user_input_request=late_answer)
        assert await one.turn('[[tool: ask_user {"question": "When?"}]]') == "tool said: User responded: in time"
        await settle(second)
        told = {str(found.method) for found in recorder.notifications(link=1)}
        assert told == {"session.event", "session.lifecycle"}, "no cancellation"
        late.set()
        assert await one.turn("on it goes") == "echo: on it goes"


async def test_questions_are_told_in_order_and_their_calls_come_in_any(direct: Endpoint) -> None:
    """About every second time, otherwise than they were asked, and sometimes before the event of their own question."""
    questions = ["one?", "two?", "three?"]
    calls = "".join(f"[[tool: ask_user {json.dumps({'question': question})}]]" for question in questions)
    all_asked, order = asyncio.Event(), list[str]()

    async def answer(asked: Any, _: Any) -> Any:
        order.append(asked["question"])
        if len(order) == len(questions):
            all_asked.set()
        await all_asked.wait()
        return {"answer": "yes", "wasFreeform": True}

    async with two_links(direct) as (recorder, first, _), asyncio.timeout(120):
        one = await first.create(on_user_input_request=answer)
        while order in ([], questions):
            all_asked.clear()
            order.clear()
            recorder.messages.clear()
            await one.turn(calls)
            asked = [event for event in recorder.events(link=0) if event["type"] == "user_input.requested"]
            assert [event["data"]["question"] for event in asked] == questions
            assert not any("requestId" in found.params for found in recorder.requests(up=False))


async def test_events_of_the_host_go_to_attached_connections(direct: Endpoint) -> None:
    agent = {"name": "helper", "description": "Helps", "prompt": "You help.", "infer": True}
    task = json.dumps({"agent_type": "helper", "name": "t", "description": "d", "prompt": "a secret [[say: done]]"})
    async with two_links(direct) as (recorder, first, second):
        one = await first.create(custom_agents=[agent], available_tools=[*TOOLS, "builtin:task"])
        assert await one.turn(f"[[tool: task {task}]]") == "tool said: done"
        await settle(second)
        told = [found for found in recorder.notifications() if found.method == "host.event"]
        assert {found.link for found in told} == {0}
        # They name the session elsewhere than all other messages, and have the prompt in them.
        assert {found.params.get("sessionId") for found in told} == {None}
        assert {found.params["scope"]["sessionId"] for found in told} == {one.id}
        assert "a secret" in json.dumps([found.params for found in told])


# Calls that nobody answers.


async def test_a_tool_whose_owner_vanishes_is_waited_for_until_somebody_answers(direct: Endpoint) -> None:
    async with two_links(direct) as (_, first, second):
        one, request = await with_pending_call(first)
        two = await second.resume(one.id)
        await first.vanish()
        await two.until("session.tools_updated")
        pending = await two.session.rpc.tools.list_pending_requests()
        assert [found.request_id for found in pending.items] == [request]
        answer = HandlePendingToolCallRequest(request_id=request, error="its owner has gone")
        assert (await two.session.rpc.tools.handle_pending_tool_call(answer)).success is True
        await two.until("session.idle")
        assert "Tool execution failed" in two.answer
        # The first answer counts.
        assert (await two.session.rpc.tools.handle_pending_tool_call(answer)).success is False


async def test_a_tool_is_called_whose_owner_has_left_before_it_was_permitted(direct: Endpoint) -> None:
    async def wait(_: Any, __: Any) -> Any:
        await asyncio.Event().wait()

    async with two_links(direct) as (_, first, second):
        one = await first.create(tools=[custom_tool("look")], on_permission_request=wait)
        two = await second.resume(one.id)
        await one.send(CALL)
        permission = await two.until("permission.requested")
        await one.session.disconnect()
        answer = {"sessionId": one.id, "requestId": permission.request_id, "result": {"kind": "approve-once"}}
        await second.sdk._client.request("session.permissions.handlePendingPermissionRequest", answer)
        call = await two.until("external_tool.requested")
        failed = HandlePendingToolCallRequest(request_id=call.request_id, error="its owner has gone")
        assert (await two.session.rpc.tools.handle_pending_tool_call(failed)).success is True
        await two.until("session.idle")


@pytest.mark.parametrize("continued", [True, False])
async def test_a_pending_call_and_a_session_that_is_unloaded(direct: Endpoint, continued: bool) -> None:
    async with two_links(direct) as (_, first, second):
        one, request = await with_pending_call(first)
        await first.vanish()
        await unloaded(second, one.id)
        two = await second.resume(one.id, tools=[free_tool()], continue_pending_work=continued)
        pending = await two.session.rpc.tools.list_pending_requests()
        assert [found.request_id for found in pending.items] == ([request] if continued else [])
        # It is not announced anew: whoever answers must know it from before, or from this list.
        assert two.data("external_tool.requested") == []
        answer = HandlePendingToolCallRequest(request_id=request, result="late but welcome")
        assert (await two.session.rpc.tools.handle_pending_tool_call(answer)).success is continued
        if continued:
            await two.until("session.idle")
            assert two.answer == "tool said: late but welcome"
        else:
            assert await two.prompts_seen() == [CALL]


# Where the files are.


async def test_what_is_lost_when_the_files_are_elsewhere(
    cli: Path, model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with (
        stored_endpoint(tmp_path_factory.mktemp("stored"), cli, model) as stored,
        connected(stored) as client,
    ):
        chat = await client.create(name="Named")
        assert str(chat.session.workspace_path) == "/state"
        await chat.turn("hello")
        assert await client.sdk.list_sessions() == []
        assert await client.sdk.get_session_metadata(chat.id) is None
        assert await client.sdk.get_last_session_id() is None
        with pytest.raises(JsonRpcError, match=r"Failed to lock workspace metadata at .*/\.workspace-fork\.lock"):
            await client.sdk.rpc.sessions.fork(SessionsForkRequest(session_id=chat.id))
        assert (await chat.session.rpc.history.compact()).success is True
        await chat.session.disconnect()
        with pytest.raises(RuntimeError, match="Session file not found"):
            await client.sdk.delete_session(chat.id)
        assert len(await (await client.resume(chat.id)).prompts_seen()) == 1


# Helpers.


def free_tool(handler: Any = None) -> Any:
    return custom_tool("look", handler, skip_permission=True)


async def with_pending_call(client: Client) -> tuple[Chat, str]:
    """A session in which a tool of this client has been called and does not answer; and the id of that request."""
    asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def hang(invocation: ToolInvocation) -> ToolResult:
        asked.set_result(str(invocation.request_id))
        await asyncio.Event().wait()
        raise AssertionError

    chat = await client.create(tools=[free_tool(hang)])
    await chat.send(CALL)
    async with asyncio.timeout(20):
        return chat, await asked


async def unloaded(client: Client, session_id: str) -> None:
    """Wait until the CLI has it no more. Nothing tells."""
    async with asyncio.timeout(20):
        while True:
            try:
                await client.sdk._client.request("session.mode.get", {"sessionId": session_id})
            except JsonRpcError as error:
                assert error.message.endswith(f"Session not found for sessionId: {session_id}")  # noqa: PT017 - polls
                return
            await asyncio.sleep(0.01)


async def idle(recorder: Recorder, link: int) -> None:
    async with asyncio.timeout(20):
        while "session.idle" not in types(recorder.events(link=link)):
            await asyncio.sleep(0.002)


def types_of(events: list[Any]) -> list[str]:
    return [event.type.value for event in events]
