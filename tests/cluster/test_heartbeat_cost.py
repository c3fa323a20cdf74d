"""What a node asks of the coordination store while its users are quiet does not depend on how many sessions it has."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.counting import counted
from support.host import host, until

pytestmark = pytest.mark.cli

SESSIONS = 20
BEATS = 10


async def test_heartbeats_cost_the_same_with_any_number_of_sessions(tmp_path: Path, model: ModelServer) -> None:
    quick = {"heartbeat": "100ms", "ttl": "5s"}
    async with AsyncExitStack() as stack:
        a, b = [
            await stack.enter_async_context(host(tmp_path, model, server={"node_name": name}, coordination=quick))
            for name in ("a", "b")
        ]
        await until(lambda: not any(running.node.cluster.alone for running in (a, b)))
        at_a, at_b = await a.user("alice"), await b.user("alice")
        calls = [counted(a), counted(b)]

        async def quiet() -> list[Counter[str]]:
            """Of each node, in the time of so many heartbeats."""
            for each in calls:
                each.clear()
            await until(lambda: all(each["heartbeat"] >= BEATS for each in calls))
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
                await asyncio.sleep(0.5)  # what a turn leaves to be done
                asked.append(await quiet())
                sizes.append(len(json.dumps(a.node.condition.load())))
        assert sizes[1] - sizes[0] < 20  # a digit here and there
        for few, many in zip(*asked, strict=True):
            assert set(many) == set(few) <= {"heartbeat", "nodes", "holders"}
            for name, times in many.items():
                assert times <= 2 * BEATS, (name, few, many)
