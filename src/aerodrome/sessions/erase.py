"""Deleting a session, wherever it is asked for: by its owner, by its expiry, by an operator."""

from __future__ import annotations

from aerodrome.coordination.ports import Directory, Leases
from aerodrome.model import SessionKey
from aerodrome.sessions.ports import Ledger
from aerodrome.statestore.ports import SessionFileStore


async def erase(
    key: SessionKey, *, directory: Directory, leases: Leases, ledger: Ledger, files: SessionFileStore
) -> None:
    """Remove files, ledger, directory row and lease; nothing of the session remains (trap 20).

    The caller holds the session's lease. What a user owns goes before the row, so that a deletion that is cut short
    can be seen and repeated; the lease goes last, so that until the row is gone nobody brings the session back.
    """
    await files.delete_session(key)
    await ledger.forget(key)
    await directory.remove(key)
    await leases.forget(key)
