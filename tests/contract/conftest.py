from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aerodrome.coordination.backends import subscription
from support.coordination import Pair, opened


@pytest.fixture(autouse=True)
def listening_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published before it has begun is lost: on a slow machine, the one event that a test waits for."""
    monkeypatch.setattr(subscription, "_READY_WITHIN", 30.0)


@pytest.fixture(params=["memory", "sqlite", "valkey", "postgresql"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    async with opened(request.param, tmp_path) as found:
        yield found
