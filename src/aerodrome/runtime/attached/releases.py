"""Servers that are being detached: whose they were is forgotten when no node holds anything in them (ADR 0042)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from aerodrome.model import RuntimeKey
from aerodrome.runtime.attached.ports import AttachStore, Binding, Fleet


class Releases:
    """Args:
    fleet: ``None``: there are no other nodes.
    held: Endpoints of the servers that this node has, or has not let go of yet.
    """

    def __init__(self, store: AttachStore, fleet: Fleet | None, held: Callable[[], Collection[str]]) -> None:
        self._store = store
        self._fleet = fleet
        self._held = held
        #: Endpoint -> release.
        self._under_way: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._under_way)

    def see(self, bindings: Mapping[str, Binding]) -> dict[str, RuntimeKey]:
        """What the store has; returns whose the others are."""
        self._under_way = {name: b.release for name, b in bindings.items() if b.release is not None}
        return {name: b.key for name, b in bindings.items() if b.release is None}

    @property
    def here(self) -> dict[str, str]:
        """Those of which this node has let go."""
        held = self._held()
        return {name: release for name, release in self._under_way.items() if name not in held}

    async def end(self) -> bool:
        """Forget whom servers have served that no node holds anything in; whether there were any. Raises
        `StoreUnavailable`."""
        ended = False
        for name, release in self.here.items():
            if self._fleet is None or await self._fleet.has_let_go(name, release):
                ended |= await self._store.unbind(name, release)
        return ended
