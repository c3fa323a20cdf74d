"""The scripted model as the real Copilot CLI uses it, through the official SDK.

What the CLI does with a model that fails is measured here too, because the rest of the project relies on it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from copilot import CopilotClient, RuntimeConnection

from aerodrome.demo.model import ModelServer
from aerodrome.runtime.binary import resolve

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer.in_thread() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cli(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CopilotClient]:
    home = str(tmp_path_factory.mktemp("copilot"))
    env = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "COPILOT_OFFLINE": "true",
        "COPILOT_PROVIDER_BASE_URL": model.base_url,
        "COPILOT_MODEL": "gpt-4.1",
        "COPILOT_HOME": home,
        "COPILOT_CONNECTION_TOKEN": "secret",
        "COPILOT_DISABLE_KEYTAR": "1",
    }
    # Started here and not by the SDK, which leaves the pipes of its child open.
    command = [str(resolve().path), "--headless", "--no-auto-update", "--no-auto-login", "--host", "127.0.0.1"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=env, cwd=home)
    try:
        port = await _port(process)
        connection = RuntimeConnection.for_uri(f"127.0.0.1:{port}", connection_token="secret")
        async with CopilotClient(connection=connection, mode="empty", base_directory=home) as client:
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
        # Reads to the end of the output too, so that its pipe is closed before the loop is.
        await process.communicate()


async def _port(process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None
    async for line in process.stdout:
        if b"listening on port" in line:
            return int(line.split()[-1])
    raise AssertionError("the CLI ended before it listened")


@dataclass
class Chat:
    """One session of the CLI, and what it told in the running turn."""

    session: Any
    events: list[Any] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.session.on(lambda event: loop.call_soon_threadsafe(self._take, event))

    def _take(self, event: Any) -> None:
        self.events.append(event)
        self._news.set()

    async def send(self, prompt: str) -> None:
        self.events.clear()
        await self.session.send(prompt)

    async def until(self, kind: str) -> None:
        while not self.data(kind):
            self._news.clear()
            await self._news.wait()

    async def turn(self, prompt: str) -> str | None:
        """Send and wait for the end of the turn; the last answer, if there is one."""
        await self.send(prompt)
        await self.until("session.idle")
        answers = self.data("assistant.message")
        return answers[-1].content if answers else None

    def data(self, kind: str) -> list[Any]:
        return [event.data for event in self.events if event.type.value == kind]


@asynccontextmanager
async def opened(cli: CopilotClient, model: ModelServer, **options: Any) -> AsyncIterator[Chat]:
    session = await cli.create_session(
        model="gpt-4.1",
        provider={"type": "openai", "base_url": model.base_url, "api_key": "the-key"},
        available_tools=["builtin:ask_user"],
        on_user_input_request=lambda request, _: {"answer": request["choices"][0], "wasFreeform": False},
        **options,
    )
    model.forget()
    try:
        yield Chat(session)
    finally:
        model.fail_next(0)
        await session.disconnect()


async def test_a_turn(cli: CopilotClient, model: ModelServer) -> None:
    async with opened(cli, model) as chat:
        assert await chat.turn("good morning") == "echo: good morning"
        (request,) = model.requests
        assert (request.prompt, request.streams, request.tools) == ("good morning", False, ["ask_user"])
        assert request.headers["authorization"] == "Bearer the-key"
        (usage,) = chat.data("assistant.usage")
        assert usage.output_tokens == 3


async def test_a_streamed_turn_arrives_token_by_token(cli: CopilotClient, model: ModelServer) -> None:
    async with opened(cli, model, streaming=True) as chat:
        assert await chat.turn("[[say: a b c d e f]] [[rate: 100/s]]") == "a b c d e f"
        deltas = [data.delta_content for data in chat.data("assistant.message_delta")]
        assert deltas == ["a", " b", " c", " d", " e", " f"]
        assert model.requests[0].wants_usage


@pytest.mark.parametrize("streaming", [False, True])
async def test_tools_are_called_and_their_results_answered(
    cli: CopilotClient, model: ModelServer, streaming: bool
) -> None:
    async with opened(cli, model, streaming=streaming) as chat:
        answer = await chat.turn('[[tool: ask_user {"question": "which?", "choices": ["left", "right"]}]]')
        assert answer == "tool said: User selected: left"
        assert [request.asks for request in model.requests] == [True, False]


async def test_the_steps_of_a_turn(cli: CopilotClient, model: ModelServer) -> None:
    ask = '[[tool: ask_user {"question": "which?", "choices": ["left"]}]]'
    async with opened(cli, model) as chat:
        assert await chat.turn(f"{ask}{ask} [[then]] {ask} [[then]] [[say: enough]]") == "enough"
        assert len(chat.data("tool.execution_complete")) == 3
        assert len(model.requests) == 3


async def test_memory_is_the_history_that_the_cli_sends(cli: CopilotClient, model: ModelServer) -> None:
    async with opened(cli, model) as chat:
        assert await chat.turn("My name is Ada.") == "Nice to meet you, Ada."
        await chat.turn("Please remember the word plum.")
        assert await chat.turn("What is my name?") == "Your name is Ada."
        assert await chat.turn("[[recall]]") == "You told me: the word plum; your name is Ada"
    async with opened(cli, model) as chat:
        assert await chat.turn("What is my name?") == "I don't know your name yet."


async def test_a_gate_holds_a_turn_and_an_abort_reaches_the_model(cli: CopilotClient, model: ModelServer) -> None:
    async with opened(cli, model, streaming=True) as chat:
        await chat.send("[[gate-stream: aborted]] [[say: one two]]")
        await model.gate_reached("aborted")
        assert not chat.data("session.idle")
        await chat.session.abort()
        await model.gate_left("aborted")
        await chat.until("session.idle")
        assert chat.data("assistant.message") == []


async def test_a_request_refused_with_400_is_a_session_error_at_once(cli: CopilotClient, model: ModelServer) -> None:
    async with opened(cli, model) as chat:
        assert await chat.turn("[[fail: 400]]") is None
        (error,) = chat.data("session.error")
        assert (error.error_type, error.status_code) == ("query", 400)
        assert "scripted failure 400" in error.message
        assert model.asked("[[fail: 400]]") == 1
        # The prompt stays in the history, without an answer.
        assert await chat.turn("[[turns]]") == '["[[fail: 400]]", "[[turns]]"]'


@pytest.mark.parametrize(("status", "retry_after", "reason"), [(500, None, "api_error"), (429, 1, "rate_limit")])
async def test_the_cli_tries_again_after_a_failure_that_may_pass(
    cli: CopilotClient, model: ModelServer, status: int, retry_after: int | None, reason: str
) -> None:
    async with opened(cli, model) as chat:
        model.fail_next(1, status, retry_after)
        assert await chat.turn("hello") == "echo: hello"
        assert [data.reason for data in chat.data("assistant.turn_retry")] == [reason]
        assert model.asked("hello") == 2
        assert chat.data("session.error") == []


async def test_the_cli_starts_an_answer_again_that_was_cut(cli: CopilotClient, model: ModelServer) -> None:
    prompt = "[[gate: cut]] [[say: one two three four]] [[rate: 100/s]] [[cut: 2]]"
    async with opened(cli, model, streaming=True) as chat:
        model.open_gate("cut")
        await chat.send(prompt)
        await model.gate_reached("cut")
        model.close_gate("cut")
        # The second request waits here, so that one cut is all that happens.
        await model.gate_reached("cut")
        await chat.session.abort()
        await chat.until("session.idle")
        assert [data.delta_content for data in chat.data("assistant.message_delta")] == ["one", " two"]
        assert [data.reason for data in chat.data("assistant.turn_retry")] == ["streaming_error"]


async def test_the_cli_waits_for_a_model_that_comes_back(cli: CopilotClient, model: ModelServer) -> None:
    async with opened(cli, model) as chat:
        await model.down()
        try:
            await chat.send("anyone there?")
            await chat.until("assistant.turn_retry")
        finally:
            await model.up()
        await chat.until("session.idle")
        assert chat.data("assistant.message")[-1].content == "echo: anyone there?"
