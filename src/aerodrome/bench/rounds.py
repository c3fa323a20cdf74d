"""Taking turns between what is compared: A B C, C B A, ..., so that what disturbs the machine hits them alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

#: Measured is what the call takes; called once a round.
Contender = Callable[[], Awaitable[Any]]
#: Seconds between two calls: a runtime goes on working for a moment after it has answered, and on a machine of few
#: cores the next contender would pay for it.
PAUSE = 0.03


async def interleave(
    contenders: Mapping[str, Contender],
    rounds: int,
    *,
    warm_up: int = 0,
    pause: float = PAUSE,
    prepare: Contender | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, list[float]]:
    """Seconds that each contender took in each round, without the `warm_up` rounds before them.

    Args:
        prepare: Called before each round, not measured.
        progress: Told the part that is done, up to 1.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for done in range(warm_up + rounds):
        if prepare is not None:
            await prepare()
        for name in order:
            await asyncio.sleep(pause)
            began = time.perf_counter()
            await contenders[name]()
            if done >= warm_up:
                times[name].append(time.perf_counter() - began)
        order.reverse()
        progress((done + 1) / (warm_up + rounds))
    return times
