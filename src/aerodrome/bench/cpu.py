"""Processor time of the node for a turn, against that of the CLI that takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aerodrome.bench.lab import Lab, NodeProcess, cpu_seconds
from aerodrome.bench.report import Row
from aerodrome.bench.scale import Scale

ANSWER_TOKENS = 100
_WARM_UP = 5
_TARGET = 0.1
#: Seconds in which a runtime finishes what it does after it has answered.
_AFTERMATH = 0.3


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    prompt = f"Say hello. [[tokens: {ANSWER_TOKENS}]]"
    async with lab.node(runtime={"warm": 0}) as node:
        user = await node.user()
        await user.open("whole", streaming=False)
        await user.open("stream", streaming=True)
        whole = await _measure(
            node, lambda: user.turn("whole", prompt), scale.cpu_turns, lambda done: progress(done / 2)
        )
        stream = await _measure(
            node, lambda: user.stream("stream", prompt), scale.cpu_turns, lambda done: progress((1 + done) / 2)
        )
    return [
        _row("processor time of the node / of the CLI, JSON turn", whole),
        _row("processor time of the node / of the CLI, streamed turn", stream),
    ]


async def _measure(
    node: NodeProcess, turn: Callable[[], Awaitable[object]], turns: int, progress: Callable[[float], None]
) -> dict[str, float]:
    """Processor time a turn, in milliseconds: `node_ms`, `cli_ms`."""
    for _ in range(_WARM_UP):
        await turn()
    cli = await node.runtime()
    await asyncio.sleep(_AFTERMATH)
    before = cpu_seconds(node.stats), cpu_seconds(cli)
    for done in range(turns):
        await turn()
        progress((done + 1) / turns)
    await asyncio.sleep(_AFTERMATH)
    after = cpu_seconds(node.stats), cpu_seconds(cli)
    node_ms, cli_ms = ((late - early) / turns * 1e3 for early, late in zip(before, after, strict=True))
    return {"node_ms": node_ms, "cli_ms": cli_ms, "turns": turns, "answer_tokens": ANSWER_TOKENS}


def _row(what: str, measured: dict[str, float]) -> Row:
    return Row("cpu", what, measured["node_ms"] / measured["cli_ms"], target=_TARGET, measured=measured)
