"""The network between a node and its stores is slow, is cut, and swallows what it is given, on real sockets.

Node `a` reaches its stores over wires that are tampered with; node `b` reaches them well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from aerodrome.demo.model import ModelServer
from support.faults import Wire, wire
from support.nodes import Nodes, nodes
from support.postgres import fresh_schema, shared_server
from support.sdk_clients import requests_of
from support.selection import cases
from support.server import write_config
from support.stores import shared_valkey
from support.waiting import until

pytestmark = pytest.mark.cli

#: Seconds; a node fences itself after two thirds of it.
TTL = 6.0
#: Seconds of an outage that is shorter than that.
SHORT = 0.8


@dataclass
class Faulty:
    nodes: Nodes
    #: Between node `a` and its stores.
    coordination: Wire
    state: Wire

    def log(self) -> str:
        return self.nodes.servers["a"].log.read_text()


@asynccontextmanager
async def faulty(
    directory: Path, model: ModelServer, store: str, *names: str, extra: str = ""
) -> AsyncIterator[Faulty]:
    """Node `a`, and those that are named, with their state in PostgreSQL and coordination in `store`."""
    postgres, schema = shared_server(), fresh_schema()
    state = postgres.url
    coordination = shared_valkey().url if store == "valkey" else state
    port = shared_valkey().port if store == "valkey" else postgres.port
    config = write_config(directory, model.base_url)
    text = config.read_text().replace("[coordination]\n", f'[coordination]\nurl = "{coordination}"\n')
    text = text.replace('heartbeat = "200ms"\nttl = "2s"', f'heartbeat = "300ms"\nttl = "{TTL:g}s"')
    text += f'database_schema = "{schema}"\nkey_prefix = "{schema}"\n'
    text += f'[state]\nurl = "{state}"\ndatabase_schema = "{schema}"\n{extra}\n'
    config.write_text(text)
    async with AsyncExitStack() as stack:
        to_coordination = await stack.enter_async_context(wire("127.0.0.1", port))
        to_state = await stack.enter_async_context(wire("127.0.0.1", postgres.port))
        fleet = await stack.enter_async_context(nodes(config, *names))
        await fleet.start(
            "a",
            {
                "AERODROME_COORDINATION__URL": coordination.replace(str(port), str(to_coordination.port)),
                "AERODROME_STATE__URL": state.replace(str(postgres.port), str(to_state.port)),
            },
        )
        yield Faulty(fleet, to_coordination, to_state)


def slow(wire: Wire) -> None:
    wire.slow(0.15)


FAULTS: dict[str, Callable[[Wire], None]] = {
    "slow": slow,
    "reset": Wire.reset,
    "cut": Wire.cut,
    "half-open": Wire.swallow,
}


@pytest.mark.parametrize(
    ("store", "fault"),
    cases(
        [(store, fault) for store in ("valkey", "postgresql") for fault in FAULTS],
        suite=[("valkey", "cut"), ("postgresql", "half-open")],
    ),
)
async def test_short_trouble_with_the_coordination_store_costs_no_turn(
    tmp_path: Path, model: ModelServer, store: str, fault: str
) -> None:
    """Between turns and in mid-turn; nothing is asked twice, and the node does not fence itself."""
    async with faulty(tmp_path, model, store) as running:
        await short_trouble(running, model, running.coordination, fault)
        assert "heartbeat.lapsed" not in running.log()


@pytest.mark.parametrize("fault", cases(FAULTS, suite=["reset"]))
async def test_short_trouble_with_the_state_store_costs_no_turn(tmp_path: Path, model: ModelServer, fault: str) -> None:
    async with faulty(tmp_path, model, "valkey") as running:
        await short_trouble(running, model, running.state, fault)


async def short_trouble(running: Faulty, model: ModelServer, where: Wire, fault: str) -> None:
    alice = await running.nodes.user("a")
    await alice.open("s")
    assert await alice.text("s", "[[say: one]]") == "one"
    connections = where.connections
    FAULTS[fault](where)
    between = asyncio.create_task(alice.say("s", "[[say: two]]"))
    await asyncio.sleep(SHORT)  # how long it lasts
    where.heal()
    assert (await between)["turn"]["status"] == "completed"
    held = asyncio.create_task(alice.say("s", "[[gate: held]][[then]][[say: three]]"))
    await model.gate_reached("held")
    FAULTS[fault](where)
    model.open_gate("held")
    await asyncio.sleep(SHORT)
    where.heal()
    turn = (await held)["turn"]
    assert (turn["status"], turn["retried"]) == ("completed", False)
    if fault != "slow":
        # What no turn needs is noticed by the next heartbeat.
        await until(lambda: where.connections > connections)
    prompts = ["[[say: one]]", "[[say: two]]", "[[gate: held]][[then]][[say: three]]"]
    assert await alice.prompts_seen("s") == prompts
    assert [len(requests_of(model, prompt)) for prompt in prompts] == [1, 1, 1]


@pytest.mark.parametrize(
    ("store", "fault"),
    cases(
        [(store, fault) for store in ("valkey", "postgresql") for fault in ("cut", "half-open")],
        suite=[("valkey", "half-open")],
    ),
)
async def test_a_node_that_is_cut_off_fences_itself_and_comes_back(
    tmp_path: Path, model: ModelServer, store: str, fault: str
) -> None:
    async with faulty(tmp_path, model, store, "b", extra="[runtime]\nwarm = 0\n") as running:
        at_a, at_b = await running.nodes.user("a"), await running.nodes.user("b")
        await at_a.open("s")
        assert await at_a.text("s", "[[say: one]]") == "one"
        held = asyncio.create_task(at_a.http.post("/sessions/s/messages", json={"prompt": "[[gate: held]]"}))
        await model.gate_reached("held")
        (runtime,) = at_work(running)
        cut_at = time.monotonic()
        FAULTS[fault](running.coordination)
        # Before the others may take what it holds, nothing of it is at work any more.
        await asyncio.to_thread(runtime.wait, 20)
        assert time.monotonic() - cut_at < TTL
        assert "heartbeat.lapsed" in running.log()
        # The others take it as soon as they may, and this one neither writes nor sends.
        assert await at_b.text("s", "[[say: two]]") == "two"
        asked = len(model.requests)
        model.open_gate("held")
        refused = await at_a.http.get("/sessions/s", timeout=60)
        assert refused.status_code in (200, 503), refused.text
        assert await at_b.text("s", "[[say: three]]") == "three"
        assert len(model.requests) == asked + 1
        running.coordination.heal()
        outcome = (await held).json()
        if "turn" in outcome and outcome["turn"]["status"] == "completed":
            assert outcome["turn"]["retried"]
            expected = ["[[say: one]]", "[[say: two]]", "[[say: three]]", "[[gate: held]]"]
        else:
            assert outcome["code"] in ("turn_interrupted", "session_busy", "store_unavailable"), outcome
            expected = ["[[say: one]]", "[[say: two]]", "[[say: three]]"]
        assert await at_a.prompts_seen("s") == expected
        assert await at_b.prompts_seen("s") == [*expected, "[[turns]]"]
        async with asyncio.timeout(20):
            while (await at_a.http.get(f"{running.nodes.servers['a'].url}/ready")).status_code != 200:
                await asyncio.sleep(0.05)


def at_work(running: Faulty) -> list[psutil.Process]:
    """The runtimes of node `a` that belong to somebody."""
    children = psutil.Process(running.nodes.servers["a"].process.pid).children()
    return [child for child in children if child.cpu_times().user > 0]
