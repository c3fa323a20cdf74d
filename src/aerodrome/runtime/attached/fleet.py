"""What the nodes say of the servers that were detached, in their heartbeats."""

from __future__ import annotations

from collections.abc import Callable

from aerodrome.coordination.ports import Membership

#: Key of a node's heartbeat under which are the servers that it has let go of: endpoint -> release.
RELEASED = "released"


class HeartbeatFleet:
    """Implements `attached.ports.Fleet`.

    Args:
        own: The incarnation this node lives in now.
    """

    def __init__(self, membership: Membership, own: Callable[[], str]) -> None:
        self._membership = membership
        self._own = own

    async def has_let_go(self, endpoint: str, release: str) -> bool:
        living = await self._membership.nodes()
        # A node that is not in the list is held for dead, and knows less than the others of who lives.
        return any(node.incarnation == self._own() for node in living) and all(
            node.load.get(RELEASED, {}).get(endpoint) == release for node in living
        )
