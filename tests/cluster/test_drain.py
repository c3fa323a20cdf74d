"""A node that drains ends nothing of those who are connected to it for what another node runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.faults import wire
from support.nodes import Nodes, eventually, nodes
from support.server import write_config

pytestmark = pytest.mark.cli

HELD = "[[gate: held]] [[say: finished]]"


def config_of(directory: Path, model: ModelServer) -> Path:
    """Time enough for a slow machine: nobody is missed, and no turn is cut off. A prompt waits for a session of another
    node for a few seconds more than the time to live."""
    config = write_config(directory, model.base_url, "[runtime]\nwarm = 0\n", ttl="6s")
    config.write_text(config.read_text().replace('drain_timeout = "20s"', 'drain_timeout = "60s"'))
    return config


@pytest.fixture
async def fleet(tmp_path: Path, model: ModelServer) -> AsyncIterator[Nodes]:
    async with nodes(config_of(tmp_path, model), "a", "b") as running:
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
    assert await asyncio.wait_for(draining.process.wait(), 50) == 0
    at_b = await fleet.user("b")
    for session in ("native", "http", "stream"):
        assert await at_b.prompts_seen(session) == ["hello", HELD]


async def test_no_longer_than_the_time_that_a_drain_may_take(tmp_path: Path, model: ModelServer) -> None:
    config = config_of(tmp_path, model)
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


QUESTION = '[[tool: ask_user {"question": "Which colour?"}]][[then]][[gate: held]] [[say: finished]]'


async def test_others_go_on_with_a_session_that_a_draining_node_still_runs(fleet: Nodes, model: ModelServer) -> None:
    """They follow it, answer what it asks, and wait with their prompts until it is elsewhere."""
    at_a, at_b = await fleet.user("a"), await fleet.user("b")
    turn = asyncio.create_task(at_b.text("http", QUESTION))
    await eventually(lambda: any(QUESTION in str(request) for request in model.requests))
    draining = fleet.servers["b"]
    draining.send_signal(signal.SIGTERM)
    await eventually(lambda: "node.draining" in draining.log.read_text())
    async with at_a.events("http", after="~") as events:
        said: list[str] = []
        async for event in events:
            if event["event"] == "user_input.requested":
                request_id = event["data"]["data"]["requestId"]
                answered = await at_a.http.post(f"/sessions/http/requests/{request_id}", json={"answer": "blue"})
                assert answered.status_code == 204, answered.text
                await model.gate_reached("held")
                # It stays there for longer than a prompt waits.
                refused = await at_a.http.post("/sessions/http/messages", json={"prompt": "more"})
                assert (refused.status_code, refused.json()["code"]) == (409, "session_busy")
                assert int(refused.headers["Retry-After"]) >= 1
                later = asyncio.create_task(at_a.text("http", "[[say: later]]"))
                model.open_gate("held")
                assert await turn == "finished"
                assert await later == "later"
            if event["event"] in ("user.message", "assistant.message"):
                said.append(event["data"]["data"]["content"])
                if said[-1] == "later":
                    break
    assert [text for text in said if text] == ["hello", "echo: hello", QUESTION, "finished", "[[say: later]]", "later"]
    assert await asyncio.wait_for(draining.process.wait(), 50) == 0


async def test_a_turn_of_a_draining_node_is_aborted_from_another(fleet: Nodes, model: ModelServer) -> None:
    at_a, at_b = await fleet.user("a"), await fleet.user("b")
    turns = [asyncio.create_task(at_b.say(session, HELD)) for session in ("http", "native")]
    await eventually(lambda: sum(HELD in str(request) for request in model.requests) >= 2)
    draining = fleet.servers["b"]
    draining.send_signal(signal.SIGTERM)
    await eventually(lambda: "node.draining" in draining.log.read_text())
    assert (await at_a.http.post("/sessions/http/abort")).json() == {"aborted": True}
    client = await fleet.sdk("a")
    chat = await asyncio.wait_for(client.resume("native"), 20)
    await asyncio.wait_for(chat.session.abort(), 20)
    assert [(await turn)["turn"]["status"] for turn in turns] == ["aborted", "aborted"]
    assert await asyncio.wait_for(draining.process.wait(), 50) == 0
    assert await chat.turn("[[say: later]]") == "later"


async def test_a_client_is_attached_again_to_what_a_draining_node_still_runs(
    tmp_path: Path, model: ModelServer
) -> None:
    """The link between the two nodes is cut meanwhile."""
    config = config_of(tmp_path, model)
    async with wire() as between, nodes(config, "a") as fleet:
        b = await fleet.start("b", {"AERODROME_SERVER__ADVERTISE": between.address})
        host, _, port = b.gateway.rpartition(":")
        between.upstream = host, int(port)
        at_b = await fleet.user("b")
        await at_b.open("s")
        await at_b.text("s", "hello")
        client = await fleet.sdk("a")
        chat = await client.resume("s", on_user_input_request=lambda *_: {"answer": "blue", "wasFreeform": True})
        await chat.send(f"[[gate: first]]{QUESTION}")
        await model.gate_reached("first")
        b.send_signal(signal.SIGTERM)
        await eventually(lambda: "node.draining" in b.log.read_text())
        between.reset()
        await eventually(lambda: fleet.servers["a"].log.read_text().count("gateway.session_back") >= 1)
        model.open_gate("first")
        await model.gate_reached("held")
        model.open_gate("held")
        await chat.until("session.idle")
        assert chat.answer == "finished"
        told = [event.id for event in chat.events]
        assert len(told) == len(set(told))
        assert await asyncio.wait_for(b.process.wait(), 50) == 0
        assert await chat.turn("[[say: later]]") == "later"
