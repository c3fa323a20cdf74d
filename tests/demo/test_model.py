"""The model server over real HTTP."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from aerodrome.demo.model import KEPT_REQUESTS, ModelServer, main

TOOL = '[[tool: ask_user {"question": "which of the two?"}]] [[tool: now]]'


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
async def http(model: ModelServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=model.base_url, timeout=60) as client:
        yield client


def body(prompt: str, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4.1", "messages": [{"role": "user", "content": prompt}], "stream": stream, **more}


async def ask(http: httpx.AsyncClient, prompt: str, **more: Any) -> httpx.Response:
    return await http.post("/chat/completions", json=body(prompt, **more))


async def content(http: httpx.AsyncClient, prompt: str) -> str:
    answer = await ask(http, prompt)
    assert answer.status_code == 200
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def chunks(text: str) -> list[dict[str, Any]]:
    frames = text.split("\n\n")
    assert frames.pop() == ""
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def deltas(text: str) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in chunks(text) if chunk["choices"]]


def streamed(data: bytes) -> str:
    """The text in the content frames of a stream that may have been cut."""
    frames = [frame for frame in data.decode().split("\n\n") if frame.startswith("data: {")]
    choices = [json.loads(frame.removeprefix("data: "))["choices"] for frame in frames]
    return "".join(choice[0]["delta"].get("content") or "" for choice in choices if choice)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# Answers


async def test_an_answer_has_the_shape_of_a_completion(http: httpx.AsyncClient) -> None:
    answer = (await ask(http, "hello there")).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "gpt-4.1"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "echo: hello there"}
    assert choice["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


async def test_a_stream_sends_role_tokens_reason_and_end(http: httpx.AsyncClient) -> None:
    answer = await ask(http, "hello there", stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    parsed = chunks(answer.text)
    assert {chunk["object"] for chunk in parsed} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in parsed}) == 1
    assert deltas(answer.text) == [
        {"role": "assistant", "content": ""},
        {"content": "echo:"},
        {"content": " hello"},
        {"content": " there"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in parsed] == [None, None, None, None, "stop"]


async def test_a_stream_carries_the_usage_when_asked_for(http: httpx.AsyncClient) -> None:
    answer = await ask(http, "hello there", stream=True, stream_options={"include_usage": True})
    last = chunks(answer.text)[-1]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


async def test_tool_calls(http: httpx.AsyncClient) -> None:
    (choice,) = (await ask(http, TOOL)).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    calls = choice["message"]["tool_calls"]
    assert [(call["type"], call["function"]["name"]) for call in calls] == [
        ("function", "ask_user"),
        ("function", "now"),
    ]
    assert json.loads(calls[0]["function"]["arguments"]) == {"question": "which of the two?"}


async def test_tool_calls_are_streamed_in_parts(http: httpx.AsyncClient) -> None:
    text = (await ask(http, TOOL, stream=True)).text
    parts = [call for delta in deltas(text) for call in delta.get("tool_calls", [])]
    first = [part for part in parts if part["index"] == 0]
    assert first[0]["function"] == {"name": "ask_user", "arguments": ""}
    assert len(first) > 2
    assert json.loads("".join(part["function"]["arguments"] for part in first)) == {"question": "which of the two?"}
    assert [part["id"] for part in parts if "id" in part] == ["call_1_0", "call_1_1"]
    assert chunks(text)[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_tokens(http: httpx.AsyncClient) -> None:
    answer = (await ask(http, "[[tokens: 300]]")).json()
    assert len(answer["choices"][0]["message"]["content"].split()) == 300
    assert answer["usage"]["completion_tokens"] == 300
    stream = await ask(http, "[[tokens: 3000]]", stream=True)
    assert len(deltas(stream.text)) == 3002


async def test_every_unicode_comes_back(http: httpx.AsyncClient) -> None:
    prompt = "\x00 \x7f é 漢 😀 \u202e \ufeff \u2028 e\u0301"
    assert await content(http, f"[[say:{prompt}]]") == prompt.strip()
    # A lone surrogate is legal in JSON and cannot be sent in UTF-8.
    raw = b'{"messages": [{"role": "user", "content": "a\\ud800b"}]}'
    answer = await http.post("/chat/completions", content=raw)
    assert answer.json()["choices"][0]["message"]["content"] == "echo: a\ud800b"


async def test_megabytes_of_prompt(http: httpx.AsyncClient, model: ModelServer) -> None:
    assert (await content(http, "x " * 2_500_000)).startswith("echo: x x x")
    assert len(model.requests[0].prompt) == 5_000_000


async def test_models(http: httpx.AsyncClient) -> None:
    assert [entry["id"] for entry in (await http.get("/models")).json()["data"]] == ["gpt-4.1"]


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "`messages`"),
        (b'{"messages": ["hello"]}', "`messages`"),
        (json.dumps(body("[[delay: soon]]")).encode(), "[[delay]]"),
    ],
)
async def test_wrong_requests_are_refused(http: httpx.AsyncClient, raw: bytes, why: str) -> None:
    answer = await http.post("/chat/completions", content=raw)
    assert answer.status_code == 400
    assert why in answer.json()["error"]["message"]


async def test_other_routes_are_not_found(http: httpx.AsyncClient) -> None:
    assert (await http.post("/responses", json={})).status_code == 404
    assert (await http.get("/chat/completions")).status_code == 404


# Time


async def test_delay_holds_the_first_byte(http: httpx.AsyncClient) -> None:
    start = time.monotonic()
    await ask(http, "[[delay: 100ms]]")
    assert time.monotonic() - start >= 0.1


@pytest.mark.parametrize("stream", [True, False])
async def test_rate_paces_a_stream_only(http: httpx.AsyncClient, stream: bool) -> None:
    # What is not streamed would take longer than anybody waits.
    tokens, rate = (40, 200) if stream else (1000, 1)
    start = time.monotonic()
    await ask(http, f"[[tokens: {tokens}]] [[rate: {rate}/s]]", stream=stream)
    if stream:
        assert time.monotonic() - start >= 0.2


async def test_defaults_hold_for_prompts_that_do_not_say_otherwise() -> None:
    async with ModelServer(delay=0.1, rate=100, tokens=10) as model, httpx.AsyncClient(base_url=model.base_url) as http:
        start = time.monotonic()
        slow = await ask(http, "hello", stream=True)
        assert time.monotonic() - start >= 0.2
        assert len(deltas(slow.text)) == 12
        assert await content(http, "[[tokens: 1]] [[delay: 0]] hello") == "echo:"


async def test_header_and_body_leave_in_one_segment(model: ModelServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", model.port)
    raw = json.dumps(body("hello", stream=True)).encode()
    # In two segments, as many clients send.
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(raw))
    await writer.drain()
    writer.write(raw)
    first = await reader.read(65536)
    assert first.startswith(b"HTTP/1.1 200")
    assert first.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    writer.close()
    await writer.wait_closed()


async def test_connections_are_kept_and_pipelined_requests_answered_in_turn(model: ModelServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", model.port)
    for text in ("[[delay: 20ms]] one", "two"):
        raw = json.dumps(body(text)).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(raw), raw))
    answers = b""
    while answers.count(b"echo:") < 2:
        answers += await reader.read(65536)
    assert answers.index(b"echo: one") < answers.index(b"echo: two")
    assert model.stats()["connections"] == 1
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_reads_slowly_holds_up_nobody_and_gets_everything(
    http: httpx.AsyncClient, model: ModelServer
) -> None:
    # With buffers this small they are full before the answer is written, so that the server has to wait.
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", model.port))
    reader, writer = await asyncio.open_connection(sock=client, limit=1024)
    raw = json.dumps(body("[[tokens: 20000]]", stream=True)).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.0\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(raw), raw))
    for _ in range(5):
        assert await content(http, "hello") == "echo: hello"
    answer = await reader.read()
    assert answer.count(b"\ndata: {") == 20002
    assert answer.endswith(b"data: [DONE]\n\n")
    writer.close()
    await writer.wait_closed()


async def test_bytes_that_are_not_http_end_the_connection(model: ModelServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", model.port)
    writer.write(b"\x00\x01\r\n\r\n")
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


# Failures


@pytest.mark.parametrize("stream", [True, False])
async def test_fail(http: httpx.AsyncClient, stream: bool) -> None:
    answer = await ask(http, "[[fail: 500]]", stream=stream)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    answer = await ask(http, "[[fail: 429 retry-after=7]]", stream=stream)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")


async def test_fail_next_fails_so_many_requests_whatever_they_ask(http: httpx.AsyncClient, model: ModelServer) -> None:
    model.fail_next(2, status=503, retry_after=1)
    statuses = [(await ask(http, "hello")).status_code for _ in range(3)]
    assert statuses == [503, 503, 200]
    model.fail_next(5)
    model.fail_next(0)
    assert (await ask(http, "hello")).status_code == 200


@pytest.mark.parametrize(
    ("directive", "expected"),
    [("[[cut]]", "echo: one"), ("[[cut: 1]]", "echo:"), ("[[cut: 99]]", "echo: one two three")],
)
async def test_cut_ends_a_stream_in_the_middle(http: httpx.AsyncClient, directive: str, expected: str) -> None:
    received = b""
    async with http.stream("POST", "/chat/completions", json=body(f"one two three{directive}", stream=True)) as answer:
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):  # noqa: PT012
            async for data in answer.aiter_raw():
                received += data
    assert streamed(received) == expected
    assert b"[DONE]" not in received


async def test_cut_ends_a_body_in_the_middle(http: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
        await ask(http, "[[cut]]")


@pytest.mark.parametrize("stream", [True, False])
async def test_cut_0_ends_the_connection_before_the_header(http: httpx.AsyncClient, stream: bool) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        await ask(http, "[[cut: 0]]", stream=stream)


@pytest.mark.parametrize("stream", [True, False])
async def test_garbage_is_not_json(http: httpx.AsyncClient, stream: bool) -> None:
    answer = await ask(http, "[[garbage]]", stream=stream)
    assert answer.status_code == 200
    with pytest.raises(ValueError):
        json.loads(answer.text.removeprefix("data: "))


async def test_hang_never_answers(http: httpx.AsyncClient, model: ModelServer) -> None:
    model.open_gate("arrived")
    asking = asyncio.create_task(ask(http, "[[gate: arrived]] [[hang]]"))
    await model.gate_left("arrived")
    await model.gate_reached("arrived")
    done, _ = await asyncio.wait([asking], timeout=0.05)
    assert not done
    await cancelled(asking)


async def test_down_refuses_and_drops_connections_and_up_serves_again(
    http: httpx.AsyncClient, model: ModelServer
) -> None:
    port = model.port
    held = asyncio.create_task(ask(http, "[[gate: g]]"))
    await model.gate_reached("g")
    await model.down()
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await held
    await model.gate_left("g")
    with pytest.raises(httpx.ConnectError):
        await ask(http, "hello")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    await model.up()
    assert await content(http, "hello") == "echo: hello"
    assert model.port == port


# Gates


@pytest.mark.parametrize("stream", [True, False])
async def test_a_gate_holds_the_whole_answer(http: httpx.AsyncClient, model: ModelServer, stream: bool) -> None:
    held = asyncio.create_task(ask(http, "[[gate: g]]", stream=stream))
    await model.gate_reached("g")
    assert not held.done()
    model.open_gate("g")
    assert (await held).status_code == 200
    assert (await ask(http, "[[gate: g]]", stream=stream)).status_code == 200


async def test_a_gate_in_the_stream_holds_its_second_half(http: httpx.AsyncClient, model: ModelServer) -> None:
    prompt = "[[gate-stream: g]] [[say: one two three four]]"
    received = b""
    async with http.stream("POST", "/chat/completions", json=body(prompt, stream=True)) as answer:
        async for data in answer.aiter_raw():
            received += data
            if streamed(received) == "one two":
                await model.gate_reached("g")
                model.open_gate("g")
    assert streamed(received) == "one two three four"


async def test_a_gate_in_the_body_holds_its_second_half(http: httpx.AsyncClient, model: ModelServer) -> None:
    received = b""
    async with http.stream("POST", "/chat/completions", json=body("[[gate-stream: g]]")) as answer:
        async for data in answer.aiter_raw():
            received += data
            await model.gate_reached("g")
            model.open_gate("g")
    assert json.loads(received)["object"] == "chat.completion"


async def test_a_client_that_goes_away_leaves_the_gate(http: httpx.AsyncClient, model: ModelServer) -> None:
    for times in (1, 2):
        held = asyncio.create_task(ask(http, "[[gate: g]]"))
        await model.gate_reached("g", times)
        await cancelled(held)
        await model.gate_left("g")
    model.open_gate("g")
    assert await content(http, "[[gate: g]] hello") == "echo: hello"


# What was asked


async def test_requests_are_kept_for_tests(http: httpx.AsyncClient, model: ModelServer) -> None:
    tools = [{"type": "function", "function": {"name": "ask_user"}}]
    await http.post("/chat/completions", json=body("hello", tools=tools), headers={"Authorization": "Bearer k"})
    (request,) = model.requests
    assert (request.prompt, request.prompts, request.model) == ("hello", ["hello"], "gpt-4.1")
    assert (request.tools, request.streams, request.asks) == (["ask_user"], False, True)
    assert request.headers["authorization"] == "Bearer k"
    model.forget()
    assert model.requests == []


async def test_kept_requests_are_bounded(http: httpx.AsyncClient, model: ModelServer) -> None:
    for index in range(KEPT_REQUESTS + 5):
        await ask(http, f"prompt {index}")
    assert [request.prompt for request in model.requests] == [f"prompt {index + 5}" for index in range(KEPT_REQUESTS)]
    assert model.stats()["requests"] == KEPT_REQUESTS + 5


async def test_prompts_are_counted_once_a_turn(http: httpx.AsyncClient, model: ModelServer) -> None:
    for _ in range(2):
        await ask(http, TOOL)
    results = [
        {"role": "user", "content": TOOL},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "noon"},
    ]
    answer = await http.post("/chat/completions", json={"messages": results})
    assert answer.json()["choices"][0]["message"]["content"] == "tool said: noon"
    assert (model.asked(TOOL), model.asked("other")) == (2, 0)
    stats = (await http.get(f"http://127.0.0.1:{model.port}/stats")).json()
    assert stats == {"requests": 3, "connections": 1, "prompts": {TOOL: 2}}


# Where it runs


async def test_in_a_thread_everything_works_from_another_loop() -> None:
    with ModelServer.in_thread(tokens=3) as model:
        async with httpx.AsyncClient(base_url=model.base_url) as http:
            assert await content(http, "hello") == "echo: hello w3"
            held = asyncio.create_task(ask(http, "[[gate: g]]"))
            await model.gate_reached("g")
            model.open_gate("g")
            assert (await held).status_code == 200
            await model.down()
            with pytest.raises(httpx.ConnectError):
                await ask(http, "hello")
            await model.up()
            assert model.asked("hello") == 1
            assert (await ask(http, "hello")).status_code == 200


async def test_leaving_drops_what_is_held() -> None:
    async with ModelServer() as model, httpx.AsyncClient(base_url=model.base_url) as http:
        held = asyncio.create_task(ask(http, "[[gate: never]]"))
        await model.gate_reached("never")
        await model.__aexit__()
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await held


def test_a_taken_port_is_an_error() -> None:
    with (
        ModelServer.in_thread() as model,
        pytest.raises(OSError, match="in use"),
        ModelServer.in_thread(port=model.port),
    ):
        pass


@pytest.mark.parametrize(
    ("port", "why"), [("taken", "Address already in use"), ("444271", "port must be 0-65535")], ids=["taken", "none"]
)
def test_where_it_cannot_listen_the_program_says_why(port: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        main(["--port", str(taken.getsockname()[1]) if port == "taken" else port])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.endswith("; choose another --host or --port\n")


def test_as_a_program() -> None:
    command = [sys.executable, "-m", "aerodrome.demo.model", "--port", "0", "--tokens", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("model listening on http://127.0.0.1:")
        answer = httpx.post(line.split()[-1] + "/chat/completions", json=body("good morning"), timeout=60)
        assert answer.json()["choices"][0]["message"]["content"] == "echo: good"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
