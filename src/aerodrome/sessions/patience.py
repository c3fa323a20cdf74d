"""Which calls of the sessions' stores wait for a store that is away, and which do not.

They are those that somebody waits for and that may be made twice: reads, and writes whose repetition changes nothing.
Missing are the bookkeeping that is written behind what happens (`Directory.update`, `Ledger.note`, `Leases.release`),
which has its own ways of coming later; what a listing only polishes its rows with (`Leases.holders`); and what has to
be looked at before it is repeated: `Leases.acquire` and the announcement of an epoch (`sessions.wake`), `Ledger.accept`
(below), and the appends of session files (`statestore.provider`).
"""

from __future__ import annotations

from aerodrome._util.patience import Patience, patient
from aerodrome.coordination.ports import Directory, Leases
from aerodrome.errors import Conflict, StoreUnavailable
from aerodrome.model import TurnRow
from aerodrome.sessions.ports import Ledger
from aerodrome.statestore.ports import SessionFileStore

_DIRECTORY = ("insert", "get", "set_member", "remove", "list", "unused_since", "count")
_LEASES = ("forget",)
_LEDGER = ("start", "finish", "get", "by_idempotency_key", "unfinished", "turns", "turn_ids", "sessions", "forget")
_FILES = ("epoch", "write", "read", "stat", "listdir", "total_bytes", "sessions", "delete_session", "forget_session")


def patient_directory(directory: Directory, patience: Patience) -> Directory:
    return patient(directory, patience, _DIRECTORY)


def patient_leases(leases: Leases, patience: Patience) -> Leases:
    return patient(leases, patience, _LEASES)


def patient_ledger(ledger: Ledger, patience: Patience) -> Ledger:
    return patient(ledger, patience, _LEDGER)


def patient_files(files: SessionFileStore, patience: Patience) -> SessionFileStore:
    return patient(files, patience, _FILES)


async def accept(ledger: Ledger, row: TurnRow, patience: Patience, *, durable: bool = True) -> TurnRow | None:
    """`Ledger.accept`, tried again while the ledger is away: a row that is found then may be the one that the try
    before has recorded without our learning of it."""
    unsure = False

    async def accept_or_find() -> TurnRow | None:
        nonlocal unsure
        try:
            present = await ledger.accept(row, durable=durable)
        except StoreUnavailable:
            unsure = True
            raise
        except Conflict:
            if not unsure:
                raise
            return None
        return None if present is not None and present.id == row.id else present

    return await patience(accept_or_find)
