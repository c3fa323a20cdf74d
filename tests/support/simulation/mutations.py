"""Parts with one promise broken each, to show that the simulation sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import Any, TypeVar

from aerodrome.coordination.backends.memory import MemoryCoordination, _Held
from aerodrome.coordination.backends.memory_directory import MemoryDirectory
from aerodrome.coordination.heartbeat import Heartbeat
from aerodrome.coordination.ports import Beat, Lease
from aerodrome.errors import AerodromeError, Fenced, StoreUnavailable
from aerodrome.model import SessionKey
from aerodrome.sessions.backends.memory import MemoryLedger
from aerodrome.statestore.provider import SessionFs
from support.simulation.fleet import Build
from support.simulation.network import Remote
from support.simulation.run import Parts
from support.simulation.sites import MemoryFiles, _Session

T = TypeVar("T")


class _UnfencedFiles(MemoryFiles):
    """Whoever writes, writes: the lock alone must do (trap 8)."""

    async def raise_epoch(self, key: SessionKey, epoch: int) -> None:
        self.sessions.setdefault(key, _Session(epoch))

    def fenced(self, key: SessionKey, epoch: int) -> _Session:
        return self.sessions.setdefault(key, _Session(epoch))


class _FenceBesideTheWrite(MemoryFiles):
    """A new epoch is noted, and yet the writes of the one before are let through."""

    def fenced(self, key: SessionKey, epoch: int) -> _Session:
        return self.sessions.setdefault(key, _Session(epoch))


class _OneEpochForTwo(MemoryFiles):
    """An epoch can be announced by two: each has its lease from a store that has lost its memory in between."""

    async def raise_epoch(self, key: SessionKey, epoch: int) -> None:
        session = self.sessions.setdefault(key, _Session(0))
        if session.epoch > epoch:
            raise Fenced(f"{key} is at epoch {session.epoch}")
        session.epoch = epoch


class _NoFloor(MemoryCoordination):
    """Epochs begin anew when the store has lost its memory."""

    async def acquire(self, key: SessionKey, incarnation: str, *, floor: int = 0) -> Lease | None:
        return await super().acquire(key, incarnation)


class _ReleaseWithoutComparing(MemoryCoordination):
    """Whatever lease there is, is given back (trap 7)."""

    async def release(self, lease: Lease) -> bool:
        if (held := self._leases.get(lease.key)) is not None:
            held.incarnation = None
        return True


class _LeasesThatExpire(MemoryCoordination):
    """A lock with a time to live of its own, which is taken from a living holder (trap 6)."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self._taken_at: dict[SessionKey, float] = {}

    async def acquire(self, key: SessionKey, incarnation: str, *, floor: int = 0) -> Lease | None:
        now = self._clock.monotonic()
        held = self._leases.get(key)
        if held is not None and now - self._taken_at.get(key, now) > 5.0:
            self._leases[key] = _Held(held.epoch, None)
        lease = await super().acquire(key, incarnation, floor=floor)
        if lease is not None:
            self._taken_at[key] = now
        return lease


class _TheDeadReturn(MemoryCoordination):
    """A heartbeat that comes too late counts all the same."""

    async def heartbeat(self, incarnation: str, load: dict[str, Any] | None = None) -> Beat:
        life = self._lives.get(incarnation)
        if life is not None:
            life.beat_at = self._clock.monotonic()
        return await super().heartbeat(incarnation, load)


class _CountsFromTheAnswer(Heartbeat):
    """The time to live is counted from when the answer came, not from when the store may have begun to count."""

    async def beat(self) -> None:
        await super().beat()
        if self._last_beat > 0:
            self._last_beat = self._clock.monotonic()

    async def _in_time(self, call: Awaitable[T]) -> T:
        """Nor has a beat a deadline, which alone would keep the promise."""
        return await call


class _NeverDoubts(Heartbeat):
    """Serves until it is told that it is dead."""

    @property
    def may_serve(self) -> bool:
        return self._last_beat > 0


class _WritesOn(SessionFs):
    """After a write that failed, the next is tried as if nothing had been (docs/facts.md, "Session files")."""

    def _fail(self, error: AerodromeError) -> None:
        pass

    def close(self) -> None:
        pass


class _RepeatsAppends(Remote):
    """What was not answered is asked for again, also what is not the same when it is done twice."""

    def __getattr__(self, operation: str) -> Any:
        call = super().__getattr__(operation)
        if operation != "append":
            return call

        async def twice(*args: Any, **kwargs: Any) -> Any:
            try:
                return await call(*args, **kwargs)
            except StoreUnavailable:
                return await call(*args, **kwargs)

        setattr(self, operation, twice)
        return twice


class _ForgetWithoutComparing(MemoryCoordination):
    """Whatever lease there is, is forgotten."""

    async def forget(self, lease: Lease) -> bool:
        return self._leases.pop(lease.key, None) is not None


class _DeletesWhateverIsThere(MemoryFiles):
    """A deletion does not ask whether somebody newer has the session."""

    async def delete_session(self, key: SessionKey, epoch: int, created_at: float) -> None:
        session = self.sessions.setdefault(key, _Session(epoch))
        await super().delete_session(key, max(epoch, session.epoch), created_at)


class _LeavesNoMark(MemoryFiles):
    """A session whose deletion has begun can be loaded."""

    async def delete_session(self, key: SessionKey, epoch: int, created_at: float) -> None:
        await super().delete_session(key, epoch, created_at)
        self.sessions[key].deleted_of = None


class _RemovesWhateverRow(MemoryDirectory):
    """A row that was made anew is removed as well."""

    async def remove(self, key: SessionKey, created_at: float) -> bool:
        return self._rows.pop(key, None) is not None


class ForgetsAllTurns(MemoryLedger):
    """Those of a session that was made anew as well."""

    async def forget(self, key: SessionKey, turn_ids: Collection[str]) -> bool:
        return await super().forget(key, await self.turn_ids(key))


#: `ForgetsAllTurns` is not among them: what shows it is too rare (tests/simulation/test_deletions.py has it).
MUTATIONS = {
    "files without a fence": Parts(files=_UnfencedFiles),
    "epochs noted and not compared": Parts(files=_FenceBesideTheWrite),
    "one epoch announced by two": Parts(files=_OneEpochForTwo),
    "epochs without a floor": Parts(coordination=_NoFloor),
    "release without comparing": Parts(coordination=_ReleaseWithoutComparing),
    "leases that expire": Parts(coordination=_LeasesThatExpire),
    "the dead return": Parts(coordination=_TheDeadReturn),
    "counting from the answer": Parts(build=Build(heartbeat=_CountsFromTheAnswer)),
    "a node that never doubts": Parts(build=Build(heartbeat=_NeverDoubts)),
    "writing on after a refusal": Parts(build=Build(session_fs=_WritesOn)),
    "forgetting without comparing": Parts(coordination=_ForgetWithoutComparing),
    "deletions without a fence": Parts(files=_DeletesWhateverIsThere),
    "deletions without a mark": Parts(files=_LeavesNoMark),
    "rows removed whosever they are": Parts(directory=_RemovesWhateverRow),
    "appends asked for twice": Parts(build=Build(remote=_RepeatsAppends)),
}
