"""Side by side: a holder that was paused past the end of its lock wakes up and finishes its turn.

First as GitHub's guide to scaling the SDK has it: two Copilot CLI servers on one directory, and a lock in Redis with a
time to live. Then as Aerodrome does it. `pytest tests/proof -s` prints both histories.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis

from aerodrome.app.stores import open_stores
from aerodrome.config import load_settings
from aerodrome.demo.model import ModelServer
from aerodrome.errors import Fenced
from aerodrome.model import SessionKey
from aerodrome.statestore.provider import EVENTS_PATH
from support.cli import OFFLINE, TOKEN, launch_spec, launcher
from support.histories import Shape
from support.host import User
from support.postgres import fresh_schema
from support.sdk_clients import Chat, Client, Endpoint, connected
from support.server import Server, aerodrome, new_key, serve, user_of, write_config
from support.stores import ValkeyServer, shared_postgres, valkey

pytestmark = [pytest.mark.cli, pytest.mark.timeout(180)]

SESSION = "team-chat"
FIRST = "[[say: answer 1]] one"
SECOND = "[[gate: held]] [[say: answer 2]] two"
THIRD = "[[say: answer 3]] three"


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process and all its children stand still."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    for one in family:
        one.suspend()
    try:
        yield
    finally:
        for one in reversed(family):
            one.resume()


# --- the guide's pattern ---


async def with_session_lock(redis: Redis, seconds: int, work: Callable[[], Awaitable[str]]) -> str | None:
    """The guide's lock: `SET NX EX`, and at the end compare and delete. ``None``: somebody else has it."""
    key, mine = f"session-lock:{SESSION}", uuid.uuid4().hex
    if not await redis.set(key, mine, nx=True, ex=seconds):
        return None
    try:
        return await work()
    finally:
        if await redis.get(key) == mine.encode():
            await redis.delete(key)


@asynccontextmanager
async def cli_on(shared: Path, directory: Path, cli: Path, model: ModelServer) -> AsyncIterator[tuple[Client, int]]:
    """A CLI server that keeps its sessions in a shared directory, and a client of it; with its process id."""
    spec = launch_spec(directory, cli, env={**OFFLINE, "COPILOT_PROVIDER_BASE_URL": model.base_url})
    copilot_home = spec.home / "copilot"
    copilot_home.mkdir(parents=True)
    (copilot_home / "session-state").symlink_to(shared, target_is_directory=True)
    process = await launcher().launch(spec, timeout=60)
    provider = {"type": "openai", "base_url": model.base_url, "api_key": "test-key"}
    host, port = process.address
    try:
        async with connected(Endpoint("direct", f"{host}:{port}", TOKEN, {"provider": provider})) as client:
            yield client, process.pid
    finally:
        process.terminate()
        await process.wait()
        await process.cleanup()


async def test_trap_13_a_lock_and_one_directory_fork_the_history(
    tmp_path: Path, cli: Path, model: ModelServer, valkey_server: ValkeyServer
) -> None:
    shared = tmp_path / "session-state"
    shared.mkdir()
    async with (
        Redis.from_url(valkey_server.url) as redis,
        cli_on(shared, tmp_path / "a", cli, model) as (a, pid_of_a),
        cli_on(shared, tmp_path / "b", cli, model) as (b, _),
    ):

        async def begin() -> str:
            return await (await a.create(session_id=SESSION)).turn(FIRST)

        async def turn(client: Client, prompt: str) -> str:
            chats[client] = await client.resume(SESSION)
            return await chats[client].turn(prompt)

        chats: dict[Client, Chat] = {}
        assert await with_session_lock(redis, 60, begin) == "answer 1"
        # A is in mid-turn, under the lock, and is paused for longer than the lock lives.
        of_a = asyncio.create_task(with_session_lock(redis, 1, lambda: turn(a, SECOND)))
        await model.gate_reached("held")
        with stopped(pid_of_a):
            while (answer := await with_session_lock(redis, 60, lambda: turn(b, THIRD))) is None:
                await asyncio.sleep(0.05)
            assert answer == "answer 3"
        model.open_gate("held")
        assert await of_a == "answer 2"
        shape = Shape((shared / SESSION / "events.jsonl").read_text())
        print(f"\nThe guide's pattern: both turns were told as done, and the history has forked.\n{shape}")
        # Each of the two goes on from its own past: to either, the other's turn never was.
        assert await chats[a].prompts_seen() == [FIRST, SECOND]
        assert await chats[b].prompts_seen() == [FIRST, THIRD]
    assert shape.forks
    assert (shape.past(SECOND), shape.past(THIRD)) == ([FIRST, SECOND], [FIRST, THIRD])


# --- Aerodrome ---


@dataclass(frozen=True)
class SharedStores:
    """What two nodes share."""

    #: Settings, as TOML behind those of `write_config`.
    settings: str
    #: Make the coordination store forget whatever it may lose.
    empty: Callable[[Path], None]


def _empty_sqlite(directory: Path) -> None:
    with sqlite3.connect(directory / "data" / "coordination.sqlite3") as connection:
        connection.executescript("DELETE FROM node; DELETE FROM lease; UPDATE epoch_floor SET epoch = 0;")
    connection.close()


@pytest.fixture(params=["sqlite", "redis+postgresql"])
def stores(request: pytest.FixtureRequest) -> Iterator[SharedStores]:
    if request.param == "sqlite":
        yield SharedStores("", _empty_sqlite)
        return
    # One of its own, to be emptied.
    with valkey() as server:
        state = f'[state]\nurl = "{shared_postgres().url}"\ndatabase_schema = "{fresh_schema()}"'
        yield SharedStores(f'url = "{server.url}"\n{state}', lambda _: server.empty())


async def configure(directory: Path, model: ModelServer, stores: SharedStores) -> Path:
    config = write_config(directory, model.base_url, stores.settings)
    await aerodrome("migrate", "--config", str(config), json_output=False)
    return config


async def test_trap_13_two_nodes_keep_it_one_line(tmp_path: Path, model: ModelServer, stores: SharedStores) -> None:
    config = await configure(tmp_path, model, stores)
    key = await new_key(config)
    async with (
        serve(config) as a,
        # Nobody waits for the end of this one's leases, and it must not lose them when the machine is slow.
        serve(config, environment={"AERODROME_COORDINATION__TTL": "60s"}) as b,
        user_of(a, key) as on_a,
        user_of(b, key) as on_b,
    ):
        await on_a.open(SESSION)
        assert await on_a.text(SESSION, FIRST) == "answer 1"
        of_a = asyncio.create_task(on_a.http.post(f"/sessions/{SESSION}/messages", json={"prompt": SECOND}))
        await model.gate_reached("held")
        assert (await on_b.say(SESSION, THIRD, expect=409, on_busy="reject"))["code"] == "session_busy"
        runtimes = a.runtimes()
        await asyncio.to_thread(a.pause_between_writes)
        with stopped(a.process.pid):
            assert await insist(on_b, THIRD) == "answer 3"
            # A's runtime wakes up before A does: its answer is on the way to the store when A goes on.
            model.open_gate("held")
            for runtime in runtimes:
                runtime.resume()
            await model.gate_left("held")
        late = await of_a
        told = late.json()["code"], late.json()["turn"]["status"]
        signs = ("heartbeat.declared_dead", "session.write_failed")
        noticed = [(event["event"], event.get("code")) for event in logged(a) if event["event"] in signs]
        export = await aerodrome("sessions", "export", SESSION, "--tenant", "acme", "--config", str(config))
        shape = Shape(export["files"][EVENTS_PATH])
        print(f"\nAerodrome: A was told {told}; it noticed by {noticed}.\n{shape}")
        assert late.status_code == 503
        assert told == ("turn_interrupted", "interrupted")
        assert noticed
        assert (shape.forks, shape.breaks) == ([], [])
        # Each turn that was told as done, once, in order; of the interrupted one nothing.
        assert shape.prompts == [FIRST, THIRD]
        assert shape.answers == ["answer 1", "answer 3"]
        # What A still has in its hands opens nothing any more, whatever A believes.
        (epoch,) = [event["epoch"] for event in logged(a) if event["event"] == "session.awake"]
        async with open_stores(load_settings(config)) as opened:
            with pytest.raises(Fenced):
                await opened.files.append(SessionKey("acme", SESSION), epoch, EVENTS_PATH, "{}\n")
        # And the session goes on from where it stands.
        assert await on_b.prompts_seen(SESSION) == [FIRST, THIRD]


async def test_trap_08_the_store_refuses_a_holder_that_nobody_has_told(
    tmp_path: Path, model: ModelServer, stores: SharedStores
) -> None:
    """The coordination store has lost its memory, so that the session is free to take while A is in mid-turn, well, and
    a long way from its next heartbeat. Nothing but the epoch stands in its way."""
    config = await configure(tmp_path, model, stores)
    config.write_text(config.read_text().replace('"200ms"', '"100s"').replace('ttl = "2s"', 'ttl = "300s"'))
    key = await new_key(config)
    async with serve(config) as a, user_of(a, key) as on_a:
        await on_a.open(SESSION)
        assert await on_a.text(SESSION, FIRST) == "answer 1"
        of_a = asyncio.create_task(on_a.http.post(f"/sessions/{SESSION}/messages", json={"prompt": SECOND}))
        await model.gate_reached("held")
        stores.empty(tmp_path)
        async with serve(config) as b, user_of(b, key) as on_b:
            assert await on_b.text(SESSION, THIRD) == "answer 3"
            model.open_gate("held")
            late = await of_a
            export = await aerodrome("sessions", "export", SESSION, "--tenant", "acme", "--config", str(config))
            shape = Shape(export["files"][EVENTS_PATH])
            print(f"\nAerodrome, after its coordination store has forgotten everything:\n{shape}")
            assert late.json()["code"] == "turn_interrupted", late.text
            assert [event["code"] for event in logged(a) if event["event"] == "session.write_failed"] == ["fenced"]
            assert [event for event in logged(a) if event["event"] == "heartbeat.declared_dead"] == []
            of_both = [
                event["epoch"] for server in (a, b) for event in logged(server) if event["event"] == "session.awake"
            ]
            assert of_both[0] < of_both[1]
            assert (shape.forks, shape.breaks) == ([], [])
            assert shape.prompts == [FIRST, THIRD]
            assert await on_b.prompts_seen(SESSION) == [FIRST, THIRD]


async def insist(user: User, prompt: str) -> str:
    """The answer, as soon as nobody else holds the session."""
    while True:
        response = await user.http.post(f"/sessions/{SESSION}/messages", json={"prompt": prompt})
        if response.status_code != 409:
            assert response.status_code == 200, response.text
            return str(response.json()["message"]["content"])
        await asyncio.sleep(0.05)


def logged(server: Server) -> list[dict[str, Any]]:
    # The last one may be half written.
    return [json.loads(line) for line in server.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
