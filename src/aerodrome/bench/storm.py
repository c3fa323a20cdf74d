"""A quiet tenant beside one that has queued thousands of prompts: how much longer its turns take than alone.

The storm may have every place of the node, so that each turn of the quiet tenant waits for one to become free: what is
measured is the order in which places are given, and not a share that is kept free. Turns take their time in the model,
long enough that the processors are not what they wait for; those of the storm differ, so that they do not all end at
once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from aerodrome.bench.lab import Lab, User
from aerodrome.bench.report import Row
from aerodrome.bench.scale import Scale
from aerodrome.bench.stats import percentile

#: Turns at the same time in the node.
PLACES = 16
SESSIONS = 40
#: How long the turns of the storm take, as parts of those of the quiet tenant.
_SPREAD = (0.5, 1.3, 0.7, 1.5, 0.9, 1.1, 1.0)
_TARGET = 1.5
_WARM_UP = 2


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    limits = {
        "max_turns": PLACES,
        "max_turns_per_tenant": PLACES,
        "max_waiting_per_user": scale.storm,
        "max_waiting_per_tenant": scale.storm,
    }
    prompt = _prompt(scale.storm_turn_ms)
    prompts = [_prompt(scale.storm_turn_ms * part) for part in _SPREAD]
    # Prompts of the storm shall wait for as long as it takes.
    runtime = {"warm": 2, "capacity_timeout": "1h"}
    sessions = {"max_queued": scale.storm}
    async with lab.node(limits=limits, runtime=runtime, sessions=sessions) as node:
        quiet = await node.user(tenant="quiet")
        await quiet.open("quiet")
        alone = await _turns(quiet, prompt, scale.storm_turns, lambda done: progress(done / 2))
        flood = {"tenant": "storm", "sessions": SESSIONS, "count": scale.storm, "prompts": prompts}
        await node.command("flood", **flood)
        during = await _turns(quiet, prompt, scale.storm_turns, lambda done: progress((1 + done) / 2))
        left = (await node.command("waiting"))["storm"]
    if not left:
        raise AssertionError("the storm was over before the last turn of the quiet tenant")
    measured = {
        "alone_p50_ms": median(alone) * 1e3,
        "alone_p95_ms": percentile(alone, 95) * 1e3,
        "storm_p50_ms": median(during) * 1e3,
        "storm_p95_ms": percentile(during, 95) * 1e3,
        "places": PLACES,
        "prompts_queued": scale.storm,
        "still_waiting_at_the_end": left,
    }
    ratio = percentile(during, 95) / percentile(alone, 95)
    return [Row("storm", "p95 turn of a quiet tenant, in a storm / alone", ratio, target=_TARGET, measured=measured)]


def _prompt(milliseconds: float) -> str:
    return f"Say hello. [[delay: {milliseconds:.0f}ms]]"


async def _turns(user: User, prompt: str, count: int, progress: Callable[[float], None]) -> list[float]:
    times = []
    for done in range(_WARM_UP + count):
        began = time.perf_counter()
        await user.turn("quiet", prompt)
        if done >= _WARM_UP:
            times.append(time.perf_counter() - began)
        progress((done + 1) / (_WARM_UP + count))
    return times
