"""`aerodrome serve` on a coordination store of a fleet that is killed and comes back empty under it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.postgres import server as postgresql
from support.server import Server, new_key, serve, user_of, write_config
from support.stores import valkey

pytestmark = pytest.mark.cli


def config_for(directory: Path, model: ModelServer, url: str) -> Path:
    config = write_config(directory, model.base_url)
    config.write_text(config.read_text().replace("[coordination]\n", f'[coordination]\nurl = "{url}"\n'))
    return config


async def reborn(server: Server) -> None:
    async with asyncio.timeout(60):
        while "heartbeat.declared_dead" not in server.log.read_text():
            await asyncio.sleep(0.05)


async def test_valkey_is_killed_and_comes_back_empty(tmp_path: Path, model: ModelServer) -> None:
    with valkey() as store:
        config = config_for(tmp_path, model, store.url)
        key = await new_key(config)
        async with serve(config) as server, user_of(server, key) as alice:
            await alice.open("s1")
            await alice.say("s1", "one")
            store.stop()
            await asyncio.to_thread(store.start)
            await reborn(server)
            await say_again(server, key, "two")
            assert await alice.prompts_seen("s1") == ["one", "two"]


async def test_postgresql_is_killed_and_started_again(tmp_path: Path, model: ModelServer) -> None:
    with postgresql() as store:
        config = config_for(tmp_path, model, store.url)
        key = await new_key(config)
        async with serve(config) as server, user_of(server, key) as alice:
            await alice.open("s1")
            await alice.say("s1", "one")
            store.stop(signal.SIGKILL)
            await asyncio.to_thread(store.start)
            await reborn(server)
            await say_again(server, key, "two")
            assert await alice.prompts_seen("s1") == ["one", "two"]


async def say_again(server: Server, key: str, prompt: str) -> None:
    """As a client that comes again when it is told to; the key of the prompt keeps it from being said twice."""
    async with user_of(server, key) as alice, asyncio.timeout(120):
        while True:
            answer = await alice.http.post(
                "/sessions/s1/messages", json={"prompt": prompt}, headers={"Idempotency-Key": prompt}
            )
            if answer.status_code == 200:
                return
            assert answer.json()["retryable"], answer.text
            await asyncio.sleep(0.1)
