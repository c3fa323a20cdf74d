"""Two nodes, so that what a client of one does is done at the other: to run through a hop what is run without one.

The first node is told that whatever runs nowhere runs at the second. Everything else is as it is: who holds a lease is
asked of the store, and the second node knows of no difference.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aerodrome.coordination.ports import Node
from aerodrome.demo.model import ModelServer
from aerodrome.model import SessionKey
from support.host import Host, host, until


@dataclass(frozen=True, slots=True)
class Hop:
    #: Where clients connect.
    front: Host
    #: Where their sessions run.
    back: Host


@asynccontextmanager
async def hop(data_dir: Path, model: ModelServer, **sections: Any) -> AsyncIterator[Hop]:
    """Sections as those of `support.host.host`."""
    # No node is missed on a slow machine. For as long as the time to live who has just begun does
    # not know who lives, and some is told to clients only then.
    quick = {"heartbeat": "100ms", "ttl": "8s", **sections.pop("coordination", {})}
    server = sections.pop("server", {})
    runtime = sections.pop("runtime", {})
    async with AsyncExitStack() as stack:
        front, back = [
            await stack.enter_async_context(
                host(
                    data_dir,
                    model,
                    server={"node_name": name, **server},
                    coordination=quick,
                    runtime=options,
                    **sections,
                )
            )
            for name, options in (("front", {**runtime, "warm": 0}), ("back", runtime))
        ]
        await until(lambda: not (front.node.cluster.alone or back.node.cluster.alone))
        send_on(front, back)
        yield Hop(front, back)


def send_on(front: Host, back: Host) -> None:
    """Have the first node take the second for the one that runs what runs nowhere, as long as that lives."""
    cluster, other = front.node.cluster, back.node.cluster
    asked = cluster.elsewhere

    async def elsewhere(key: SessionKey) -> Node | None:
        found = await asked(key)
        if found is not None or front.node.sessions.is_loaded(key):
            return found
        return cluster.node(other.own) if not back.node.sessions.draining else None

    cluster.elsewhere = elsewhere  # type: ignore[method-assign]
