"""Deleting a session, wherever it is asked for: by its owner, by its expiry, by an operator.

Whoever deletes may be paused at any point, for longer than its lease lasts, and go on under the feet of those who came
after it. So every step says what exactly it is about, and does nothing when that has gone (ADR 0021):

1. A lease with a new epoch, which is announced: whoever had the session before can write no more. Then a look at the
   directory: is it still the session that is meant, and still unused?
2. `delete_session`, the point of no return: the files go and a mark is left, unless somebody newer has announced an
   epoch. Until the mark is removed nobody can load the session, and whoever tries to finishes the deletion.
3. The turns that were there at the look; the row, if it is still the one of that session.
4. The mark, if it is still that of our epoch; the lease, if it is still ours.

One that was cut short can be repeated by anybody. Which session an id belongs to is told by the time it was opened at:
an id may be used again as soon as the row has gone.
"""

from __future__ import annotations

from typing import Protocol

from aerodrome.coordination.ports import Directory, Lease, Leases
from aerodrome.errors import NotFound
from aerodrome.model import SessionKey
from aerodrome.sessions.ports import Ledger
from aerodrome.statestore.ports import Deleted, SessionFileStore

#: In place of the time a session was opened at: remains that belong to no row.
NO_SESSION = -1.0
DELETED = "the session has been deleted"


class Stores(Protocol):
    """Where a session is stored."""

    @property
    def directory(self) -> Directory: ...
    @property
    def leases(self) -> Leases: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def files(self) -> SessionFileStore: ...


def epoch_floor(stored: int, created_at: float, now: float) -> int:
    """What an epoch of the session has to be above.

    Args:
        stored: The highest that the file store knows.
        created_at: When the session was opened: one that was deleted and made anew must not begin with epochs that its
            earlier life has used.
        now: The present time: stores that have lost their last moments, as in a fail-over to a standby that was behind,
            must not give out again what they gave out then (ADR 0048).
    """
    return max(stored, int(max(created_at, now) * 1000))


async def announce(stores: Stores, lease: Lease) -> None:
    """`raise_epoch`; a deletion that was begun and is not at its end is finished instead.

    Raises:
        NotFound: The session has been deleted.
        Fenced: Somebody newer has taken it over.
        StoreUnavailable: A store is away; whether the epoch is announced is not known.
    """
    key = lease.key
    try:
        await stores.files.raise_epoch(key, lease.epoch)
    except Deleted as deleted:
        present = await _present(stores, key)
        if present == deleted.created_at:
            await erase(stores, lease, deleted.created_at)
            raise NotFound(DELETED) from None
        # The last that was left of an earlier session under this id.
        await stores.files.forget_session(key, deleted.epoch)
        await stores.files.raise_epoch(key, lease.epoch)


async def erase(stores: Stores, lease: Lease, created_at: float) -> bool:
    """Remove files, ledger, directory row and lease; nothing of the session remains (trap 20).

    Args:
        lease: With an epoch that has been announced.
        created_at: Which session is meant; `NO_SESSION`: whatever is left without one.

    Returns:
        ``False`` when there is another session under this id. Nothing has been done; the lease is still ours.

    Raises:
        Fenced: Somebody has taken the session over, and goes on with it.
        StoreUnavailable: It is not, or only in part, deleted.
    """
    key = lease.key
    # First these, then the row: what is of a later session is not among them.
    turns = await stores.ledger.turn_ids(key)
    if await _present(stores, key) not in (created_at, None):
        return False
    await stores.files.delete_session(key, lease.epoch, created_at)
    await stores.ledger.forget(key, turns)
    await stores.directory.remove(key, created_at)
    await stores.files.forget_session(key, lease.epoch)
    await stores.leases.forget(lease)
    return True


async def _present(stores: Stores, key: SessionKey) -> float | None:
    """Which session has the id now."""
    row = await stores.directory.get(key)
    return None if row is None else row.created_at
