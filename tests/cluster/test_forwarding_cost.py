"""What a turn asks of the coordination store when its caller is at one node and its session at another."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.model import SessionKey
from support.counting import counted
from support.host import Host, host, until
from support.sdk_clients import Endpoint, connected

pytestmark = pytest.mark.cli

TURNS = 5
LIMITS = {
    "turns_per_minute": 1000,
    "turns_per_minute_per_tenant": 1000,
    "max_turns_per_user": 10,
    "max_turns_per_tenant": 10,
}


@dataclass
class Pair:
    a: Host
    b: Host


@pytest.fixture
async def pair(tmp_path: Path, model: ModelServer) -> AsyncIterator[Pair]:
    # No heartbeats in between: what is counted are turns.
    slow = {"heartbeat": "10m", "ttl": "1h"}
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(
                host(tmp_path, model, server={"node_name": name}, coordination=slow, limits=LIMITS)
            )
            for name in ("a", "b")
        ]
        for running in hosts:
            await running.node.cluster.refresh()
        yield Pair(*hosts)


@pytest.mark.parametrize("door", ["http", "gateway"])
async def test_a_forwarded_turn_costs_at_most_two_round_trips(pair: Pair, door: str) -> None:
    at_a, at_b = await pair.a.user("alice"), await pair.b.user("alice")
    await at_b.open("s")
    await at_b.text("s", "[[say: one]]")
    async with connected(Endpoint("gateway", pair.a.gateway_address, await pair.a.key("alice"))) as client:
        chat = await client.resume("s") if door == "gateway" else None

        async def say(text: str) -> str:
            return await (at_a.text("s", f"[[say: {text}]]") if chat is None else chat.turn(f"[[say: {text}]]"))

        asked = [counted(pair.a), counted(pair.b)]

        async def turns(number: int) -> Counter[str]:
            for each in asked:
                each.clear()
            for turn in range(number):
                assert await say(str(turn)) == str(turn)
                # Behind the answer; who asks again before that asks for a rate and a place one after the other.
                await until(partial(lambda count: asked[1]["vacate"] >= count, turn + 1))
            return sum(asked, Counter[str]())

        await turns(1)
        total = await turns(TURNS)
        assert total == {"admit": TURNS, "vacate": TURNS}, asked
        assert pair.b.node.sessions.is_loaded(SessionKey("acme", "s"))


async def test_a_node_that_is_remembered_and_has_let_go_of_the_session_does_not_take_it(pair: Pair) -> None:
    at_a, at_b = await pair.a.user("alice"), await pair.b.user("alice")
    key = SessionKey("acme", "s")
    await at_b.open("s")
    await at_b.text("s", "[[say: one]]")
    assert await at_a.text("s", "[[say: two]]") == "two"
    (live,) = pair.b.node.sessions.live
    async with asyncio.timeout(20):
        while not await pair.b.node.sessions.hibernate(live):  # the turn's own end comes behind its answer
            await asyncio.sleep(0.01)
    await until(lambda: not pair.b.node.sessions.live)
    # The hint that it has been loaded elsewhere is not needed, nor is that it has been unloaded.
    assert await at_a.text("s", "[[say: three]]") == "three"
    assert pair.a.node.sessions.is_loaded(key)
    assert await at_b.prompts_seen("s") == [f"[[say: {word}]]" for word in ("one", "two", "three")]
