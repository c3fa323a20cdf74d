"""A node that stops while native clients are connected."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.model import SessionKey
from support.host import LASTING as FOR_EVER
from support.host import host
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


async def test_a_client_that_is_slow_to_read_is_told_to_the_end_before_it_is_let_go(tmp_path: Path) -> None:
    """By its own connection to the runtime, which is not read while the client does not read: that its turn has ended
    the node knows by another."""
    async with (
        ModelServer() as model,
        host(tmp_path, model, coordination=FOR_EVER) as node,
        raw(node.gateway_address, await node.key()) as client,
    ):
        await client.request("session.create", {"sessionId": "s"})
        await client.request("session.send", {"sessionId": "s", "prompt": "[[gate: held]] the last words"})
        await model.gate_reached("held")
        (seen_here,) = node.node.gateway.clients
        seen_here.connection.pause_writing()
        model.open_gate("held")
        live = node.node.sessions.find_live(SessionKey("acme", "s"))
        assert live is not None
        await live.turns.quiet()
        draining = asyncio.create_task(node.node.drain())
        told: list[str] = []
        async with asyncio.timeout(20):
            while "session.idle" not in told:
                message = await client.receive()
                if message.get("method") == "session.event":
                    told.append(message["params"]["event"]["type"])
        assert "assistant.message" in told
        await draining


async def read_to_the_end(client: RawClient) -> None:
    while True:
        await client.receive()


async def said(log: Path, text: str) -> None:
    await until(lambda: text in log.read_text())
