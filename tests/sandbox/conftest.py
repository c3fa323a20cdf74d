from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aerodrome.demo.model import ModelServer
from support.sandbox import allowed

__all__ = ["allowed"]


@pytest.fixture(autouse=True)
def _only_where_it_is_allowed(allowed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")  # what programs say inside is read


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server
