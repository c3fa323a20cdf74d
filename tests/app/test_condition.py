"""Whether a node says that it takes work."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from aerodrome.demo.model import ModelServer
from support.host import host

pytestmark = pytest.mark.cli


async def test_a_node_that_keeps_nothing_warm_is_ready_without_a_runtime(tmp_path: Path) -> None:
    """Nobody is sent to a node that is not ready, and without a session it would never start one."""
    async with ModelServer() as model, host(tmp_path, model, runtime={"warm": 0}) as running:
        async with httpx.AsyncClient(timeout=60) as client:
            ready = await client.get(f"{running.url}/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert running.node.pool.runtimes == []
