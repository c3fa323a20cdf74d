from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aerodrome.demo.model import ModelServer


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server
