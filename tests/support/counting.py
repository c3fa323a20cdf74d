"""What a node asks of the coordination store, counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

from support.host import Host

_ROUND_TRIPS = (
    *("heartbeat", "nodes", "join", "publish"),
    *("holder", "holders", "acquire", "release", "admit", "vacate"),
)


def counted(running: Host) -> Counter[str]:
    """Calls of the node's coordination store from now on, each of which is a round trip."""
    calls: Counter[str] = Counter()
    store: Any = running.node.stores.coordination

    def count(name: str, method: Any) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return await method(*args, **kwargs)

        return call

    for name in _ROUND_TRIPS:
        setattr(store, name, count(name, getattr(store, name)))
    return calls
