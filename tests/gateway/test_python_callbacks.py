"""What the server asks of the client in mid-turn, through the official Python SDK: tools, permissions, input, hooks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from copilot import ToolInvocation, ToolResult
from copilot.generated.rpc import PermissionDecisionApproveOnce, PermissionDecisionReject
from copilot.rpc import ModeSetRequest
from copilot.session import PermissionNoResult
from copilot.session_events import SessionMode

from aerodrome.demo.model import ModelServer
from support.sdk_clients import (
    PATIENCE,
    TOOLS,
    Endpoint,
    connected,
    custom_tool,
    gateway,
    requests_of,
    system_message,
)

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]

CALL = '[[tool: look {"x": "there"}]]'


def free_tool(name: str = "look", handler: Any = None) -> Any:
    """A tool that runs without asking for permission."""
    return custom_tool(name, handler, skip_permission=True)


# Tools.


@pytest.mark.parametrize("mode", ["empty", "copilot-cli"])
async def test_a_tool_runs_in_the_client_and_its_result_reaches_the_model(
    endpoint: Endpoint, model: ModelServer, mode: str
) -> None:
    async with connected(endpoint, mode=mode) as client:
        chat = await client.create(tools=[free_tool()])
        assert await chat.turn(f"{CALL} {mode}") == "tool said: look got there"
        opening, closing = requests_of(model, f"{CALL} {mode}")
        assert "look" in opening.tools
        assert closing.messages[-1]["role"] == "tool"
        (asked,), (done,) = chat.data("external_tool.requested"), chat.data("external_tool.completed")
        assert asked.request_id == done.request_id
        (executed,) = chat.data("tool.execution_complete")
        assert (executed.success, executed.tool_call_id) == (True, asked.tool_call_id)


async def test_a_tool_is_told_who_calls_it(endpoint: Endpoint) -> None:
    calls: list[ToolInvocation] = []

    async def remember(invocation: ToolInvocation) -> ToolResult:
        calls.append(invocation)
        return ToolResult(text_result_for_llm="noted")

    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool(handler=remember)])
        await chat.turn(CALL)
        (call,) = calls
        assert (call.session_id, call.tool_name, call.arguments) == (chat.id, "look", {"x": "there"})


async def test_two_tools_are_called_in_one_step(endpoint: Endpoint) -> None:
    both = [asyncio.Event(), asyncio.Event()]

    def meeting(number: int) -> Any:
        async def handler(_: ToolInvocation) -> ToolResult:
            # Ends only when both run.
            both[number].set()
            await both[1 - number].wait()
            return ToolResult(text_result_for_llm=f"met {number}")

        return handler

    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool("left", meeting(0)), free_tool("right", meeting(1))])
        answer = await chat.turn('[[tool: left {"x": "1"}]] [[tool: right {"x": "2"}]]')
        assert answer == "tool said: met 0 | met 1"


async def test_a_failure_that_a_tool_reports_reaches_the_model(endpoint: Endpoint) -> None:
    async def fail(_: ToolInvocation) -> ToolResult:
        return ToolResult(text_result_for_llm="the disk is full", result_type="failure", error="ENOSPC")

    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool(handler=fail)])
        assert await chat.turn(CALL) == "tool said: the disk is full"
        assert chat.data("tool.execution_complete")[0].success is False


async def test_a_tool_that_raises_does_not_end_the_turn(endpoint: Endpoint) -> None:
    async def boom(_: ToolInvocation) -> ToolResult:
        raise RuntimeError("out of order")

    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool(handler=boom)])
        assert await chat.turn(CALL) == (
            'tool said: Failed to execute `look` tool with arguments: {"x":"there"} due to error: '
            "Error: Tool execution failed"
        )
        assert chat.data("tool.execution_complete")[0].success is False
        assert await chat.turn("go on") == "echo: go on"


async def test_tools_are_replaced_in_a_running_session(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool("look")])
        await chat.turn("with look")
        await chat.session.set_tools([free_tool("listen")])
        await chat.turn("with listen")
        assert "look" in requests_of(model, "with look")[0].tools
        after = requests_of(model, "with listen")[0].tools
        assert "listen" in after
        assert "look" not in after
        assert await chat.turn('[[tool: listen {"x": "now"}]]') == "tool said: listen got now"


async def test_a_turn_is_aborted_while_its_tool_runs(endpoint: Endpoint) -> None:
    running, ended = asyncio.Event(), asyncio.Event()

    async def hang(_: ToolInvocation) -> ToolResult:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool(handler=hang)])
        await chat.send(CALL)
        await running.wait()
        await chat.session.abort()
        assert (await chat.until("session.idle")).aborted is True
        # The SDK is told, and cancels the handler.
        await asyncio.wait_for(ended.wait(), PATIENCE)
        assert await chat.turn("go on") == "echo: go on"


# Permissions. A client's own tool asks for one unless it says otherwise, so that nothing touches the host.


async def test_a_permission_is_granted(endpoint: Endpoint) -> None:
    asked = []

    async def approve(request: Any, invocation: Any) -> Any:
        asked.append((request.kind, request.tool_name, request.args, invocation["session_id"]))
        return PermissionDecisionApproveOnce()

    async with connected(endpoint) as client:
        chat = await client.create(tools=[custom_tool("look")], on_permission_request=approve)
        assert await chat.turn(CALL) == "tool said: look got there"
        assert asked == [("custom-tool", "look", {"x": "there"}, chat.id)]
        (completed,) = chat.data("permission.completed")
        assert completed.result.kind == "approved"


async def test_a_permission_is_denied(endpoint: Endpoint) -> None:
    ran = []

    async def never(_: ToolInvocation) -> ToolResult:
        ran.append(True)
        return ToolResult(text_result_for_llm="it ran")

    async def deny(_: Any, __: Any) -> Any:
        return PermissionDecisionReject(feedback="not on a Friday")

    async with connected(endpoint) as client:
        chat = await client.create(tools=[custom_tool("look", never)], on_permission_request=deny)
        answer = await chat.turn(CALL)
        assert "not on a Friday" in answer
        assert ran == []
        (completed,) = chat.data("permission.completed")
        assert completed.result.kind == "denied-interactively-by-user"


async def test_a_permission_is_left_to_another_client(endpoint: Endpoint) -> None:
    async def pass_by(_: Any, __: Any) -> Any:
        return PermissionNoResult()

    async def approve(_: Any, __: Any) -> Any:
        return PermissionDecisionApproveOnce()

    async with connected(endpoint) as first, connected(endpoint) as second:
        chat = await first.create(tools=[custom_tool("look")], on_permission_request=pass_by)
        await second.resume(chat.id, on_permission_request=approve)
        assert await chat.turn(CALL) == "tool said: look got there"


# Questions.


async def test_a_question_to_the_user(endpoint: Endpoint) -> None:
    questions = []

    async def answer(request: Any, invocation: Any) -> Any:
        questions.append((request["question"], request["choices"], invocation["session_id"]))
        return {"answer": "blue", "wasFreeform": False}

    async with connected(endpoint) as client:
        chat = await client.create(on_user_input_request=answer)
        said = await chat.turn('[[tool: ask_user {"question": "Which colour?", "choices": ["red", "blue"]}]]')
        assert said == "tool said: User selected: blue"
        assert questions == [("Which colour?", ["red", "blue"], chat.id)]
        assert chat.data("user_input.completed")[0].answer == "blue"


async def test_without_a_handler_nobody_can_be_asked(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn("whom could you ask?")
        assert "ask_user" not in requests_of(model, "whom could you ask?")[0].tools


async def test_the_client_elicits(endpoint: Endpoint) -> None:
    forms = []

    async def fill_in(form: Any) -> Any:
        forms.append((form["session_id"], form["message"]))
        return {"action": "accept", "content": {"confirmed": True}}

    async with connected(endpoint) as client:
        chat = await client.create(on_elicitation_request=fill_in)
        assert chat.session.capabilities["ui"]["elicitation"] is True
        assert await chat.session.ui.confirm("Deploy?") is True
        assert forms == [(chat.id, "Deploy?")]


async def test_the_model_elicits(endpoint: Endpoint) -> None:
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}}
    forms = []

    async def fill_in(form: Any) -> Any:
        forms.append((form["message"], form["requestedSchema"]))
        return {"action": "accept", "content": {"colour": "red"}}

    async def unused(_: Any, __: Any) -> Any:
        raise AssertionError

    async with connected(endpoint) as client:
        chat = await client.create(
            ask_user_variant="elicitation", on_elicitation_request=fill_in, on_user_input_request=unused
        )
        arguments = json.dumps({"message": "Which?", "requestedSchema": schema})
        assert "red" in await chat.turn(f"[[tool: ask_user {arguments}]]")
        assert forms == [("Which?", schema)]


async def test_a_plan_is_approved(endpoint: Endpoint) -> None:
    plans = []

    async def approve(request: Any, _: Any) -> Any:
        plans.append(request["summary"])
        return {"approved": True, "selectedAction": "interactive"}

    async with connected(endpoint) as client:
        chat = await client.create(
            on_exit_plan_mode_request=approve, available_tools=[*TOOLS, "builtin:exit_plan_mode"]
        )
        await chat.session.rpc.mode.set(ModeSetRequest(mode=SessionMode.PLAN))
        await chat.turn('[[tool: exit_plan_mode {"summary": "first this, then that"}]]')
        assert plans == ["first this, then that"]
        assert await chat.session.rpc.mode.get() is SessionMode.INTERACTIVE


# Hooks.


async def test_hooks_see_a_turn_from_its_beginning_to_its_end(endpoint: Endpoint) -> None:
    seen: list[str] = []

    def hook(name: str) -> Any:
        async def called(given: Any, invocation: Any) -> None:
            assert given["sessionId"] == invocation["session_id"]
            seen.append(name)

        return called

    names = ("session_start", "user_prompt_submitted", "user_prompt_transformed", "pre_tool_use", "post_tool_use")
    async with connected(endpoint) as client:
        hooks = {f"on_{name}": hook(name) for name in (*names, "agent_stop", "session_end")}
        chat = await client.create(tools=[free_tool()], hooks=hooks)
        await chat.turn(CALL)
        assert seen == [*names, "agent_stop"]
        await chat.turn("again")
        assert seen[len(names) + 1 :] == ["user_prompt_submitted", "user_prompt_transformed", "agent_stop"]
        await chat.session.disconnect()
        # A session of a host does not end with its client.
        assert seen[-1] == ("agent_stop" if gateway(endpoint) else "session_end")


async def test_a_hook_denies_a_tool(endpoint: Endpoint) -> None:
    async def deny(given: Any, _: Any) -> Any:
        assert (given["toolName"], given["toolArgs"]) == ("look", {"x": "there"})
        return {"permissionDecision": "deny", "permissionDecisionReason": "not today"}

    async def never(_: ToolInvocation) -> ToolResult:
        raise AssertionError

    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool(handler=never)], hooks={"on_pre_tool_use": deny})
        assert "not today" in await chat.turn(CALL)
        assert chat.data("external_tool.requested") == []


async def test_hooks_change_what_a_tool_is_given_and_what_it_gives(endpoint: Endpoint) -> None:
    async def before(_: Any, __: Any) -> Any:
        return {"modifiedArgs": {"x": "elsewhere"}}

    async def after(given: Any, _: Any) -> Any:
        return {
            "modifiedResult": {**given["toolResult"], "textResultForLlm": given["toolResult"]["textResultForLlm"] + "!"}
        }

    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool()], hooks={"on_pre_tool_use": before, "on_post_tool_use": after})
        assert await chat.turn(CALL) == "tool said: look got elsewhere!"


async def test_a_hook_changes_the_prompt(endpoint: Endpoint) -> None:
    async def rewrite(given: Any, _: Any) -> Any:
        return {"modifiedPrompt": given["prompt"].replace("cats", "dogs")}

    async with connected(endpoint) as client:
        chat = await client.create(hooks={"on_user_prompt_submitted": rewrite})
        assert await chat.turn("about cats") == "echo: about dogs"


async def test_a_hook_that_raises_stops_nothing(endpoint: Endpoint) -> None:
    async def boom(_: Any, __: Any) -> Any:
        raise RuntimeError("the hook is broken")

    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool()], hooks={"on_pre_tool_use": boom, "on_post_tool_use": boom})
        assert await chat.turn(CALL) == "tool said: look got there"


async def test_a_hook_learns_of_a_tool_that_failed(endpoint: Endpoint) -> None:
    failures = []

    async def learn(given: Any, _: Any) -> None:
        failures.append((given["toolName"], given["error"]))

    async def fail(_: ToolInvocation) -> ToolResult:
        return ToolResult(text_result_for_llm="no", result_type="failure", error="broken")

    async with connected(endpoint) as client:
        chat = await client.create(tools=[free_tool(handler=fail)], hooks={"on_post_tool_use_failure": learn})
        await chat.turn(CALL)
        assert [name for name, _ in failures] == ["look"]


# Agents.


async def test_a_custom_agent_is_selected(endpoint: Endpoint, model: ModelServer) -> None:
    agent = {"name": "gardener", "description": "Gardens", "prompt": "You are a GARDENER.", "infer": True}
    async with connected(endpoint) as client:
        chat = await client.create(custom_agents=[agent], agent="gardener")
        assert [found.name for found in (await chat.session.rpc.agent.list()).agents] == ["gardener"]
        await chat.turn("as a gardener")
        await chat.session.rpc.agent.deselect()
        await chat.turn("as yourself")
        assert "GARDENER" in str(requests_of(model, "as a gardener")[0].messages)
        assert "GARDENER" not in system_message(requests_of(model, "as yourself")[0])


async def test_a_custom_agent_works_for_another(endpoint: Endpoint, model: ModelServer) -> None:
    agent = {"name": "gardener", "description": "Gardens", "prompt": "You are a GARDENER.", "infer": True}
    task = '{"agent_type": "gardener", "name": "dig", "description": "d", "prompt": "dig [[say: a hole]]"}'
    async with connected(endpoint) as client:
        chat = await client.create(custom_agents=[agent], available_tools=[*TOOLS, "builtin:task"])
        assert await chat.turn(f"[[tool: task {task}]]") == "tool said: a hole"
        assert "GARDENER" in str(requests_of(model, "dig [[say: a hole]]")[0].messages)
        (started,), (completed,) = chat.data("subagent.started"), chat.data("subagent.completed")
        assert started.agent_name == completed.agent_name == "gardener"
