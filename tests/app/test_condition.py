"""Whether a node says that it takes work."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from aerodrome.demo.model import ModelServer
from support.host import Host, host
from support.nodes import eventually

pytestmark = pytest.mark.cli


async def test_a_node_that_keeps_nothing_warm_is_ready_without_a_runtime(tmp_path: Path) -> None:
    """Nobody is sent to a node that is not ready, and without a session it would never start one."""
    async with ModelServer() as model, host(tmp_path, model, runtime={"warm": 0}) as running:
        async with httpx.AsyncClient(timeout=60) as client:
            ready = await client.get(f"{running.url}/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert running.node.pool.runtimes == []


async def test_a_node_without_the_memory_for_warm_runtimes_is_ready(tmp_path: Path) -> None:
    """It is short of it for what stands by, and starts a runtime for who comes."""
    async with ModelServer() as model, host(tmp_path, model, runtime={"warm": 1, "memory_reserve": "1TiB"}) as running:
        await eventually(lambda: _is_ready(running))
        assert running.node.pool.runtimes == []
        alice = await running.user()
        await alice.open("s")
        assert await alice.text("s", "hello") == "echo: hello"


async def _is_ready(running: Host) -> bool:
    async with httpx.AsyncClient(timeout=60) as client:
        return (await client.get(f"{running.url}/ready")).status_code == 200
