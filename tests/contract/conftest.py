from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.coordination import Pair, opened


@pytest.fixture(params=["memory", "sqlite", "valkey", "postgresql"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    async with opened(request.param, tmp_path) as found:
        yield found
