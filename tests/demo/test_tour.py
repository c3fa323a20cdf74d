"""Parts of the tour that a run of it seldom comes to; the whole is shown by `tests/e2e/test_commands.py`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import httpx

from aerodrome.app.node import Node
from aerodrome.demo.tour import Person, _pid_of
from aerodrome.model import RuntimeKey
from aerodrome.runtime.machine import RuntimeState


async def test_a_runtime_that_is_being_cleared_away_is_not_taken_for_the_one_that_serves() -> None:
    """With a warm runtime the next one may have answered before."""
    states = ((1, RuntimeState.FAILED), (2, RuntimeState.CLAIMED), (3, RuntimeState.DRAINING))
    runtimes = [SimpleNamespace(key=RuntimeKey("bank", "carol"), pid=pid, state=state) for pid, state in states]
    node = cast("Node", SimpleNamespace(pool=SimpleNamespace(runtimes=runtimes)))
    async with httpx.AsyncClient() as http:
        assert _pid_of(node, Person("carol", "bank", "", http)) == 2
