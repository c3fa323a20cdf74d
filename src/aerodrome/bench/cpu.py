"""Processor time of the node for a turn, against that of the CLI that takes it; and that of a link with no node behind
it, which is what the node's could be if it did nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psutil

from aerodrome.bench.children import python_child
from aerodrome.bench.lab import MODEL, Lab, NodeProcess, cpu_seconds
from aerodrome.bench.report import Row
from aerodrome.bench.scale import Scale
from aerodrome.model import ISOLATED_TOOLS
from aerodrome.policy.session_params import Credentials, session_params

ANSWER_TOKENS = 100
_PROMPT = f"Say hello. [[tokens: {ANSWER_TOKENS}]]"
_WARM_UP = 5
_TARGET = 0.1
#: Seconds in which a runtime finishes what it does after it has answered.
_AFTERMATH = 0.3

Turns = Callable[[int], Awaitable[object]]


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    turns = scale.cpu_turns
    async with lab.node(runtime={"warm": 0}) as node:
        nodes = await _of_node(node, turns, lambda done: progress(done / 2))
    links = await _of_link(lab, turns, lambda done: progress((1 + done) / 2))
    what = "processor time of the {} / of the CLI, {} turn".format
    return [
        *(_row(what("node", kind), measured, target=_TARGET) for kind, measured in nodes.items()),
        *(_row(what("link alone", kind), measured) for kind, measured in links.items()),
    ]


async def _of_node(node: NodeProcess, turns: int, progress: Callable[[float], None]) -> dict[str, dict[str, float]]:
    user = await node.user()
    await user.open("whole", streaming=False)
    await user.open("stream", streaming=True)

    async def whole(count: int) -> None:
        for _ in range(count):
            await user.turn("whole", _PROMPT)

    async def stream(count: int) -> None:
        for _ in range(count):
            await user.stream("stream", _PROMPT)

    await whole(_WARM_UP)  # which starts the runtime
    measured = {}
    for done, (kind, take) in enumerate({"JSON": whole, "streamed": stream}.items(), 1):
        measured[kind] = await _measure("node", node.stats, await node.runtime(), take, turns)
        progress(done / 2)
    return measured


async def _of_link(lab: Lab, turns: int, progress: Callable[[float], None]) -> dict[str, dict[str, float]]:
    """The same turns, in sessions that are opened as a node opens them, except that their files are the CLI's own."""
    measured = {}
    async with lab.bare_cli() as cli, python_child("aerodrome.bench.bare_link") as link:
        await link.ask(do="connect", host=cli.host, port=cli.port, token=cli.token)
        for done, (kind, streaming) in enumerate({"JSON": False, "streamed": True}.items(), 1):
            await link.ask(do="create", params=_params(lab, kind, streaming=streaming))

            async def take(count: int, session: str = kind) -> None:
                await link.ask(do="turns", session=session, count=count, prompt=_PROMPT)

            measured[kind] = await _measure("link", link.stats, psutil.Process(cli.pid), take, turns)
            progress(done / 2)
    return measured


def _params(lab: Lab, session_id: str, *, streaming: bool) -> dict[str, Any]:
    return session_params(
        session_id,
        model=MODEL,
        system_message=None,
        tools=ISOLATED_TOOLS,
        working_directory=str(lab.new_directory("workspace")),
        streaming=streaming,
        credentials=Credentials({"type": "openai", "baseUrl": lab.model_url, "apiKey": "bench"}),
    )


async def _measure(
    name: str, process: psutil.Process, cli: psutil.Process, take: Turns, turns: int
) -> dict[str, float]:
    """Processor time a turn, in milliseconds."""
    await take(_WARM_UP)
    await asyncio.sleep(_AFTERMATH)
    before = cpu_seconds(process), cpu_seconds(cli)
    await take(turns)
    await asyncio.sleep(_AFTERMATH)
    after = cpu_seconds(process), cpu_seconds(cli)
    spent, cli_ms = ((late - early) / turns * 1e3 for early, late in zip(before, after, strict=True))
    return {f"{name}_ms": spent, "cli_ms": cli_ms, "turns": turns, "answer_tokens": ANSWER_TOKENS}


def _row(what: str, measured: dict[str, float], *, target: float | None = None) -> Row:
    spent, cli, *_ = measured.values()
    return Row("cpu", what, spent / cli, target=target, measured=measured)
