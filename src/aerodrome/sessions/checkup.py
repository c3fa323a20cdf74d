"""Looking at the files of stored sessions, and mending them, on an operator's request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from aerodrome._util.clock import Clock
from aerodrome.errors import AerodromeError, SessionBusy
from aerodrome.model import SessionRow
from aerodrome.sessions import takeout
from aerodrome.sessions.erase import announce, epoch_floor
from aerodrome.sessions.mend import Condition, look_at, mend
from aerodrome.statestore.ports import SharedVolume


class Stores(takeout.Stores, Protocol):
    @property
    def volume(self) -> SharedVolume | None: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """What is the matter with one session."""

    row: SessionRow
    condition: Condition
    #: A node has it loaded: its servers write it, and it is not to be touched.
    loaded: bool
    #: Why it could not be looked at, or mended.
    error: str | None = None

    @property
    def verdict(self) -> str:
        """`ok`, `damaged`, `repaired`, `stale locks`, `in use` (by a process without a lease), `loaded` or `error`."""
        if self.error is not None:
            return "error"
        if self.condition.backup is not None:
            return "repaired"
        if self.loaded:
            return "loaded"
        if self.condition.alive:
            return "in use"
        if self.condition.damages:
            return "damaged"
        return "stale locks" if self.condition.stale else "ok"

    @property
    def sound(self) -> bool:
        """Nothing has to be done about it."""
        return self.verdict in ("ok", "loaded", "repaired")

    def as_json(self) -> dict[str, Any]:
        return {
            "tenant": self.row.key.tenant,
            "session": self.row.key.id,
            "verdict": self.verdict,
            **self.condition.as_json(),
            "error": self.error,
        }


async def check(stores: Stores, rows: list[SessionRow]) -> AsyncIterator[Finding]:
    """Look at each; changes nothing."""
    for row in rows:
        try:
            loaded = await stores.coordination.holder(row.key) is not None
            condition = await look_at(stores.files, stores.volume, row.key)
            # Or it has been loaded as we looked.
            loaded = loaded or await stores.coordination.holder(row.key) is not None
            yield Finding(row, condition, loaded)
        except AerodromeError as error:
            yield Finding(row, Condition(), loaded=False, error=error.detail)


async def repair(stores: Stores, rows: list[SessionRow], incarnation: str, clock: Clock) -> AsyncIterator[Finding]:
    """Mend each that no node has loaded, under its lease.

    Args:
        incarnation: The node to take the leases as.
    """
    for row in rows:
        try:
            yield Finding(row, await _repair(stores, row, incarnation, clock), loaded=False)
        except SessionBusy:
            yield Finding(row, await look_at(stores.files, stores.volume, row.key), loaded=True)
        except AerodromeError as error:
            yield Finding(row, Condition(), loaded=False, error=error.detail)


async def _repair(stores: Stores, row: SessionRow, incarnation: str, clock: Clock) -> Condition:
    floor = epoch_floor(await stores.files.epoch(row.key), row.created_at, clock.time())
    lease = await stores.coordination.acquire(row.key, incarnation, floor=floor)
    if lease is None:
        raise SessionBusy("a node has the session loaded")
    try:
        await announce(takeout.Places.of(stores), lease)
        return await mend(stores.files, stores.volume, row.key, lease.epoch, clock)
    finally:
        await stores.coordination.release(lease)
