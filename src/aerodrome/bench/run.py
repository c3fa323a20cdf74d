"""The benchmarks by name, and a run of some or all of them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aerodrome.bench import (
    components,
    cpu,
    directory_scale,
    first_turn,
    fleet_recovery,
    gateway_alone,
    gateway_clients,
    gateway_failover,
    gateway_throughput,
    gateway_turns,
    hibernation,
    memory,
    recycling,
    sandbox_start,
    storm,
    telemetry,
    turns,
    users_per_gb,
    warm_claim,
)
from aerodrome.bench.lab import Lab
from aerodrome.bench.report import Row
from aerodrome.bench.scale import Scale

Benchmark = Callable[[Lab, Scale, Callable[[float], None]], Awaitable[list[Row]]]

#: In the order of the table.
BENCHMARKS: Mapping[str, Benchmark] = {
    "turn": turns.run,
    "first-turn": first_turn.run,
    "sandbox-start": sandbox_start.run,
    "hibernation": hibernation.run,
    "cpu": cpu.run,
    "memory": memory.run,
    "store": components.store,
    "link": components.link,
    "gateway-turn": gateway_turns.run,
    "gateway-throughput": gateway_throughput.run,
    "gateway-alone": gateway_alone.run,
    "gateway-failover": gateway_failover.run,
    "gateway-clients": gateway_clients.run,
    "fleet-recovery": fleet_recovery.run,
    "directory-scale": directory_scale.run,
    "storm": storm.run,
    "users-per-gb": users_per_gb.run,
    "recycling": recycling.run,
    "warm-claim": warm_claim.run,
    "telemetry": telemetry.run,
}


class Watcher(Protocol):
    """Told how far the run is."""

    def progress(self, benchmark: str, done: float) -> None:
        """`done`: the part of this benchmark, from 0 at its start to 1 at its end."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    scale: str
    cores: int
    cli_version: str
    #: Processes that wanted a core at the start and at the end (one minute's average): the machine is quiet when the
    #: first is near 0.
    load: tuple[float, float]
    seconds: float
    rows: Sequence[Row]

    def as_json(self) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "cores": self.cores,
            "cli_version": self.cli_version,
            "load": {"before": self.load[0], "after": self.load[1]},
            "seconds": self.seconds,
            "rows": [row.as_json() for row in self.rows],
        }


async def run(names: Sequence[str], scale: Scale, watcher: Watcher) -> Report:
    """Run the named benchmarks (keys of `BENCHMARKS`), one after the other.

    Raises:
        RuntimeUnavailable: There is no Copilot CLI, or it does not start.
        Invalid: The official SDK is not installed, and one of them compares with it.
    """
    # What we have started ends with us when we are interrupted, and so it shall when we are told to end.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    began, load = time.monotonic(), os.getloadavg()[0]
    rows: list[Row] = []
    async with Lab.open() as lab:
        for name in names:
            watcher.progress(name, 0)

            def progress(done: float, name: str = name) -> None:
                watcher.progress(name, done)

            rows += await BENCHMARKS[name](lab, scale, progress)
            watcher.progress(name, 1)
        version = lab.cli.version
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Report(scale.name, cores, version, (load, os.getloadavg()[0]), time.monotonic() - began, rows)
