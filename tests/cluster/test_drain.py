"""A node that drains ends nothing of those who are connected to it for what another node runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.nodes import Nodes, eventually, nodes
from support.server import write_config

pytestmark = pytest.mark.cli

HELD = "[[gate: held]] [[say: finished]]"


@pytest.fixture
async def fleet(tmp_path: Path, model: ModelServer) -> AsyncIterator[Nodes]:
    async with nodes(write_config(tmp_path, model.base_url, "[runtime]\nwarm = 0\n"), "a", "b") as running:
        at_b = await running.user("b")
        for session in ("native", "http", "stream"):
            await at_b.open(session)
            await at_b.text(session, "hello")
        yield running


async def test_the_turns_of_other_nodes_are_waited_for(fleet: Nodes, model: ModelServer) -> None:
    client = await fleet.sdk("a")
    chat = await client.resume("native")
    await chat.send(HELD)
    at_a = await fleet.user("a")
    answer = asyncio.create_task(at_a.text("http", HELD))
    stream = asyncio.create_task(
        at_a.http.post("/sessions/stream/messages", json={"prompt": HELD}, headers={"Accept": "text/event-stream"})
    )
    await eventually(lambda: sum(HELD in str(request) for request in model.requests) >= 3)
    draining = fleet.servers["a"]
    draining.send_signal(signal.SIGTERM)
    await eventually(lambda: "node.draining" in draining.log.read_text())
    # What is new had better be asked of a node that stays.
    refused = await at_a.http.post("/sessions/http/messages", json={"prompt": "more"})
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    with pytest.raises(Exception, match="shutting down"):
        await chat.send("more")
    assert draining.process.returncode is None
    model.open_gate("held")
    await chat.until("session.idle")
    assert chat.answer == "finished"
    client.forget()
    assert await answer == "finished"
    assert '"content":"finished"' in (await stream).text.replace(" ", "")
    assert await asyncio.wait_for(draining.process.wait(), 20) == 0
    at_b = await fleet.user("b")
    for session in ("native", "http", "stream"):
        assert await at_b.prompts_seen(session) == ["hello", HELD]


async def test_no_longer_than_the_time_that_a_drain_may_take(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, "[runtime]\nwarm = 0\n")
    async with nodes(config, "b") as fleet:
        await fleet.start("a", {"AERODROME_SERVER__DRAIN_TIMEOUT": "1s"})
        at_b = await fleet.user("b")
        await at_b.open("s")
        await at_b.text("s", "hello")
        client = await fleet.sdk("a")
        await (await client.resume("s")).send(HELD)
        client.forget()
        await model.gate_reached("held")
        fleet.servers["a"].send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(fleet.servers["a"].process.wait(), 30) == 0
        model.open_gate("held")
        # The turn goes on without its client.
        assert await at_b.text("s", "and then?")
        assert await at_b.prompts_seen("s") == ["hello", HELD, "and then?"]
