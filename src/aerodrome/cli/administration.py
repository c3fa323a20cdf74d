"""The commands' way to a fleet: through its coordination store, from any machine with the configuration."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aerodrome.config import Settings

if TYPE_CHECKING:
    from aerodrome.operators.administration import Administration


@asynccontextmanager
async def administration(settings: Settings) -> AsyncIterator[Administration]:
    """Raises what `open_stores` raises."""
    from aerodrome.app.stores import open_stores
    from aerodrome.operators.administration import Administration

    async with open_stores(settings) as stores:
        yield Administration(stores.coordination)
