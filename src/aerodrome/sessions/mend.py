"""Session files that Copilot CLI servers write themselves, looked after: torn or damaged ones are mended before anybody
loads them, and whoever has them loaded without a lease of ours is noticed.

A server that is killed while it appends leaves a torn line, a machine that dies NUL bytes; a repair keeps every whole
event (`statestore.transcript`), and beside it the file as it was, under a name that says in which epoch it was mended.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog

from aerodrome._util.clock import Clock
from aerodrome.errors import Conflict
from aerodrome.model import SessionKey
from aerodrome.sessions.parsing import parse
from aerodrome.statestore.ports import Holder, SessionFileStore, SharedVolume
from aerodrome.statestore.provider import EVENTS_PATH
from aerodrome.statestore.transcript import Damage, examine

log = structlog.get_logger(__name__)

#: Seconds in which a server has unloaded a session whose last connection has gone (docs/facts.md, "Sessions and
#: connections"), and some more; then it is held for one that hangs, or that is none of ours.
UNLOADS_WITHIN = 3.0
_LOOK = 0.05


@dataclass(frozen=True, slots=True)
class Condition:
    """How the files of a session were found."""

    #: Whole events in its history.
    events: int = 0
    damages: tuple[Damage, ...] = ()
    holders: tuple[Holder, ...] = ()
    #: Where the history is kept as it was, once it has been mended.
    backup: str | None = None

    @property
    def alive(self) -> list[int]:
        """Processes that have the session loaded."""
        return [holder.pid for holder in self.holders if holder.alive]

    @property
    def stale(self) -> list[int]:
        """Processes that have left a lock and are no more."""
        return [holder.pid for holder in self.holders if not holder.alive]

    def as_json(self) -> dict[str, Any]:
        return {
            "events": self.events,
            "damages": [{"kind": d.kind.value, "line": d.line, "dropped": d.dropped} for d in self.damages],
            "in_use_by": self.alive,
            "stale_locks": self.stale,
            "backup": self.backup,
        }


async def look_at(files: SessionFileStore, volume: SharedVolume | None, key: SessionKey) -> Condition:
    """How the session's files are; changes nothing. Raises what `stored_history` does."""
    examination = await parse(examine, await stored_history(files, key))
    holders = tuple(await volume.holders(key)) if volume is not None else ()
    return Condition(examination.events, examination.damages, holders)


async def mend(
    files: SessionFileStore, volume: SharedVolume | None, key: SessionKey, epoch: int, clock: Clock
) -> Condition:
    """Put the session's files in order. Returns how they were.

    Args:
        epoch: An announced one: nobody else of this fleet has the session.

    Raises:
        Fenced: Somebody newer has taken the session over.
        StoreUnavailable, Conflict, TooLarge: They could not be read, or written.
    """
    holders: tuple[Holder, ...] = ()
    if volume is not None:
        holders = tuple(await _when_unloaded(volume, key, clock))
        await volume.clear_stale(key)
    text = await stored_history(files, key)
    examination = await parse(examine, text)
    backup = None
    if examination.damages:
        backup = f"{EVENTS_PATH}.damaged-{epoch}"
        await files.write(key, epoch, backup, text)
        await files.write(key, epoch, EVENTS_PATH, examination.mended)
    return Condition(examination.events, examination.damages, holders, backup)


async def _when_unloaded(volume: SharedVolume, key: SessionKey, clock: Clock) -> list[Holder]:
    """Who has left locks, after those that live have had the time to let go of the session."""
    deadline = clock.monotonic() + UNLOADS_WITHIN
    while True:
        holders = await volume.holders(key)
        if clock.monotonic() >= deadline or not any(holder.alive for holder in holders):
            return holders
        await asyncio.sleep(_LOOK)


async def stored_history(files: SessionFileStore, key: SessionKey) -> str:
    """The stored events of the session, as text; empty when there are none.

    Raises:
        StoreUnavailable: They cannot be read now.
        Conflict: On a volume, there is something else in their place.
        TooLarge: On a volume, they are larger than a file may be.
    """
    try:
        return await files.read(key, EVENTS_PATH)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Conflict(f"there is something else in the place of the session's history: {error.strerror}") from error


def report(key: SessionKey, condition: Condition) -> None:
    """Tell the operator of what was out of order."""
    if condition.damages:
        kinds = sorted({damage.kind.value for damage in condition.damages})
        log.warning(
            "session.repaired",
            session=str(key),
            damages=len(condition.damages),
            kinds=kinds,
            events=condition.events,
            backup=condition.backup,
        )
    if condition.alive:
        log.warning("session.in_use", session=str(key), pids=condition.alive)
