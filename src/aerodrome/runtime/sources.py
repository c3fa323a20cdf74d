"""Attached servers for those who have some, runtimes of our own for everybody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aerodrome.errors import Conflict, RuntimeUnavailable
from aerodrome.model import RuntimeKey
from aerodrome.runtime.attached.pool import AttachedPool
from aerodrome.runtime.attached.runtime import AttachedRuntime
from aerodrome.runtime.pool import RuntimePool
from aerodrome.runtime.ports import EmptyRuntime, MakeRoom, MoveSessions, Runtime


class AttachedOrLaunched:
    """Implements `runtime.ports.Runtimes` over both; whoever made them starts and closes them."""

    def __init__(self, attached: AttachedPool, launched: RuntimePool) -> None:
        self._attached = attached
        self._launched = launched

    @property
    def make_room(self) -> MakeRoom | None:
        return self._launched.make_room

    @make_room.setter
    def make_room(self, make_room: MakeRoom | None) -> None:
        self._attached.make_room = self._launched.make_room = make_room

    @property
    def empty_runtime(self) -> EmptyRuntime | None:
        return self._launched.empty_runtime

    @empty_runtime.setter
    def empty_runtime(self, empty_runtime: EmptyRuntime | None) -> None:
        # Who has attached servers waits for a place in those.
        self._launched.empty_runtime = empty_runtime

    @property
    def move_sessions(self) -> MoveSessions | None:
        return self._launched.move_sessions

    @move_sessions.setter
    def move_sessions(self, move_sessions: MoveSessions | None) -> None:
        self._attached.move_sessions = self._launched.move_sessions = move_sessions

    @property
    def on_lost(self) -> Callable[[Runtime], None] | None:
        return self._launched.on_lost

    @on_lost.setter
    def on_lost(self, on_lost: Callable[[Runtime], None] | None) -> None:
        self._attached.on_lost = self._launched.on_lost = on_lost

    @property
    def runtimes(self) -> list[Runtime]:
        return [*self._attached.runtimes, *self._launched.runtimes]

    def describe(self) -> list[dict[str, Any]]:
        """The rows of `aerodrome runtimes ls`."""
        return [*self._attached.describe(), *(runtime.describe() for runtime in self._launched.runtimes)]

    async def reserve(
        self, key: RuntimeKey, session_id: str | None = None, user: str | None = None, *, alone: bool = False
    ) -> Runtime:
        if self._attached.has(key):
            try:
                return await self._attached.reserve(key, session_id, user, alone=alone)
            except RuntimeUnavailable:
                if self._attached.has(key):
                    raise
                # A free server that has turned out to be another tenant's.
        return await self._launched.reserve(key, session_id, user, alone=alone)

    async def recycle(self, runtime_id: str, reason: str) -> None:
        """See `RuntimePool.recycle`. A server of somebody else is not ours to replace: raises `Conflict`."""
        if (server := self._attached.find(runtime_id)) is not None:
            raise Conflict(
                f"somebody else runs {server.name}: drain it (`aerodrome runtimes drain {server.name}`), restart it, "
                f"and have it used again (`aerodrome runtimes undrain {server.name}`)"
            )
        await self._launched.recycle(runtime_id, reason)

    async def drain(self, runtime_id: str) -> None:
        """See `RuntimePool.drain`. A server of somebody else is not ours to end: it is not used until it is undrained
        (see `attached.drains`)."""
        if (server := self._attached.find(runtime_id)) is not None:
            await self._attached.drains.drain(server)
        else:
            await self._launched.drain(runtime_id)

    def release(self, runtime: Runtime) -> None:
        source = self._attached if isinstance(runtime, AttachedRuntime) else self._launched
        source.release(runtime)

    def notify(self) -> None:
        self._attached.notify()
        self._launched.notify()
