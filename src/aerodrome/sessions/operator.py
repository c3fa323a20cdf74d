"""A node without runtimes, for as long as an operator's command needs leases that no other node takes from it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aerodrome.coordination.ports import Beat, Coordination, Node
from aerodrome.errors import StoreUnavailable

#: Seconds: its life after the last heartbeat.
_TTL = 60.0


@asynccontextmanager
async def operator_node(coordination: Coordination, name: str) -> AsyncIterator[str]:
    """Joins, and leaves with the end of the block. The incarnation to take leases as.

    Raises:
        StoreUnavailable: The coordination store cannot be used.
    """
    node = Node(name=name, incarnation=f"cli-{secrets.token_hex(8)}")
    await coordination.join(node, _TTL)
    beating = asyncio.create_task(_beat(coordination, node.incarnation), name=f"heartbeat of {name}")
    try:
        yield node.incarnation
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating
        await coordination.leave(node.incarnation)


async def _beat(coordination: Coordination, incarnation: str) -> None:
    beat = Beat.ALIVE
    while beat is not Beat.DEAD:
        await asyncio.sleep(_TTL / 4)
        # A store that is away for a moment ends nothing: leases are not taken away by silence shorter than the ttl.
        with contextlib.suppress(StoreUnavailable):
            beat = await coordination.heartbeat(incarnation)
