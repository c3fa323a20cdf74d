"""The short form of `make soak`: trouble while users talk, with a seed that is printed on failure."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from support.chaos import Chaos
from support.host import host

pytestmark = pytest.mark.cli

SETTINGS: dict[str, dict[str, Any]] = {
    "runtime": {"ping_interval": "300ms", "ping_timeout": "4s", "max_sessions": 4, "max_runtimes": 6, "warm": 1},
    "isolation": {"default": "tenant", "tenants": {"bank": "user"}},
}


async def run(data_dir: Path, *, users: int, turns: int, faults: int) -> None:
    seed = random.randrange(1 << 32)
    with ModelServer.in_thread(delay=0.03) as model:
        async with host(data_dir, model, **SETTINGS) as running:
            chaos = Chaos(running, users=users, turns=turns, faults=faults, seed=seed)
            await chaos.run()
            assert chaos.counts["turns completed"] > users * turns // 2
            print(f"seed {seed}:", dict(chaos.counts))
            places = sum(runtime.reserved for runtime in running.node.pool.runtimes)
            assert places == sum(live.activation is not None for live in running.node.sessions.live)


async def test_histories_are_what_was_acknowledged_whatever_dies(tmp_path: Path) -> None:
    await run(tmp_path, users=6, turns=8, faults=5)


@pytest.mark.soak
@pytest.mark.timeout(3000)
async def test_soak(tmp_path: Path) -> None:
    await run(tmp_path, users=12, turns=120, faults=80)
