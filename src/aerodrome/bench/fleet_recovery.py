"""From `kill -9` of the node that runs a session to the answer to its next turn, through another node.

Two nodes on one store. The user asks the other node at once, and again when the answer is an error that may be tried
again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import httpx

from aerodrome.bench.lab import Lab, NodeProcess, User
from aerodrome.bench.report import Row
from aerodrome.bench.scale import Scale
from aerodrome.bench.stats import percentile

PROMPT = "Say hello."
SESSION = "session"
#: Seconds of `coordination.ttl`: the default, and a short one.
_TTLS = (5.0, 1.0)
#: Seconds over the time to live that the next turn may take.
_OVER = 2.0
#: Seconds after which there is no hope.
_PATIENCE = 60.0


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    rows: list[Row] = []
    for number, ttl in enumerate(_TTLS):

        def done(part: float, number: int = number) -> None:
            progress((number + part) / len(_TTLS))

        rows.append(await _recoveries(lab, scale.node_kills, ttl, done))
    return rows


async def _recoveries(lab: Lab, kills: int, ttl: float, progress: Callable[[float], None]) -> Row:
    data = lab.new_directory("fleet")
    times: list[float] = []
    errors = 0
    async with AsyncExitStack() as stack:
        runs = await _node(lab, stack, data, ttl, 0)
        user = await runs.user()
        await user.open(SESSION)
        await user.turn(SESSION, PROMPT)
        for done in range(kills):
            other = await _node(lab, stack, data, ttl, done + 1)
            user = await other.user()
            await user.turn(SESSION, PROMPT)  # forwarded
            seconds, failed = await _recover(runs, user)
            times.append(seconds)
            errors += failed
            # It has the session now, and is the next to go.
            runs = other
            progress((done + 1) / kills)
    return Row(
        "fleet-recovery",
        f"from kill -9 of a node to the next turn through another, ttl {ttl:g} s, 95th percentile",
        percentile(times, 95) * 1e3,
        "ms",
        (ttl + _OVER) * 1e3,
        measured={
            "p50_ms": median(times) * 1e3,
            "most_ms": max(times) * 1e3,
            "errors": errors,
            "kills": len(times),
        },
    )


async def _node(lab: Lab, stack: AsyncExitStack, data: Path, ttl: float, number: int) -> NodeProcess:
    return await stack.enter_async_context(
        lab.node(
            server={"data_dir": str(data), "node_name": f"node-{number}"},
            coordination={"ttl": f"{ttl:g}s", "heartbeat": f"{ttl / 5 * 1e3:.0f}ms"},
            runtime={"warm": 1},
        )
    )


async def _recover(runs: NodeProcess, user: User) -> tuple[float, int]:
    """Seconds to the answer, and how many errors came before it."""
    errors = 0
    began = time.perf_counter()
    await runs.kill()
    while True:
        try:
            await user.turn(SESSION, PROMPT)
        except httpx.HTTPStatusError:
            errors += 1
            if time.perf_counter() - began > _PATIENCE:
                raise
        else:
            return time.perf_counter() - began, errors
