"""A node that stops while native clients are connected."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.misbehaving import RawClient, raw
from support.sdk_clients import Endpoint, connected
from support.server import new_key, serve, write_config
from support.waiting import until

pytestmark = pytest.mark.cli

#: No node dies here, and none must be held for dead because the machine is slow.
LASTING = {"AERODROME_COORDINATION__TTL": "60s"}


async def test_clients_are_let_go_one_by_one(tmp_path: Path) -> None:
    async with ModelServer() as model:
        config = write_config(tmp_path, model.base_url)
        key = await new_key(config)
        async with (
            serve(config, environment=LASTING) as server,
            connected(Endpoint("gateway", server.gateway, key)) as client,
        ):
            chat = await client.create()
            await chat.send("[[gate: held]] the last words")
            await model.gate_reached("held")
            async with raw(server.gateway, key) as idle:
                assert (await idle.request("ping"))["result"]["message"] == "pong"
                server.send_signal(signal.SIGTERM)
                async with asyncio.timeout(20):
                    with pytest.raises(ConnectionResetError):
                        await read_to_the_end(idle)
            # The turn of the other goes on.
            model.open_gate("held")
            await chat.until("session.idle")
            assert chat.answer == "echo: the last words"
            async with asyncio.timeout(30):
                assert await server.process.wait() == 0
            client.forget()


async def test_sigterm_lets_turns_end_and_closes_the_connections(tmp_path: Path) -> None:
    async with ModelServer() as model:
        config = write_config(tmp_path, model.base_url)
        key = await new_key(config)
        async with serve(config, environment=LASTING) as server:
            endpoint = Endpoint("gateway", server.gateway, key)
            async with connected(endpoint) as client, connected(endpoint) as idle:
                chat, other = await client.create(), await idle.create()
                await other.turn("one")
                await chat.send("[[gate: held]] the last words")
                await model.gate_reached("held")
                server.send_signal(signal.SIGTERM)
                await said(server.log, "draining")
                model.open_gate("held")
                await chat.until("session.idle")
                assert chat.answer == "echo: the last words"
                async with asyncio.timeout(30):
                    assert await server.process.wait() == 0
                for gone in (client, idle):
                    gone.forget()
        # Everything is there when it comes back.
        async with (
            serve(config, environment=LASTING) as server,
            connected(Endpoint("gateway", server.gateway, key)) as client,
        ):
            again = await client.resume(chat.id)
            assert await again.prompts_seen() == ["[[gate: held]] the last words"]


async def read_to_the_end(client: RawClient) -> None:
    while True:
        await client.receive()


async def said(log: Path, text: str) -> None:
    await until(lambda: text in log.read_text())
