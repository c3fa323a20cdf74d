from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.host import Host, host


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
async def acme(tmp_path: Path, model: ModelServer) -> AsyncIterator[Host]:
    """A node with default isolation (one runtime a tenant)."""
    async with host(tmp_path, model, state={"patience": "4s"}) as running:
        yield running
