"""What the nodes say of the servers that were detached, in their heartbeats."""

from __future__ import annotations

from collections.abc import Callable

from aerodrome.coordination.ports import Membership, Node

#: Key of a node's heartbeat under which are the servers that it has let go of: endpoint -> release.
RELEASED = "released"
#: States of a row in which a node has no sessions on the server, and puts none there (`listing`).
_EMPTY = frozenset({"drained", "unused"})


class HeartbeatFleet:
    """Implements `attached.ports.Fleet`.

    Args:
        own: The incarnation this node lives in now.
    """

    def __init__(self, membership: Membership, own: Callable[[], str]) -> None:
        self._membership = membership
        self._own = own

    async def has_let_go(self, endpoint: str, release: str) -> bool:
        living = await self._living()
        return bool(living) and all(node.load.get(RELEASED, {}).get(endpoint) == release for node in living)

    async def has_drained(self, endpoint: str) -> bool:
        living = await self._living()
        rows = [row for node in living for row in node.load.get("runtimes", []) if row.get("server") == endpoint]
        return bool(living) and all(row["state"] in _EMPTY for row in rows)

    async def _living(self) -> list[Node]:
        """None, when this node is held for dead: then it knows less than the others of who lives."""
        living = await self._membership.nodes()
        return living if any(node.incarnation == self._own() for node in living) else []
