"""What an unmodified SDK client sees while the runtime of its session is recycled: nothing."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.runtime.supervisor import ManagedRuntime
from support.host import LASTING, host, until
from support.sdk_clients import Endpoint, connected, custom_tool

pytestmark = pytest.mark.cli

CALL = '[[tool: look {"x": "there"}]]'


def has_one(runtime: ManagedRuntime) -> bool:
    return runtime.reserved == 1


async def test_a_client_stays_connected_with_its_tools_while_its_runtime_is_recycled(tmp_path: Path) -> None:
    async with ModelServer() as model, host(tmp_path, model, coordination=LASTING, runtime={"warm": 1}) as running:
        endpoint = Endpoint("gateway", running.gateway_address, await running.key())
        async with connected(endpoint) as client, connected(endpoint) as neighbour:
            chat = await client.create(tools=[custom_tool("look", skip_permission=True)], streaming=True)
            other = await neighbour.create(tools=[custom_tool("look", skip_permission=True)])
            seen: list[str] = []
            chat.session.on(lambda event: seen.append(event.type.value))
            await chat.turn("My name is Ada")
            await other.turn("My name is Eve")
            for number in range(2):
                worn = running.runtime()
                gate = f"held-{number}"
                waiting = asyncio.create_task(chat.session.send_and_wait(f"[[gate: {gate}]] [[say: kept]]", timeout=60))
                await model.gate_reached(gate)
                recycling = asyncio.create_task(running.node.pool.recycle(worn.id, "turns"))
                await until(partial(has_one, worn))  # the neighbour's has moved
                assert await other.turn(CALL) == "tool said: look got there"
                assert not recycling.done()
                model.open_gate(gate)
                assert (await waiting).data.content == "kept"
                # Sent at once, it meets the session on its way.
                assert "Ada" in await chat.turn("What is my name?")
                await recycling
                assert running.runtime() is not worn
                assert await chat.turn(CALL) == "tool said: look got there"
            assert not {"session.error", "session.shutdown", "session.resume"} & set(seen)
