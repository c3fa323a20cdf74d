"""Thousands of clients that are connected and do nothing: their memory in the node, and whether others feel them.

Two nodes alike, one of them with the idle clients; an active client of each takes turns.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from aerodrome.bench import sdk
from aerodrome.bench.lab import Lab, NodeProcess
from aerodrome.bench.report import Row, compare, skipped
from aerodrome.bench.rounds import interleave
from aerodrome.bench.scale import Scale
from aerodrome.bench.sdk import Endpoint
from aerodrome.wire.framing import FrameDecoder, encode_frame

PROMPT = "Say hello."
_NAME = "gateway-clients"
_WARM_UP = 5
#: Descriptors of the node for each client.
_DESCRIPTORS = 2
#: Descriptors for everything else.
_RESERVE = 200
#: Connections that are opened at the same time.
_AT_ONCE = 50


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    wanted = scale.idle_clients
    with _descriptors(wanted * _DESCRIPTORS + _RESERVE) as enough:
        if not enough:
            return [skipped(_NAME, f"{wanted} idle clients", "this process may not open so many files (ulimit -n)")]
        async with (
            lab.node(runtime={"warm": 0}) as crowded,
            lab.node(runtime={"warm": 0}) as quiet,
            sdk.connected(await Endpoint.of_node(lab, crowded), lab.new_directory("sdk")) as among,
            sdk.connected(await Endpoint.of_node(lab, quiet), lab.new_directory("sdk")) as alone,
        ):
            for session in (among, alone):
                await session.turn(PROMPT)
            # What the first clients make the node load is no memory of theirs.
            async with _idle(crowded, 10):
                pass
            before = crowded.stats.memory_info().rss
            async with _idle(crowded, wanted):
                after = crowded.stats.memory_info().rss
                times = await interleave(
                    {
                        "crowd_ping": among.ping,
                        "alone_ping": alone.ping,
                        "crowd_turn": lambda: among.turn(PROMPT),
                        "alone_turn": lambda: alone.turn(PROMPT),
                    },
                    scale.native_turns,
                    warm_up=min(_WARM_UP, scale.native_turns),
                    progress=progress,
                )
    memory = Row(
        _NAME,
        "memory of the node for an idle client",
        (after - before) / wanted / 1e3,
        "KB",
        measured={"before_mb": before / 1e6, "after_mb": after / 1e6, "clients": wanted},
    )
    return [memory] + [
        compare(_NAME, f"{what} with {wanted} idle clients / without", (f"crowd_{what}", f"alone_{what}"), times)
        for what in ("ping", "turn")
    ]


@contextmanager
def _descriptors(wanted: int) -> Iterator[bool]:
    """Let this process, and those it starts meanwhile, open so many files. ``False``: it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= wanted:
        yield True
        return
    if hard != unlimited and hard < wanted:
        yield False
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield True
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def _idle(node: NodeProcess, clients: int) -> AsyncIterator[None]:
    """So many clients that have authenticated and say nothing."""
    host, _, port = node.gateway.rpartition(":")
    hello = {"jsonrpc": "2.0", "id": 1, "method": "connect", "params": {"token": await node.key()}}
    frame = encode_frame(json.dumps(hello).encode())
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 12)
        writers.append(writer)
        writer.write(frame)
        answers = FrameDecoder().feed(await reader.read(1 << 12))
        if len(answers) != 1 or "result" not in json.loads(answers[0]):
            raise AssertionError(f"`connect` was answered {answers}")

    try:
        for start in range(0, clients, _AT_ONCE):
            await asyncio.gather(*(connect() for _ in range(min(_AT_ONCE, clients - start))))
        yield
    finally:
        for writer in writers:
            writer.transport.abort()
