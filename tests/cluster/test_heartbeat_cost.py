"""What a node asks of the coordination store while its users are quiet does not depend on how many sessions it has."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from support.counting import counted
from support.host import host, until

pytestmark = pytest.mark.cli

SESSIONS = 20
BEATS = 10
OF_QUIET = {"heartbeat", "nodes", "holders"}


async def test_heartbeats_cost_the_same_with_any_number_of_sessions(tmp_path: Path, model: ModelServer) -> None:
    quick = {"heartbeat": "100ms", "ttl": "30s"}
    async with AsyncExitStack() as stack:
        a, b = [
            await stack.enter_async_context(host(tmp_path, model, server={"node_name": name}, coordination=quick))
            for name in ("a", "b")
        ]
        await until(lambda: not any(running.node.cluster.alone for running in (a, b)))
        at_a, at_b = await a.user("alice"), await b.user("alice")
        calls = [counted(a), counted(b)]

        async def quiet() -> list[Counter[str]]:
            """Of each node, in the time of so many heartbeats, as soon as turns have left nothing to be done."""
            async with asyncio.timeout(60):
                while True:
                    for each in calls:
                        each.clear()
                    await until(lambda: all(each["heartbeat"] >= BEATS for each in calls))
                    if all(set(each) <= OF_QUIET for each in calls):
                        return [Counter(each) for each in calls]

        asked, sizes = [], []
        for number in range(SESSIONS):
            session = f"s-{number}"
            await at_a.open(session)
            await at_a.text(session, "[[say: one]]")
            # Somebody at the other node follows each of them.
            await stack.enter_async_context(at_b.events(session))
            if number in (0, SESSIONS - 1):
                assert len(a.node.sessions.live) == number + 1
                asked.append(await quiet())
                sizes.append(size(a.node.condition.load()))
        assert sizes[1] == sizes[0]
        for few, many in zip(*asked, strict=True):
            assert set(many) == set(few)
            for name, times in many.items():
                assert times <= 2 * many["heartbeat"], (name, few, many)


def size(said: Any) -> int:
    """Of a JSON value, however many digits its numbers have."""
    if isinstance(said, dict):
        return sum(len(name) + size(value) for name, value in said.items())
    if isinstance(said, list):
        return sum(map(size, said))
    return len(said) if isinstance(said, str) else 1
