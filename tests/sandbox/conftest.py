from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aerodrome.demo.model import ModelServer
from support.sandbox import allowed

__all__ = ["allowed"]


@pytest.fixture(autouse=True)
def _only_where_it_is_allowed(allowed: None) -> None:
    pass


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server
