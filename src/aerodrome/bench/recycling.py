"""Turns over a long life of a runtime: with recycling, and without.

One user goes through sessions of ten turns each, on two nodes in turn. On the one the runtime is recycled four times
in the run, on the other never. What a user notices of a recycling is in the slowest turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import median

from aerodrome.bench.lab import Lab, User
from aerodrome.bench.report import Row, compare
from aerodrome.bench.rounds import interleave
from aerodrome.bench.scale import Scale
from aerodrome.bench.stats import percentile

#: Turns on each node, where the scale's number will not do.
VARIABLE = "AERODROME_BENCH_WEAR_TURNS"
PROMPT = "Say hello."
_TURNS_A_SESSION = 10
_RECYCLINGS = 4
_OFF = {"turns": 0, "age": 0, "memory": 0, "descriptors": 0, "children": 0, "drift": 0}


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    turns = int(os.environ.get(VARIABLE, scale.wear_turns))
    often = {**_OFF, "turns": max(1, turns // _RECYCLINGS), "interval": "500ms"}
    async with (
        lab.node(runtime={"recycle": often}) as recycled,
        lab.node(runtime={"recycle": _OFF}) as kept,
    ):
        talks = {"recycled": _Talk(await recycled.user()), "kept": _Talk(await kept.user())}
        times = await interleave(
            {name: talk.turn for name, talk in talks.items()},
            turns,
            warm_up=_TURNS_A_SESSION,
            prepare=lambda: _prepare(talks),
            progress=progress,
        )
        # Of two while one takes the other's place.
        recycles = max(runtime["recycles"] for runtime in await recycled.runtimes() if runtime["tenant"] is not None)
    return [
        compare("recycling", "turn with recycling / without", ("recycled", "kept"), times, target=1.1),
        _over_life("with recycling", times["recycled"], recycles),
        _over_life("without", times["kept"], 0),
    ]


async def _prepare(talks: dict[str, _Talk]) -> None:
    for talk in talks.values():
        await talk.prepare()


class _Talk:
    def __init__(self, user: User) -> None:
        self._user = user
        self._turns = 0
        self._session = ""

    async def prepare(self) -> None:
        if self._turns % _TURNS_A_SESSION == 0:
            self._session = f"talk-{self._turns}"
            await self._user.open(self._session)
        self._turns += 1

    async def turn(self) -> None:
        await self._user.turn(self._session, PROMPT)


def _over_life(what: str, times: list[float], recycles: int) -> Row:
    size = min(100, max(1, len(times) // 2))
    groups = [times[start : start + size] for start in range(0, len(times) - size + 1, size)]
    measured: dict[str, float] = {"turns": len(times), "recyclings": recycles, "slowest_ms": max(times) * 1e3}
    for number, group in enumerate(groups):
        first = number * size + 1
        measured[f"from_turn_{first}_p50_ms"] = median(group) * 1e3
        measured[f"from_turn_{first}_p95_ms"] = percentile(group, 95) * 1e3
    value = median(groups[-1]) / median(groups[0])
    return Row("recycling", f"last / first {size} turns of a long life, {what}", value, measured=measured)
