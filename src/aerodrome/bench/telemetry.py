"""What metrics and traces cost: turns of three nodes that differ in nothing else."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from statistics import median
from typing import Any

from aerodrome.bench.lab import Lab, NodeProcess, User, cpu_seconds
from aerodrome.bench.report import Row, compare, skipped
from aerodrome.bench.rounds import interleave
from aerodrome.bench.scale import Scale

PROMPT = "Say hello."
_WARM_UP = 5
#: Seconds in which a node finishes what it does after it has answered; its spans are sent later.
_AFTERMATH = 0.3
#: Times that the turns over which processor time is counted are divided into, so that all nodes have the same weather.
_BURSTS = 4
_METRICS = {"metrics_address": "127.0.0.1:0"}


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    async with AsyncExitStack() as stack:
        kinds: dict[str, dict[str, Any]] = {"off": {}, "metrics": _METRICS}
        if traced := importlib.util.find_spec("opentelemetry.sdk") is not None:
            kinds["traces"] = {**_METRICS, "traces": await stack.enter_async_context(_collector())}
        nodes: dict[str, NodeProcess] = {}
        users: dict[str, User] = {}
        for name, telemetry in kinds.items():
            nodes[name] = await stack.enter_async_context(lab.node(runtime={"warm": 0}, telemetry=telemetry))
            users[name] = await nodes[name].user()
            await users[name].open("turns", streaming=False)
        times = await interleave(
            {name: partial(user.turn, "turns", PROMPT) for name, user in users.items()},
            scale.turns,
            warm_up=_WARM_UP,
            # Each round begins with whoever was last in the one before, whose runtime may still be at work for that.
            pause=_AFTERMATH,
            progress=lambda done: progress(done / 2),
        )
        cpu = await _cpu(nodes, users, scale.cpu_turns, lambda done: progress((1 + done) / 2))
        memory = {name: node.stats.memory_info().rss / 1e6 for name, node in nodes.items()}
    rows = []
    for name, what in (("metrics", "metrics"), ("traces", "metrics and traces")):
        if name == "traces" and not traced:
            rows.append(skipped("telemetry", f"with {what}", "the extra aerodrome[otel] is not installed"))
            continue
        rows += [
            compare("telemetry", f"turn with {what} / without", (name, "off"), times, target=1.1),
            _ratio(f"processor time of the node a turn, with {what} / without", name, cpu),
            Row(
                "telemetry",
                f"memory of the node, with {what} - without",
                memory[name] - memory["off"],
                unit="MB",
                measured={f"{each}_mb": memory[each] for each in (name, "off")},
            ),
        ]
    return rows


async def _cpu(
    nodes: Mapping[str, NodeProcess], users: Mapping[str, User], turns: int, progress: Callable[[float], None]
) -> dict[str, list[float]]:
    """Processor seconds of the node a turn, for each burst."""
    used: dict[str, list[float]] = {name: [] for name in nodes}
    order = list(nodes)
    each = max(1, turns // _BURSTS)
    for burst in range(_BURSTS):
        for name in order:
            before = cpu_seconds(nodes[name].stats)
            for _ in range(each):
                await users[name].turn("turns", PROMPT)
            await asyncio.sleep(_AFTERMATH)
            used[name].append((cpu_seconds(nodes[name].stats) - before) / each)
        order.reverse()
        progress((burst + 1) / _BURSTS)
    return used


def _ratio(what: str, name: str, cpu: Mapping[str, list[float]]) -> Row:
    """Processor time is counted in hundredths of a second: a few turns may take none."""
    one, off = median(cpu[name]), median(cpu["off"])
    measured = {f"{name}_ms": one * 1e3, "off_ms": off * 1e3}
    return Row("telemetry", what, one / off if off else None, measured=measured, note="" if off else "skipped: too few")


@asynccontextmanager
async def _collector() -> AsyncIterator[str]:
    """Takes traces and throws them away."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").lower().split("\r\n")
                length = next((int(line.partition(":")[2]) for line in lines if line.startswith("content-length:")), 0)
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
