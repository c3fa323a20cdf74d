"""Nodes are killed and paused under their clients, who are connected to another node."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from copilot import ToolInvocation, ToolResult

from aerodrome.app.stores import open_stores
from aerodrome.config import load_settings
from aerodrome.demo.model import ModelServer
from aerodrome.model import SessionKey
from support.nodes import Nodes, eventually, nodes
from support.sdk_clients import custom_tool
from support.server import write_config

pytestmark = [pytest.mark.cli]


@pytest.fixture
async def fleet(tmp_path: Path, model: ModelServer) -> AsyncIterator[Nodes]:
    async with nodes(write_config(tmp_path, model.base_url, ttl="4s"), "a", "b") as running:
        yield running


async def test_a_client_of_one_node_survives_the_death_of_the_other(fleet: Nodes, model: ModelServer) -> None:
    """Between turns, then in mid-turn: its connection stays, its tools work, nothing is lost or told twice."""
    calls: list[str] = []

    async def look(invocation: ToolInvocation) -> ToolResult:
        calls.append("called")
        return ToolResult(text_result_for_llm="seen")

    at_b = await fleet.user("b")
    await at_b.open("s")
    assert await at_b.text("s", "[[say: one]]") == "one"
    client = await fleet.sdk("a")
    chat = await client.resume("s", tools=[custom_tool("look", look, skip_permission=True)])
    assert await chat.turn('[[tool: look {"x": "1"}]][[then]][[say: two]]') == "two"
    assert (await fleet.session("s"))["state"] != "hibernated"
    await fleet.kill("b")
    assert await chat.turn('[[tool: look {"x": "2"}]][[then]][[say: three]]') == "three"
    assert len(calls) == 2
    told = [event.id for event in chat.events]
    assert len(told) == len(set(told))
    assert [content for role, content in await (await fleet.user("a")).history("s") if role == "assistant"] == [
        "one",
        "two",
        "three",
    ]


async def test_a_turn_of_a_killed_node_is_reported_to_whoever_waits_for_it(fleet: Nodes, model: ModelServer) -> None:
    at_a, at_b = await fleet.user("a"), await fleet.user("b")
    await at_b.open("s")
    assert await at_b.text("s", "[[say: one]]") == "one"
    client = await fleet.sdk("a")
    chat = await client.resume("s")
    await chat.send("[[gate: never]]")
    await chat.until("assistant.turn_start")
    queued = asyncio.create_task(at_a.http.post("/sessions/s/messages", json={"prompt": "[[say: queued]]"}))
    await eventually(lambda: is_in_line(fleet.config, "[[say: queued]]"))
    assert not queued.done()
    await fleet.kill("b")
    error = await chat.until("session.error")
    assert error.error_type == "turn_interrupted"
    await chat.until("session.idle")
    answer = await queued
    assert answer.json()["code"] == "turn_interrupted", answer.text
    assert await chat.turn("[[say: two]]") == "two"
    assert await chat.prompts_seen() == ["[[say: one]]", "[[say: two]]"]


async def is_in_line(config: Path, prompt: str) -> bool:
    """Whether a node has taken it."""
    async with open_stores(load_settings(config)) as stores:
        return any(turn.prompt == prompt for turn in await stores.ledger.unfinished(SessionKey("acme", "s")))


async def test_a_paused_node_does_not_write_when_it_wakes(fleet: Nodes, model: ModelServer) -> None:
    at_a, at_b = await fleet.user("a"), await fleet.user("b")
    await at_b.open("s")
    assert await at_b.text("s", "[[say: one]]") == "one"
    held = asyncio.create_task(at_b.http.post("/sessions/s/messages", json={"prompt": "[[gate: held]]"}))
    await model.gate_reached("held")
    paused = fleet.servers["b"]
    await asyncio.to_thread(paused.pause_between_writes)
    try:
        assert await at_a.text("s", "[[say: two]]") == "two"
    finally:
        model.open_gate("held")
        paused.send_signal(signal.SIGCONT)
    assert (await held).json()["code"] in ("turn_interrupted", "session_busy")
    history = await at_a.history("s")
    assert [content for role, content in history if role == "user"].count("[[say: two]]") == 1
    assert await at_a.prompts_seen("s") == ["[[say: one]]", "[[say: two]]"]
    assert await at_b.prompts_seen("s") == ["[[say: one]]", "[[say: two]]", "[[turns]]"]
