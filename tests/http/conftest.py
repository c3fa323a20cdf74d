from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from aerodrome.http.limits import HttpLimits
from support.http_front import Front, serving


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of production: its transports buffer and report differently from those of asyncio."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def limits() -> HttpLimits:
    """For a test module to override."""
    return HttpLimits()


@pytest.fixture
async def front(limits: HttpLimits) -> AsyncIterator[Front]:
    async with serving(limits) as served:
        yield served
