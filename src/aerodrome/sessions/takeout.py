"""Everything that is stored of a user or a tenant: to be handed over, or erased, on request.

A user's own sessions are theirs with all that is in them, whoever wrote it. In a session of somebody else, theirs are
the membership and the turns they wrote; those turns stay, because they are part of the owner's conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from aerodrome._util.clock import Clock
from aerodrome.coordination.ports import ClusterEvent, Coordination, Directory, Leases, Node
from aerodrome.errors import Conflict, Fenced, NotFound, StoreUnavailable, TooLarge
from aerodrome.model import SessionKey, SessionRow
from aerodrome.sessions.erase import announce, epoch_floor, erase
from aerodrome.sessions.hints import DELETED, MEMBERS
from aerodrome.sessions.operator import operator_node
from aerodrome.sessions.ports import Ledger
from aerodrome.statestore.ports import SessionFileStore
from aerodrome.statestore.walk import walk

_PAGE = 200
#: Seconds between two tries for a lease that is taken.
_RETRY = 0.5


class Stores(Protocol):
    @property
    def coordination(self) -> Coordination: ...
    @property
    def directory(self) -> Directory: ...
    @property
    def files(self) -> SessionFileStore: ...
    @property
    def ledger(self) -> Ledger: ...


@dataclass(frozen=True, slots=True)
class Whose:
    """A tenant's sessions, or one user's in it."""

    tenant: str
    user: str | None = None

    def owns(self, row: SessionRow) -> bool:
        return self.user is None or row.owner == self.user


async def rows_of(directory: Directory, whose: Whose) -> list[SessionRow]:
    """The sessions of `whose`, those shared with the user included, by id.

    Listings are by last use: a session that is used while we turn the pages moves to one that we have turned. So the
    pages are turned until nothing new is found.
    """
    found: dict[SessionKey, SessionRow] = {}
    known = -1
    while known < len(found):
        known, cursor = len(found), None
        while True:
            page = await directory.list(whose.tenant, user=whose.user, cursor=cursor, limit=_PAGE)
            found |= {row.key: row for row in page.rows}
            if (cursor := page.next) is None:
                break
    return [found[key] for key in sorted(found)]


async def take_out(row: SessionRow, *, files: SessionFileStore, ledger: Ledger) -> dict[str, Any]:
    """Everything stored of a session, as JSON values: `options`, `turns`, `files` (path -> text).

    Where others write the files, too, there may be such that are larger than a file may be, or are none: they are in
    `left_out` (path -> why).

    Raises:
        StoreUnavailable: Not all could be read.
    """
    turns = [asdict(turn) for turn in await ledger.turns(row.key)]
    contents: dict[str, str] = {}
    left_out: dict[str, str] = {}
    async for path, error in walk(files, row.key, "/"):
        try:
            if error is not None:
                raise error
            contents[path] = await files.read(row.key, path)
        except FileNotFoundError:
            continue  # removed since it was listed
        except (OSError, Conflict, TooLarge) as reason:
            left_out[path] = str(reason)
    return {"options": row.options, "turns": turns, "files": contents, "left_out": left_out}


async def take_out_membership(row: SessionRow, user: str, *, ledger: Ledger) -> dict[str, Any]:
    """What is a member's in a session of somebody else: `role`, and the `turns` they wrote."""
    turns = [asdict(turn) for turn in await ledger.turns(row.key) if turn.author == user]
    return {"tenant": row.key.tenant, "session": row.key.id, "role": row.members.get(user), "turns": turns}


@dataclass(slots=True)
class Erased:
    sessions: list[SessionKey] = field(default_factory=list)
    #: Sessions of others that the user was a member of.
    memberships: list[SessionKey] = field(default_factory=list)
    #: Not erased, because that node has it loaded: key -> name of the node.
    refused: dict[SessionKey, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Places:
    """Implements `erase.Stores` on the stores of a command."""

    directory: Directory
    leases: Leases
    ledger: Ledger
    files: SessionFileStore

    @classmethod
    def of(cls, stores: Stores) -> Places:
        return cls(stores.directory, stores.coordination, stores.ledger, stores.files)


class Eraser:
    """Erases sessions as a node of its own, which no other one takes the lease from meanwhile.

    Args:
        wait: Seconds to wait, for all sessions together, for those that are loaded to be put to sleep.
    """

    def __init__(self, stores: Stores, incarnation: str, clock: Clock, wait: float = 0.0) -> None:
        self._stores = stores
        self._incarnation = incarnation
        self._clock = clock
        self._give_up = clock.monotonic() + wait

    async def erase_all(self, whose: Whose, said: Callable[[str], None] = lambda text: None) -> Erased:
        """Erase all that is `whose`, until a listing finds no more of it but what is refused."""
        done = Erased()
        while True:
            rows = [row for row in await rows_of(self._stores.directory, whose) if row.key not in done.refused]
            if not rows:
                return done
            for row in rows:
                if whose.owns(row):
                    await self._erase_one(row, done, said)
                else:
                    assert whose.user is not None
                    await self._stores.directory.set_member(row.key, whose.user, None)
                    await self._announce(MEMBERS, row.key)
                    done.memberships.append(row.key)

    async def _erase_one(self, row: SessionRow, done: Erased, said: Callable[[str], None]) -> None:
        if (holder := await self.erase(row, said)) is not None:
            done.refused[row.key] = holder
        else:
            done.sessions.append(row.key)

    async def erase(self, row: SessionRow, said: Callable[[str], None] = lambda text: None) -> str | None:
        """Erase one session: ``None``, or else the name of the node that has it loaded and goes on having it."""
        key = row.key
        told = False
        while not await self._try(row):
            if self._clock.monotonic() >= self._give_up:
                return await self._holder(key)
            if not told:
                said(f"waiting for {key}, which {await self._holder(key)} has loaded")
                told = True
            await asyncio.sleep(_RETRY)
        await self._announce(DELETED, key)
        return None

    async def _try(self, row: SessionRow) -> bool:
        """``False``: somebody else has it."""
        stores = self._stores
        floor = epoch_floor(await stores.files.epoch(row.key), row.created_at, self._clock.time())
        lease = await stores.coordination.acquire(row.key, self._incarnation, floor=floor)
        if lease is None:
            return False
        places = Places.of(stores)
        try:
            await announce(places, lease)
            await erase(places, lease, row.created_at)
        except NotFound:
            pass  # what an earlier deletion had left has been done
        except Fenced:
            return False
        finally:
            await stores.coordination.release(lease)
        return True

    async def _announce(self, kind: str, key: SessionKey) -> None:
        """A hint to those who have it here or read in it."""
        with contextlib.suppress(StoreUnavailable):
            await self._stores.coordination.publish(ClusterEvent(kind, str(key), self._incarnation))

    async def _holder(self, key: SessionKey) -> str:
        lease = await self._stores.coordination.holder(key)
        nodes: Sequence[Node] = await self._stores.coordination.nodes()
        names = {node.incarnation: node.name for node in nodes}
        return "another node" if lease is None else f"node {names.get(lease.incarnation, lease.incarnation)}"


@asynccontextmanager
async def eraser(stores: Stores, clock: Clock, *, wait: float = 0.0) -> AsyncIterator[Eraser]:
    """An eraser, alive as long as the block."""
    async with operator_node(stores.coordination, "aerodrome-sessions-rm") as incarnation:
        yield Eraser(stores, incarnation, clock, wait)
