"""The session-file store: the small file system in which the CLI keeps a session.

Files belong to a session and are named by a normalised absolute path inside it ("/state/events.jsonl").
Every write names the epoch of the activation that makes it. An activation announces its epoch with `raise_epoch`
before it reads or writes; the store keeps the highest epoch announced for each session and refuses a write of any
other **in the same transaction as the write**, so that a node that was paused past its lease and wakes up cannot
fork a history, whatever its clock says (trap 8). A session without an announced epoch, which is also one that was
deleted, takes no writes at all: a late writer cannot bring a deleted session back.

Content is text: that is what the CLI writes as long as the capability `binary` is not declared (docs/facts.md,
"Session files").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aerodrome.model import SessionKey


@dataclass(frozen=True, slots=True)
class FileInfo:
    is_directory: bool
    #: Bytes of the content in UTF-8; 0 for a directory.
    size: int
    #: Unix seconds.
    modified_at: float
    created_at: float


class SessionFileStore(Protocol):
    """All methods raise `StoreUnavailable` when the store can not be used (locked, full, away).

    Writing methods raise `Fenced` when `epoch` is not the announced one, and `TooLarge` when a file or
    the session's total would pass its limit; neither leaves anything changed. Reading methods raise
    `FileNotFoundError`, `IsADirectoryError` and `NotADirectoryError` as the operating system would.
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
            Fenced: This epoch, or a later one, has been announced.
        """
        ...

    async def append(self, key: SessionKey, epoch: int, path: str, content: str) -> None:
        """Add to the end of a file, creating it and its parents. Cost: the new bytes, not the file."""
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

    async def delete_session(self, key: SessionKey) -> bool:
        """Remove every file *and* the epoch row. Nothing of the session remains. ``False``: there was nothing."""
        ...
