"""A turn over HTTP against the same turn with the official SDK connected straight to a CLI."""

from __future__ import annotations

from collections.abc import Callable

from aerodrome.bench import sdk
from aerodrome.bench.lab import Lab
from aerodrome.bench.report import Row, compare
from aerodrome.bench.rounds import interleave
from aerodrome.bench.scale import Scale

PROMPT = "Say hello."
_WARM_UP = 5


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    async with lab.node(runtime={"warm": 0}) as node, sdk.over_tcp(lab) as tcp, sdk.over_stdio(lab) as stdio:
        user = await node.user()
        await user.open("turns")
        times = await interleave(
            {
                "http": lambda: user.turn("turns", PROMPT),
                "sdk_tcp": lambda: tcp.turn(PROMPT),
                "sdk_stdio": lambda: stdio.turn(PROMPT),
            },
            scale.turns,
            warm_up=_WARM_UP,
            progress=progress,
        )
    return [
        compare("turn", "HTTP turn / SDK over TCP", ("http", "sdk_tcp"), times, target=0.6),
        compare("turn", "HTTP turn / SDK over stdio", ("http", "sdk_stdio"), times, target=1.1),
    ]
