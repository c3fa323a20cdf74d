"""The files of a real CLI in the real store: what its histories look like, and that it resumes what we have cut."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.errors import AerodromeError
from aerodrome.events import SessionEvent
from aerodrome.model import SessionKey
from aerodrome.policy.session_params import SAFE_OPTIONS, Credentials, session_params
from aerodrome.runtime.probe import ProbeModel
from aerodrome.runtime.supervisor import ManagedRuntime
from aerodrome.statestore.backends.sqlite import SqliteFileStore
from aerodrome.statestore.history import cut_unanswered, events_after, messages, tail
from aerodrome.statestore.provider import EVENTS_PATH, HOME_PATH, SessionFs
from support.cli import launcher, runtime_options
from support.databases import database

pytestmark = [pytest.mark.cli, pytest.mark.timeout(90)]

KEY = SessionKey("acme", "chat")


class Activation:
    """A session in a runtime, bound to the store."""

    def __init__(self, store: SqliteFileStore, runtime: ManagedRuntime, epoch: int, model_url: str) -> None:
        self.events: list[SessionEvent] = []
        self.failures: list[AerodromeError] = []
        self._runtime = runtime
        self._idle = asyncio.Event()
        self._files = SessionFs(store, KEY, epoch, home=str(runtime.copilot_home), on_failed_write=self.failures.append)
        provider = {"type": "openai", "baseUrl": model_url, "apiKey": "k"}
        self._params = session_params(
            KEY.id,
            model="gpt-4.1",
            system_message=None,
            tools=["task_complete"],
            working_directory=str(runtime.workspace),
            streaming=False,
            credentials=Credentials(provider=provider),
        )

    async def open(self, method: str) -> None:
        control = self._runtime.control
        control.bind(KEY.id, self)
        await control.request(method, self._params)
        await control.request("session.options.update", {"sessionId": KEY.id, **SAFE_OPTIONS})

    async def send(self, prompt: str) -> str:
        self._idle.clear()
        answer = await self._runtime.control.request("session.send", {"sessionId": KEY.id, "prompt": prompt})
        return str(answer["messageId"])

    async def take_turn(self, prompt: str) -> str:
        message_id = await self.send(prompt)
        async with asyncio.timeout(30):
            await self._idle.wait()
        return message_id

    def on_event(self, event: SessionEvent) -> None:
        self.events.append(event)
        if event.type == "session.idle":
            self._idle.set()

    def on_oversized(self, complaint: str) -> None:
        raise AssertionError(complaint)

    async def on_file_operation(self, operation: str, params: dict[str, Any]) -> Any:
        return await self._files.handle(operation, params)

    async def on_request(self, method: str, params: dict[str, Any]) -> Any:
        raise AssertionError(method)


async def test_a_real_history_is_read_cut_and_resumed(cli: Path, tmp_path: Path) -> None:
    probe = ProbeModel()
    await probe.start()
    options = runtime_options(tmp_path, cli)
    first, second = ManagedRuntime("rt-1", options), ManagedRuntime("rt-2", options)
    try:
        async with ModelServer() as model, database(tmp_path / "s.db") as db:
            store = SqliteFileStore(db)
            await store.open()
            await store.raise_epoch(KEY, 1)
            await asyncio.gather(first.start(launcher(), probe), second.start(launcher(), probe))
            activation = Activation(store, first, 1, model.base_url)
            await activation.open("session.create")
            before = await a_conversation(activation, store)
            await a_turn_that_is_lost(activation, store, model, first)
            lost = await store.read(KEY, EVENTS_PATH)
            assert lost.startswith(before)
            assert tail(lost).unanswered
            # A turn of ours ends with what stands behind it: nothing of the lost one is left.
            kept = cut_unanswered(lost)
            assert kept == before
            await store.raise_epoch(KEY, 2)
            await store.write(KEY, 2, EVENTS_PATH, kept)
            await resumed(Activation(store, second, 2, model.base_url), store)
            assert activation.failures == []
    finally:
        await asyncio.gather(first.stop(), second.stop())
        await probe.aclose()


async def a_conversation(activation: Activation, store: SqliteFileStore) -> str:
    """A plain turn, one with a strange prompt, one with a tool, one that fails; returns the history."""
    message_id = await activation.take_turn("hello")
    text = await store.read(KEY, EVENTS_PATH)
    assert tail(text).message_id == message_id
    answer = next(event for event in activation.events if event.type == "assistant.message").data
    assert tail(text).answer == {"id": answer["messageId"], "content": answer["content"]}
    assert [(message.role, message.id) for message in messages(text)] == [
        ("user", message_id),
        ("assistant", answer["messageId"]),
    ]
    # What was stored is what was told, but for the CLI's own accounts: an event stream can go on from either.
    told = {event.id for event in activation.events if not event.ephemeral}
    stored = events_after(text, activation.events[0].id)
    assert stored
    assert all(event.is_trace for event in stored if event.id not in told)
    strange = "[[say: understood]] \u2028 😀 half \ud83d a character \\u0000"
    await activation.take_turn(strange)
    await activation.take_turn('[[tool: task_complete {"summary": "done"}]] [[then]] [[say: after the tool]]')
    await activation.take_turn("[[fail: 400]]")
    text = await store.read(KEY, EVENTS_PATH)
    assert messages(text)[2].content == strange.replace("\ud83d", "\ufffd")
    assert messages(text)[3].content == "understood"
    assert (tail(text).ended, tail(text).answer) == (True, None)
    assert cut_unanswered(text) == text
    # What the CLI keeps at home has the same name for every runtime.
    homes = [name for name, _ in await store.listdir(KEY, HOME_PATH)]
    assert homes == ["session-state"]
    assert [name for name, _ in await store.listdir(KEY, "/")] == ["@home", "state"]
    return text


async def a_turn_that_is_lost(
    activation: Activation, store: SqliteFileStore, model: ModelServer, runtime: ManagedRuntime
) -> None:
    await activation.send("[[gate: held]] never answered")
    await model.gate_reached("held")
    async with asyncio.timeout(20):
        while not tail(await store.read(KEY, EVENTS_PATH)).unanswered:
            await asyncio.sleep(0.01)
    runtime.kill("for a test")
    await runtime.stop()


async def resumed(activation: Activation, store: SqliteFileStore) -> None:
    await activation.open("session.resume")
    await activation.take_turn("[[turns]]")
    seen = tail(await store.read(KEY, EVENTS_PATH)).answer
    assert seen is not None
    assert "hello" in seen["content"]
    assert "after the tool" in seen["content"]
    assert "never answered" not in seen["content"]
    assert activation.failures == []
