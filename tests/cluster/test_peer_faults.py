"""The network between two nodes is slow, is cut, and swallows what it is given, while both reach their stores.

The users are at node `a`; node `b`, which runs the session, is reached over a wire that is tampered with.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from aerodrome.demo.model import ModelServer
from support.faults import Wire, wire
from support.host import User, sse_events
from support.nodes import Nodes, eventually, nodes
from support.sdk_clients import requests_of
from support.selection import cases
from support.server import write_config

pytestmark = pytest.mark.cli

FAULTS = ["slow", "cut", "half-open"]
QUESTION = '[[gate: held]][[tool: ask_user {"question": "Which colour?"}]][[then]]two'


class Apart:
    def __init__(self, fleet: Nodes, between: Wire) -> None:
        self.fleet = fleet
        #: Between node `a` and node `b`.
        self.between = between

    def fault(self, kind: str) -> None:
        if kind == "slow":
            self.between.slow(0.2)
        elif kind == "cut":
            self.between.cut()
        else:
            self.between.swallow()


@pytest.fixture
async def apart(tmp_path: Path, model: ModelServer) -> AsyncIterator[Apart]:
    async with AsyncExitStack() as stack:
        between = await stack.enter_async_context(wire())
        fleet = await stack.enter_async_context(nodes(write_config(tmp_path, model.base_url, ttl="5s"), "a"))
        b = await fleet.start("b", {"AERODROME_SERVER__ADVERTISE": between.address})
        host, _, port = b.gateway.rpartition(":")
        between.upstream = host, int(port)
        yield Apart(fleet, between)


async def begun_at_b(apart: Apart) -> None:
    at_b = await apart.fleet.user("b")
    await at_b.open("s")
    assert await at_b.text("s", "[[say: one]]") == "one"


@pytest.mark.parametrize("fault", cases(FAULTS, suite=["half-open"]))
async def test_a_turn_and_a_reader_survive(apart: Apart, model: ModelServer, fault: str) -> None:
    """In mid-turn: who waits at the other node gets the outcome, and its reader each event, once."""
    await begun_at_b(apart)
    at_a, at_b = await apart.fleet.user("a"), await apart.fleet.user("b")
    seen: list[dict[str, Any]] = []
    arrived = asyncio.Event()

    async def read() -> None:
        async with at_a.events("s") as events:
            arrived.set()
            async for event in events:
                seen.append(event)  # noqa: PERF401 - as they come

    reading = asyncio.create_task(read())
    await asyncio.wait_for(arrived.wait(), 20)
    prompt = "[[gate: held]] two"
    held = asyncio.create_task(at_a.say("s", prompt))
    await model.gate_reached("held")
    await eventually(lambda: any(event["event"] == "user.message" for event in seen))
    assert apart.between.connections > 0
    apart.fault(fault)
    model.open_gate("held")
    # The node that runs it has not noticed anything.
    await eventually(lambda: ended(at_b, 2))
    if fault != "slow":
        assert not held.done() or (await held)["turn"]["status"] == "completed"
    apart.between.heal()
    assert (await held)["turn"]["status"] == "completed"
    assert await at_a.text("s", "[[say: three]]") == "three"
    await eventually(lambda: [event["event"] for event in seen].count("assistant.message") >= 2)
    told = [event["id"] for event in seen if "id" in event]
    assert len(told) == len(set(told))
    kinds = [event["event"] for event in seen]
    assert kinds.count("user.message") == kinds.count("assistant.message") == 2
    assert len(requests_of(model, prompt)) == 1
    assert await at_b.prompts_seen("s") == ["[[say: one]]", prompt, "[[say: three]]"]
    reading.cancel()


@pytest.mark.parametrize("fault", cases(FAULTS, suite=["cut"]))
async def test_a_client_survives(apart: Apart, model: ModelServer, fault: str) -> None:
    await begun_at_b(apart)
    at_b = await apart.fleet.user("b")
    chat = await (await apart.fleet.sdk("a")).resume("s")
    prompt = "[[gate: held]] two"
    await chat.send(prompt)
    await chat.until("assistant.turn_start")
    await model.gate_reached("held")
    apart.fault(fault)
    model.open_gate("held")
    await eventually(lambda: ended(at_b, 2))
    apart.between.heal()
    await chat.until("session.idle")
    assert chat.answer == "echo: two"
    told = [event.id for event in chat.events]
    assert len(told) == len(set(told))
    assert await chat.turn("[[say: three]]") == "three"
    assert await chat.prompts_seen() == ["[[say: one]]", prompt, "[[say: three]]"]
    assert len(requests_of(model, prompt)) == 1


@pytest.mark.parametrize("fault", cases(["cut", "half-open"], suite=["half-open"]))
async def test_a_node_that_cannot_be_reached_is_told_within_a_deadline(
    apart: Apart, model: ModelServer, fault: str
) -> None:
    """The session runs there, and may not run here as long as that node lives."""
    await begun_at_b(apart)
    at_a, at_b = await apart.fleet.user("a"), await apart.fleet.user("b")
    assert await at_a.text("s", "[[say: two]]") == "two"
    apart.fault(fault)
    answer = await asyncio.wait_for(at_a.say("s", "[[say: three]]", expect=503, key="three"), 60)
    assert answer["code"] == "runtime_unavailable"
    assert answer["retryable"] is True
    assert await at_b.text("s", "[[say: four]]") == "four"
    apart.between.heal()
    assert await at_a.text("s", "[[say: three]]", key="three") == "three"
    assert await at_b.prompts_seen("s") == [f"[[say: {word}]]" for word in ("one", "two", "four", "three")]


async def streamed(
    told: str, at_a: User, at_b: User, model: ModelServer, prompt: str
) -> tuple[Streamed, asyncio.Task[dict[str, Any]] | None]:
    """A prompt that is held at the gate, whose stream has told so much; and the one that it waits for, if it has not
    begun yet."""
    if told == "nothing":
        before = asyncio.create_task(at_b.say("s", "[[gate: before]] before"))
        await model.gate_reached("before")
        stream = Streamed(at_a, prompt)
        await eventually(lambda: stream.response is not None)
        return stream, before
    stream = Streamed(at_a, prompt)
    await model.gate_reached("held")
    await eventually(lambda: "user.message" in stream.kinds)
    return stream, None


@pytest.mark.parametrize("told", ["its beginning", "nothing"])
async def test_a_streamed_turn_goes_on_behind_a_short_cut(apart: Apart, model: ModelServer, told: str) -> None:
    """Whatever its stream has told by then, it tells the rest: also what somebody has to answer."""
    await begun_at_b(apart)
    at_a, at_b = await apart.fleet.user("a"), await apart.fleet.user("b")
    stream, before = await streamed(told, at_a, at_b, model, QUESTION)
    apart.fault("cut")
    apart.between.heal()
    if before is not None:
        model.open_gate("before")
        await before
    model.open_gate("held")
    asked = await eventually(lambda: stream.first("user_input.requested"))
    answered = await at_a.http.post(
        f"/sessions/s/requests/{asked['data']['data']['requestId']}", json={"answer": "blue"}
    )
    assert answered.status_code == 204, answered.text
    await stream.whole()
    assert stream.first("end")["data"]["turn"]["status"] == "completed"
    assert stream.said == [QUESTION]
    assert await at_b.prompts_seen("s") == [
        "[[say: one]]",
        *(["[[gate: before]] before"] if before is not None else []),
        QUESTION,
    ]


@pytest.mark.parametrize("told", ["its beginning", "nothing"])
async def test_a_streamed_turn_that_ends_while_the_link_is_cut_is_told_whole(
    apart: Apart, model: ModelServer, told: str
) -> None:
    """Out of the history; and nothing of the turn behind it."""
    await begun_at_b(apart)
    at_a, at_b = await apart.fleet.user("a"), await apart.fleet.user("b")
    prompt = "[[gate: held]] two"
    stream, before = await streamed(told, at_a, at_b, model, prompt)
    apart.fault("cut")
    if before is not None:
        model.open_gate("before")
        await before
    behind = asyncio.create_task(at_b.say("s", "behind"))
    model.open_gate("held")
    await behind
    await stream.whole()
    assert stream.first("end")["data"]["message"]["content"] == "echo: two"
    assert stream.said == [prompt]
    assert stream.kinds.count("assistant.message") == 1


class Streamed:
    """A prompt whose turn is told as a stream."""

    def __init__(self, user: User, prompt: str) -> None:
        self.seen: list[dict[str, Any]] = []
        self.response: httpx.Response | None = None
        self._reading = asyncio.create_task(self._read(user, prompt))

    async def _read(self, user: User, prompt: str) -> None:
        headers = {"Accept": "text/event-stream"}
        async with user.http.stream(
            "POST", "/sessions/s/messages", json={"prompt": prompt}, headers=headers
        ) as self.response:
            assert self.response is not None
            async for event in sse_events(self.response):
                self.seen.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event["event"] for event in self.seen]

    @property
    def said(self) -> list[str]:
        return [event["data"]["data"]["content"] for event in self.seen if event["event"] == "user.message"]

    def first(self, kind: str) -> Any:
        return next((event for event in self.seen if event["event"] == kind), None)

    async def whole(self) -> None:
        """To its end, each event once."""
        await asyncio.wait_for(self._reading, 60)
        assert self.kinds[-1] == "end", self.seen[-1]
        told = [event["id"] for event in self.seen if "id" in event]
        assert len(told) == len(set(told))


async def ended(user: Any, turns: int) -> bool:
    """So many answers are in the history."""
    return [role for role, _ in await user.history("s")].count("assistant") >= turns
