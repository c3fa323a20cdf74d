"""From `kill -9` of a runtime to the first good answer that a client of the official SDK gets.

The client keeps its connection and its session object, and asks at once; a warm runtime stands by. What is answered
with an error is asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from aerodrome.bench import sdk
from aerodrome.bench.lab import Lab, NodeProcess
from aerodrome.bench.report import Row
from aerodrome.bench.scale import Scale
from aerodrome.bench.sdk import Endpoint, SdkSession
from aerodrome.bench.stats import percentile

PROMPT = "Say hello."
_TARGET_MS = 1000
#: Seconds after which there is no hope.
_PATIENCE = 30.0


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    times: list[float] = []
    plain: list[float] = []
    errors = 0
    async with (
        lab.node(runtime={"warm": 1}) as node,
        sdk.connected(await Endpoint.of_node(lab, node), lab.new_directory("sdk")) as session,
    ):
        await session.turn(PROMPT)
        for done in range(scale.kills):
            await node.settled(claimed=1, warm=1)
            began = time.perf_counter()
            await session.turn(PROMPT)
            plain.append(time.perf_counter() - began)
            seconds, failed = await _fail_over(node, session)
            times.append(seconds)
            errors += failed
            progress((done + 1) / scale.kills)
    return [
        Row(
            "gateway-failover",
            "from kill -9 of the runtime to the first good answer, 95th percentile",
            percentile(times, 95) * 1e3,
            "ms",
            _TARGET_MS,
            measured={
                "p50_ms": median(times) * 1e3,
                "most_ms": max(times) * 1e3,
                "plain_turn_p50_ms": median(plain) * 1e3,
                "errors": errors,
                "kills": len(times),
            },
        )
    ]


async def _fail_over(node: NodeProcess, session: SdkSession) -> tuple[float, int]:
    """Seconds to the answer, and how many errors came before it."""
    runtime = await node.runtime()
    errors = 0
    began = time.perf_counter()
    runtime.kill()
    while True:
        try:
            await session.turn(PROMPT)
        except Exception:
            errors += 1
            if time.perf_counter() - began > _PATIENCE:
                raise
        else:
            return time.perf_counter() - began, errors
