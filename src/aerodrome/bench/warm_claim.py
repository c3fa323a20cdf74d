"""What it takes to get a runtime that is warm: the claim itself, without the user's first turn in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from statistics import median

from aerodrome._util.xdg import runtime_packages
from aerodrome.bench.lab import START_TIMEOUT, Lab
from aerodrome.bench.report import Row
from aerodrome.bench.scale import Scale
from aerodrome.bench.stats import percentile
from aerodrome.model import RuntimeKey
from aerodrome.runtime.launchers.process import ProcessLauncher
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.pool import PoolOptions, RuntimePool
from aerodrome.runtime.supervisor import RuntimeOptions

_MS = 1e3


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    directory = lab.new_directory("pool")
    options = RuntimeOptions(lab.cli.path, directory / "homes", directory / "logs", env=lab.cli_env)
    pool = RuntimePool(PoolOptions(options, warm=2, replenish_delay=0.0), ProcessLauncher(runtime_packages()))
    times = []
    await pool.start()
    try:
        for number in range(scale.claims):
            await _settled(pool, 2)
            began = time.perf_counter()
            runtime = await pool.reserve(RuntimeKey("acme", f"user{number}"))
            times.append((time.perf_counter() - began) * _MS)
            pool.release(runtime)
            await pool.retire(runtime)
            progress((number + 1) / scale.claims)
    finally:
        await pool.aclose()
    measured = {"p50_ms": median(times), "p95_ms": percentile(times, 95), "claims": len(times)}
    return [Row("warm-claim", "a claim of a warm runtime", median(times), "ms", 50, measured=measured)]


async def _settled(pool: RuntimePool, warm: int) -> None:
    async with asyncio.timeout(START_TIMEOUT):
        while [r.state for r in pool.runtimes] != [RuntimeState.WARM] * warm:
            await pool.change(1.0)
