"""Nodes of the last release and of this one on the same data directory.

What holds: an old node goes on while a new one starts and brings the tables up to date; both serve; a session goes on
at either when it has left the other. What does not: a session that is loaded at one is busy for the other, because the
old release has no forwarding; and once a new node has been there, an old one does not start any more.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import aerodrome
from aerodrome.demo.model import ModelServer
from support.host import User
from support.nodes import eventually
from support.sdk_clients import requests_of
from support.selection import cases
from support.server import Server, new_key, serve, user_of, write_config

pytestmark = pytest.mark.cli

WHEEL = Path(__file__).with_name("aerodrome-0.1.0-py3-none-any.whl")
OLD_VERSION = "0.1.0"


@pytest.fixture(scope="module")
def old_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where its packages are, for PYTHONPATH; what it depends on is that of this environment."""
    directory = tmp_path_factory.mktemp("old-release")
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(directory)
    return directory


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


class Both:
    """An old node and new ones, and one user at each."""

    def __init__(self, config: Path, old_release: Path, stack: AsyncExitStack) -> None:
        self.config = config
        self.key = ""
        self._old_release = old_release
        self._stack = stack

    def environment(self, name: str) -> dict[str, str]:
        return {"AERODROME_SERVER__NODE_NAME": name}

    def environment_of_old(self, name: str) -> dict[str, str]:
        return {**self.environment(name), "PYTHONPATH": str(self._old_release)}

    async def old(self, name: str = "old") -> tuple[Server, User]:
        return await self._start(self.environment_of_old(name))

    async def new(self, name: str = "new") -> tuple[Server, User]:
        return await self._start(self.environment(name))

    def run_old(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "aerodrome", *arguments],
            env={**os.environ, **self.environment_of_old("other")},
            capture_output=True,
            text=True,
            timeout=60,
        )

    async def _start(self, environment: dict[str, str]) -> tuple[Server, User]:
        server = await self._stack.enter_async_context(serve(self.config, environment=environment))
        return server, await self._stack.enter_async_context(user_of(server, self.key))


@pytest.fixture
async def both(tmp_path: Path, model: ModelServer, old_release: Path) -> AsyncIterator[Both]:
    """Made by the old release: its tables, a key, no session."""
    extra = '[sessions]\nidle_timeout = "1s"\n[runtime]\nwarm = 1\n'
    config = write_config(tmp_path, model.base_url, extra, ttl="5s")
    async with AsyncExitStack() as stack:
        made = Both(config, old_release, stack)
        assert made.run_old("--version").stdout.startswith(f"aerodrome {OLD_VERSION} ")
        assert aerodrome.__version__ != OLD_VERSION
        created = made.run_old(
            "keys", "create", "--config", str(config), "--tenant", "acme", "--user", "alice", "--json"
        )
        assert created.returncode == 0, created.stderr
        made.key = str(json.loads(created.stdout)["key"])
        yield made


async def when_free(user: User, session: str, prompt: str) -> str:
    """The answer, as soon as the other release has left the session (`sessions.idle_timeout`) and this one takes it."""

    async def free() -> str | None:
        answer = await user.http.post(f"/sessions/{session}/messages", json={"prompt": prompt})
        if answer.status_code != 200:
            assert answer.json()["code"] == "session_busy", answer.text
            return None
        assert answer.json()["turn"]["status"] == "completed"
        return "=" + str(answer.json()["message"]["content"])

    return str(await eventually(free, 60))[1:]


async def seen(user: User, session: str) -> list[str]:
    """The prompts that the model is sent with the next one."""
    return list(json.loads(await when_free(user, session, "[[turns]]"))[:-1])


async def test_a_session_goes_on_at_either_release(both: Both, model: ModelServer) -> None:
    old, at_old = await both.old()
    await at_old.open("s", title="Invoices")
    assert await at_old.text("s", "[[say: one]]") == "one"
    # The new release starts beside it, and the old one goes on.
    _, at_new = await both.new()
    await at_old.open("t")
    assert await at_old.text("t", "[[say: beside]]") == "beside"
    said = ["[[say: one]]"]
    for number, user in enumerate((at_new, at_old, at_new, at_old)):
        prompt = f"[[say: {number}]]"
        assert await when_free(user, "s", prompt) == str(number)
        said.append(prompt)
    assert await at_old.history("s") == await at_new.history("s")
    assert await seen(at_new, "s") == said
    assert [len(requests_of(model, prompt)) for prompt in said] == [1] * len(said)
    # Each lists what both have made; a key of the one is good at the other.
    await at_new.open("u")
    for user in (at_old, at_new):
        listed = (await user.http.get("/sessions")).json()["sessions"]
        assert {session["id"] for session in listed} == {"s", "t", "u"}
        assert {session["title"] for session in listed if session["id"] == "s"} == {"Invoices"}
    bob = await new_key(both.config, "bob")
    async with user_of(old, bob) as at_old_too:
        assert (await at_old_too.http.get("/sessions")).json()["sessions"] == []
    old.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(old.process.wait(), 60) == 0
    assert (await at_new.http.delete("/sessions/t")).status_code == 204


async def test_a_session_that_is_loaded_at_one_is_busy_for_the_other_and_never_runs_twice(
    both: Both, model: ModelServer
) -> None:
    _, at_old = await both.old()
    _, at_new = await both.new()
    for session, here, there in (("s", at_old, at_new), ("t", at_new, at_old)):
        await here.open(session)
        held = asyncio.create_task(here.say(session, f"[[gate: {session}]] one"))
        await model.gate_reached(session)
        refused = await there.say(session, "two", on_busy="reject", expect=409)
        assert refused["code"] == "session_busy"
        assert refused["retryable"] is True
        model.open_gate(session)
        assert (await held)["turn"]["status"] == "completed"
        assert await seen(there, session) == [f"[[gate: {session}]] one"]


@pytest.mark.parametrize("paused", cases(["old", "new"], suite=["old"]))
async def test_epochs_fence_across_releases(both: Both, model: ModelServer, paused: str) -> None:
    """A node that was paused, and then woken, writes nothing into what the other has taken over."""
    (old, at_old), (new, at_new) = await both.old(), await both.new()
    server, user, other = (old, at_old, at_new) if paused == "old" else (new, at_new, at_old)
    await user.open("s")
    assert await user.text("s", "[[say: one]]") == "one"
    held = asyncio.create_task(user.http.post("/sessions/s/messages", json={"prompt": "[[gate: held]]"}))
    await model.gate_reached("held")
    await asyncio.to_thread(server.pause_between_writes)
    try:
        await eventually(lambda: taken_over(other), 60)
    finally:
        model.open_gate("held")
        server.send_signal(signal.SIGCONT)
    assert (await held).json().get("code") in ("turn_interrupted", "session_busy", "store_unavailable")
    assert await seen(other, "s") == ["[[say: one]]", "[[say: two]]"]
    assert await seen(user, "s") == ["[[say: one]]", "[[say: two]]", "[[turns]]"]


async def taken_over(other: User) -> bool:
    answer = await other.http.post(
        "/sessions/s/messages", json={"prompt": "[[say: two]]"}, headers={"Idempotency-Key": "two"}
    )
    if answer.status_code != 200:
        assert answer.json()["retryable"], answer.text
        return False
    return bool(answer.json()["turn"]["status"] == "completed")


async def test_the_old_release_does_not_start_again_and_says_why(both: Both) -> None:
    old, at_old = await both.old()
    await both.new()
    again = both.run_old("serve", "--config", str(both.config))
    assert again.returncode == 1
    assert "run a release at least as new as the one that wrote them" in again.stderr
    # The one that was there goes on, and so does what it does with its tables.
    await at_old.open("s")
    assert await at_old.text("s", "[[say: one]]") == "one"
    assert old.process.returncode is None
