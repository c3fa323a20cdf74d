from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.attached import Servers
from support.cli import cli

__all__ = ["cli"]


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path / "volume"


@pytest.fixture
def servers(cli: Path, tmp_path: Path, volume: Path) -> Iterator[Servers]:
    started = Servers(cli, tmp_path, volume)
    try:
        yield started
    finally:
        started.close()
