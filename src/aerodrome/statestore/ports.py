"""The session-file store: the small file system in which the CLI keeps a session.

Files belong to a session and are named by a normalised absolute path inside it ("/state/events.jsonl").
Every write names the epoch of the activation that makes it. An activation announces its epoch with `raise_epoch`
before it reads or writes; the store keeps the highest epoch announced for each session and refuses a write of any
other **in the same transaction as the write**, so that a node that was paused past its lease and wakes up cannot
fork a history, whatever its clock says (trap 8). A session without an announced epoch, which is also one that was
deleted, takes no writes at all: a late writer cannot bring a deleted session back. Only the node that has announced an
epoch writes in it; a store may refuse whoever else tries.

A deletion begins here, in one transaction: `delete_session` removes the files unless somebody newer has announced an
epoch, and leaves a mark that lets nobody announce one. The mark goes last (`forget_session`), when nothing else of the
session is left (ADR 0021).

Content is text: that is what the CLI writes as long as the capability `binary` is not declared (docs/facts.md,
"Session files").
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aerodrome.errors import Fenced
from aerodrome.model import SessionKey


@dataclass(frozen=True, slots=True)
class FileInfo:
    is_directory: bool
    #: Bytes of the content in UTF-8; 0 for a directory.
    size: int
    #: Unix seconds.
    modified_at: float
    created_at: float


class Deleted(Fenced):
    """The session has been deleted, or one that had this id before; what else there is of it may not be yet.

    Args:
        epoch: Of the deletion.
        created_at: Which session it was: the one that was opened at that time.
    """

    def __init__(self, key: SessionKey, epoch: int, created_at: float) -> None:
        super().__init__(f"session {key}, opened at {created_at}, has been deleted in epoch {epoch}")
        self.epoch = epoch
        self.created_at = created_at


class SessionFileStore(Protocol):
    """All methods raise `StoreUnavailable` when the store can not be used (locked, full, away).

    Writing methods raise `Fenced` when `epoch` is not the announced one, and `TooLarge` when a file or
    the session's total would pass its limit; neither leaves anything changed. Reading methods raise
    `FileNotFoundError`, `IsADirectoryError` and `NotADirectoryError` as the operating system would.

    Where others write the files, too, all methods but `epoch` and `sessions` raise `Conflict` when these are not the
    session's, or are none.
    """

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    async def epoch(self, key: SessionKey) -> int:
        """The highest epoch seen for this session; 0 when none."""
        ...

    async def raise_epoch(self, key: SessionKey, epoch: int) -> None:
        """Fence off everybody older, before the first read of a new activation.

        An epoch is announced once. A coordination store that loses its memory between a lease and its announcement
        gives the same epoch again: then the first to announce it has it.

        Raises:
            Deleted: A deletion has begun and not yet been forgotten.
            Fenced: This epoch, or a later one, has been announced.
        """
        ...

    async def append(self, key: SessionKey, epoch: int, path: str, content: str, *, durable: bool = True) -> None:
        """Add to the end of a file, creating it and its parents. Cost: the new bytes, not the file.

        Args:
            durable: With ``False`` a power failure may take it back, until something durable is written after it.
        """
        ...

    async def write(self, key: SessionKey, epoch: int, path: str, content: str) -> None:
        """Replace a file, creating it and its parents."""
        ...

    async def mkdir(self, key: SessionKey, epoch: int, path: str, *, recursive: bool) -> None: ...

    async def remove(self, key: SessionKey, epoch: int, path: str, *, recursive: bool, force: bool) -> None: ...

    async def rename(self, key: SessionKey, epoch: int, source: str, target: str) -> None: ...

    async def read(self, key: SessionKey, path: str) -> str: ...

    async def stat(self, key: SessionKey, path: str) -> FileInfo: ...

    async def listdir(self, key: SessionKey, path: str) -> list[tuple[str, FileInfo]]:
        """Names and kinds of what is in a directory, by name."""
        ...

    async def total_bytes(self, key: SessionKey) -> int: ...

    async def sessions(self, after: SessionKey | None = None, limit: int = 100) -> list[SessionKey]:
        """Sessions of which anything is stored, in an order of the store's own, behind `after`: for the search for what
        a deletion that was cut short has left behind."""
        ...

    async def delete_session(self, key: SessionKey, epoch: int, created_at: float) -> None:
        """Remove every file, and mark the session as deleted: nobody can announce an epoch until the mark is removed.

        Args:
            epoch: The announced one. A deletion that was begun before may be begun again, by anybody, in its own epoch
                or a later one.
            created_at: Which session is meant, should its id be used again.

        Raises:
            Fenced: Somebody newer has taken the session, or its deletion, over.
            Deleted: Another session under this id is marked.
        """
        ...

    async def forget_session(self, key: SessionKey, epoch: int) -> bool:
        """Remove all that is stored under this key, the mark too, if this is its epoch. ``False``: it is not."""
        ...


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has left a lock in a session's directory."""

    pid: int
    #: It lives, and has the session loaded. Known on the same machine, and where the volume passes `flock` on.
    alive: bool


class SharedVolume(Protocol):
    """What there is beside the files where Copilot CLI servers write them themselves.

    All methods raise `StoreUnavailable` when the volume can not be used.
    """

    def directory(self, tenant: str) -> Path:
        """What the servers of a tenant have as their `session-state`, as this node sees it."""
        ...

    async def holders(self, key: SessionKey) -> list[Holder]: ...

    async def clear_stale(self, key: SessionKey) -> int:
        """Remove the locks of processes that are no more. Returns of how many."""
        ...

    async def check_sight(self, tenant: str, sees: Callable[[str], Awaitable[bool]]) -> bool:
        """Whether somebody sees what lies in the tenant's directory.

        Args:
            sees: Asks whether there is a session of this id.
        """
        ...
