"""Memory of sessions that are loaded, with our allocator setting and with the C library's own.

Memory is PSS, which shares what several processes have mapped fairly among them. "Users per GB" counts one session a
user, all in one runtime (isolation `tenant`), and the node's own memory with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import psutil

from aerodrome.bench.lab import Lab
from aerodrome.bench.report import Row
from aerodrome.bench.scale import Scale

PROMPT = "Say hello."
MEGABYTE = 1e6


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    # One after the other: two runtimes at once would share pages.
    trimmed = await _measure(lab, lab.cli.path, scale, lambda done: progress(done / 2))
    default = await _measure(lab, lab.untrimmed_cli(), scale, lambda done: progress((1 + done) / 2))
    loaded, asleep = f"{scale.resident} sessions loaded", f"{scale.resident} sessions hibernated again"
    return [
        _users(f"users per GB, {loaded}", trimmed),
        _users(f"users per GB, {loaded}, allocator of the C library", default),
        _ratio(f"memory of the runtime, {loaded}, with the setting / without", "loaded_mb", trimmed, default),
        _ratio(f"memory of the runtime, {asleep}, with the setting / without", "asleep_mb", trimmed, default),
    ]


async def _measure(lab: Lab, cli: Path, scale: Scale, progress: Callable[[float], None]) -> dict[str, float]:
    """PSS in MB: of the runtime with one session, with all, and after they hibernated; of the node."""
    sessions = scale.resident
    async with lab.node(runtime={"command": str(cli), "warm": 0, "max_sessions": sessions + 1}) as node:
        user = await node.user()
        measured = {"sessions": float(sessions)}
        for number in range(sessions):
            await user.open(f"session-{number}")
            await user.turn(f"session-{number}", PROMPT)
            if number == 0:
                await asyncio.sleep(scale.settle)
                measured["first_mb"] = _pss(await node.runtime())
            progress((number + 1) / sessions)
        await asyncio.sleep(scale.settle)
        measured["loaded_mb"] = _pss(await node.runtime())
        measured["node_mb"] = _pss(node.stats)
        await node.hibernate(count=sessions)
        await asyncio.sleep(scale.settle)
        measured["asleep_mb"] = _pss(await node.runtime())
    return measured


def _pss(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss) / MEGABYTE


def _users(what: str, measured: dict[str, float]) -> Row:
    together = measured["loaded_mb"] + measured["node_mb"]
    return Row("memory", what, measured["sessions"] / together * 1e3, "users/GB", measured=measured)


def _ratio(what: str, name: str, trimmed: dict[str, float], default: dict[str, float]) -> Row:
    measured = {f"with_{name}": trimmed[name], f"without_{name}": default[name]}
    return Row("memory", what, trimmed[name] / default[name], measured=measured)
