"""Turns through the official Python SDK: what goes to the model, what comes back, and in which order."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from typing import Any

import pytest
from copilot._jsonrpc import JsonRpcError
from copilot.rpc import ModeSetRequest, SendRequest
from copilot.session_events import SessionMode
from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from aerodrome.demo.model import ModelServer
from support.recording import recording
from support.sdk_clients import MODEL, Endpoint, connected, gateway, requests_of, system_message

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize("mode", ["empty", "copilot-cli"])
async def test_a_turn(endpoint: Endpoint, model: ModelServer, mode: str) -> None:
    async with connected(endpoint, mode=mode) as client:
        chat = await client.create()
        message_id = await chat.send(f"good morning, {mode}")
        await chat.until("session.idle")
        (asked,), (answered,) = chat.data("user.message"), chat.data("assistant.message")
        assert (asked.content, answered.content) == (f"good morning, {mode}", f"echo: good morning, {mode}")
        assert asked.message_id == answered.originating_message_id == message_id
        (request,) = requests_of(model, f"good morning, {mode}")
        assert request.model == MODEL


async def test_the_conversation_goes_on(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn("remember the word plum")
        assert "plum" in await chat.turn("which word did I ask you to remember?")
        assert await chat.prompts_seen() == ["remember the word plum", "which word did I ask you to remember?"]


async def test_send_and_wait(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        answer = await chat.session.send_and_wait("to be waited for")
        assert answer.data.content == "echo: to be waited for"


async def test_a_prompt_is_answered_when_its_turn_is_over(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        request = SendRequest(prompt="[[gate: waited-for]] [[say: done]]", wait=True)
        sending = asyncio.ensure_future(chat.session.rpc.send(request))
        await model.gate_reached("waited-for")
        assert not sending.done()
        model.open_gate("waited-for")
        assert (await sending).message_id
        await chat.until("session.idle")
        assert chat.answer == "done"


async def test_an_answer_is_streamed_while_it_is_made(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as client:
        chat = await client.create(streaming=True)
        await chat.send("[[gate-stream: stream]] one two three four")
        # The model sends the other half only after this one has arrived.
        first = await chat.until("assistant.message_delta")
        assert first.delta_content
        model.open_gate("stream")
        await chat.until("session.idle")
        deltas = chat.data("assistant.message_delta")
        assert len(deltas) == 5
        assert "".join(delta.delta_content for delta in deltas) == chat.answer == "echo: one two three four"
        (message,) = chat.data("assistant.message")
        assert {delta.message_id for delta in deltas} == {message.message_id}


async def test_an_answer_comes_in_one_piece_without_streaming(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as client:
        chat = await client.create(streaming=False)
        assert await chat.turn("all at once") == "echo: all at once"
        assert chat.data("assistant.message_delta") == []
        assert not requests_of(model, "all at once")[0].streams


async def test_an_abort_in_mid_turn(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as client:
        chat = await client.create(streaming=True)
        await chat.send("[[gate-stream: aborted]] never to be finished")
        await model.gate_reached("aborted")
        await chat.session.abort()
        idle = await chat.until("session.idle")
        assert idle.aborted is True
        assert chat.data("abort")[0].reason.value == "user_initiated"
        assert chat.data("assistant.message") == []
        # The request to the model is given up, too.
        await model.gate_left("aborted")
        assert await chat.turn("and now?") == "echo: and now?"


async def test_an_abort_without_a_turn_is_harmless(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.session.abort()
        assert await chat.turn("still here") == "echo: still here"


async def test_steering_and_queueing(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        first = await chat.send("[[gate: busy]] the first")
        await model.gate_reached("busy")
        queued = await chat.session.send("queued behind", mode="enqueue")
        steered = await chat.session.send("steered into", mode="immediate")
        pending = await chat.session.rpc.queue.pending_items()
        assert [item.message_id for item in pending.items] == [queued]
        assert pending.steering_messages == ["steered into"]
        model.open_gate("busy")
        await chat.until("session.idle")
        # What was steered overtakes what was queued, and belongs to the turn that was running.
        asked = [(data.content, data.message_id) for data in chat.data("user.message")]
        assert asked == [("[[gate: busy]] the first", first), ("steered into", steered), ("queued behind", queued)]
        answered = [(data.content, data.originating_message_id) for data in chat.data("assistant.message")]
        assert answered == [("echo: the first", first), ("echo: steered into", first), ("echo: queued behind", queued)]
        assert len(chat.data("session.idle")) == 1


async def test_usage_is_told(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn("count me in")
        (usage,) = chat.data("assistant.usage")
        assert (usage.model, usage.output_tokens) == (MODEL, 4)
        assert usage.input_tokens > 100
        assert usage.duration is not None
        assert chat.data("session.usage_info")[-1].token_limit == 128_000


async def test_a_blob_is_sent_to_the_model(endpoint: Endpoint, model: ModelServer) -> None:
    blob = {"type": "blob", "mimeType": "text/plain", "displayName": "note.txt"}
    async with connected(endpoint) as client:
        chat = await client.create()
        content = base64.b64encode(b"the attached words").decode()
        answer = await chat.turn("look at this", attachments=[{**blob, "data": content}])
        assert "the attached words" in answer
        (message,) = chat.data("user.message")
        assert message.attachments[0].display_name == "note.txt"


async def test_headers_of_one_turn_reach_the_model(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        if gateway(endpoint):
            # They would go to the model together with the host's key.
            with pytest.raises(JsonRpcError, match="requestHeaders"):
                await chat.send("with a header", request_headers={"x-conformance": "yes"})
            return
        await chat.turn("with a header", request_headers={"x-conformance": "yes"})
        await chat.turn("without a header")
        assert requests_of(model, "with a header")[0].headers.get("x-conformance") == "yes"
        assert "x-conformance" not in requests_of(model, "without a header")[0].headers


async def test_a_response_schema_reaches_the_model(endpoint: Endpoint, model: ModelServer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn('[[say: {"a": "b"}]] structured', response_schema=schema)
        assert chat.answer == '{"a": "b"}'
        (request,) = requests_of(model, '[[say: {"a": "b"}]] structured')
        assert request.body["response_format"]["json_schema"]["schema"] == schema


async def test_what_is_shown_for_a_prompt_may_differ_from_what_is_sent(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        assert await chat.turn("the long prompt", display_prompt="the short one") == "echo: the long prompt"
        (message,) = chat.data("user.message")
        assert message.content == "the short one"


@pytest.mark.parametrize("mode", ["empty", "copilot-cli"])
@pytest.mark.parametrize(
    ("config", "there", "gone"),
    [
        ({"mode": "append", "content": "APPENDED"}, ["APPENDED", "# Tone and style"], []),
        ({"mode": "replace", "content": "REPLACED"}, ["REPLACED"], ["# Tone and style"]),
        (
            {
                "mode": "customize",
                "sections": {"tone": {"action": "replace", "content": "NEW-TONE"}},
                "content": "EXTRA",
            },
            ["NEW-TONE", "EXTRA"],
            ["# Tone and style"],
        ),
    ],
    ids=["append", "replace", "customize"],
)
async def test_the_system_message(
    endpoint: Endpoint, model: ModelServer, mode: str, config: dict[str, Any], there: list[str], gone: list[str]
) -> None:
    async with connected(endpoint, mode=mode) as client:
        chat = await client.create(system_message=config)
        prompt = f"system message: {mode} {config['mode']}"
        await chat.turn(prompt)
        sent = system_message(requests_of(model, prompt)[0])
        assert [text for text in there if text not in sent] == []
        assert [text for text in gone if text in sent] == []


async def test_the_system_message_is_transformed_by_the_client(endpoint: Endpoint, model: ModelServer) -> None:
    async def shout(content: str) -> str:
        return content.upper()

    async with connected(endpoint) as client:
        chat = await client.create(system_message={"mode": "customize", "sections": {"tone": {"action": shout}}})
        await chat.turn("transformed")
        sent = system_message(requests_of(model, "transformed")[0])
        assert "# TONE AND STYLE" in sent
        assert "# Tone and style" not in sent


async def test_the_model_is_switched(endpoint: Endpoint, model: ModelServer) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.turn("before the switch")
        await chat.session.set_model("gpt-4.1-mini")
        change = await chat.until("session.model_change")
        assert (change.previous_model, change.new_model) == (MODEL, "gpt-4.1-mini")
        await chat.turn("after the switch")
        assert requests_of(model, "before the switch")[0].model == MODEL
        assert requests_of(model, "after the switch")[0].model == "gpt-4.1-mini"
        assert (await chat.session.rpc.model.get_current()).model_id == "gpt-4.1-mini"


async def test_the_mode_is_switched(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        assert await chat.session.rpc.mode.get() is SessionMode.INTERACTIVE
        await chat.session.rpc.mode.set(ModeSetRequest(mode=SessionMode.PLAN))
        change = await chat.until("session.mode_changed")
        assert (change.previous_mode.value, change.new_mode.value) == ("interactive", "plan")
        assert await chat.session.rpc.mode.get() is SessionMode.PLAN
        await chat.turn("planned")
        assert chat.data("session.idle")[0].mode.value == "plan"


async def test_the_trace_context_of_the_caller_goes_along(endpoint: Endpoint) -> None:
    host, _, port = endpoint.address.rpartition(":")
    ids = SpanContext(trace_id=0xAF7651916CD43DD8448EB211C80319C, span_id=0xB7AD6B7169203331, is_remote=False)
    async with (
        recording(host, int(port)) as recorder,
        connected(replace(endpoint, address=recorder.address)) as client,
    ):
        token = context.attach(trace.set_span_in_context(NonRecordingSpan(ids)))
        try:
            chat = await client.create()
            assert await chat.turn("traced") == "echo: traced"
            await chat.session.disconnect()
            await client.resume(chat.id)
        finally:
            context.detach(token)
        sent = {e.method: e.params.get("traceparent") for e in recorder.requests(up=True)}
        traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
        assert {sent[method] for method in ("session.create", "session.send", "session.resume")} == {traceparent}


async def test_a_model_that_fails_is_an_error_of_the_session(endpoint: Endpoint) -> None:
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.send("[[fail: 400]] refused")
        error = await chat.until("session.error")
        assert "400" in error.message
        await chat.until("session.idle")
        assert await chat.turn("better") == "echo: better"
