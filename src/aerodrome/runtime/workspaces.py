"""The workspaces: a directory for each user, which outlives runtimes and sessions, and ends with the user's last one.

Names of tenants and users are not names of files: a directory is called after a digest of them, with what is harmless
of the names in front for whoever looks, and `owner.json` beside the files says whose it is.

A runtime holds a shared lock on its user's directory for as long as it runs, whichever process started it; who removes
it needs the lock for itself. What is removed is given another name first, so that a runtime that comes at that moment
finds no directory, or a new one, and never half of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from aerodrome._util.trees import remove_tree
from aerodrome.model import RuntimeKey

log = structlog.get_logger(__name__)

_OWNER, _FILES, _LOCK = "owner.json", "files", "lock"
#: How the names of directories begin that are being made, and removed.
_NEW, _GONE = ".new-", ".gone-"
#: Seconds after which one that is being made is taken for left over.
_ABANDONED = 3600.0


@dataclass(frozen=True, slots=True)
class Workspace:
    """A user's directory, locked against removal until it is released."""

    files: Path
    _lock: int

    def release(self) -> None:
        os.close(self._lock)


class Workspaces:
    """All calls touch the disk: from an event loop, make them in a thread.

    Args:
        root: Of this node alone, or shared by several that see the same files.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, owner: RuntimeKey) -> Path:
        return self.root / _name(owner)

    def open(self, owner: RuntimeKey) -> Workspace:
        """The user's workspace, made if there is none. Raises `OSError`."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.directory(owner)
        while True:
            if not path.is_dir():
                self._make(owner, path)
            with contextlib.suppress(FileNotFoundError):  # it has just been removed
                if (lock := _lock(path, fcntl.LOCK_SH)) is not None:
                    return Workspace(path / _FILES, lock)

    def owners(self) -> Iterator[RuntimeKey]:
        """Whose workspaces are here."""
        for path in self._directories(""):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                about = json.loads((path / _OWNER).read_text())
                yield RuntimeKey(str(about["tenant"]), str(about["user"]))

    def remove(self, owner: RuntimeKey) -> bool:
        """``False``: it is in use, and stays. Raises `OSError`."""
        path = self.directory(owner)
        try:
            lock = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except BlockingIOError:
            return False
        if lock is None:
            return True  # somebody has just removed it
        try:
            gone = path.with_name(_GONE + secrets.token_hex(8))
            path.rename(gone)
        finally:
            os.close(lock)
        remove_tree(gone)
        return True

    def tidy(self) -> None:
        """Remove what a process has left that was killed while it made or removed a workspace."""
        abandoned = time.time() - _ABANDONED
        for path in self._directories(_GONE, _NEW):
            with contextlib.suppress(OSError):
                if path.name.startswith(_GONE) or path.stat().st_mtime < abandoned:
                    remove_tree(path)

    def _directories(self, *beginnings: str) -> list[Path]:
        try:
            found = sorted(self.root.iterdir())
        except FileNotFoundError:
            return []
        wanted = tuple(beginning for beginning in beginnings if beginning)
        return [
            path
            for path in found
            if path.is_dir()
            and not path.is_symlink()
            and (path.name.startswith(wanted) if wanted else not path.name.startswith("."))
        ]

    def _make(self, owner: RuntimeKey, path: Path) -> None:
        new = self.root / (_NEW + secrets.token_hex(8))
        (new / _FILES).mkdir(parents=True, mode=0o700)
        (new / _LOCK).touch(mode=0o600)
        (new / _OWNER).write_text(json.dumps({"tenant": owner.tenant, "user": owner.user}) + "\n")
        try:
            # Complete, or not there: nobody sees one without an owner.
            new.rename(path)
        except OSError:
            remove_tree(new)
            if not path.is_dir():
                raise  # else somebody else has made it


def _name(owner: RuntimeKey) -> str:
    digest = hashlib.sha256(json.dumps([owner.tenant, owner.user]).encode()).hexdigest()[:32]
    readable = [re.sub(r"[^A-Za-z0-9_-]", "_", name or "")[:40] for name in owner]
    return "-".join([*readable, digest]).lstrip("-.")


def _lock(path: Path, kind: int) -> int | None:
    """A descriptor that holds the lock; ``None``: the directory has gone, or is another one, meanwhile.

    A file has it and not the directory, because some network file systems lock only what is open for writing.
    """
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        opened = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        fcntl.flock(opened, kind)
        if os.path.samestat(os.fstat(opened), (path / _LOCK).stat(follow_symlinks=False)):
            return opened
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(opened)
        raise
    os.close(opened)
    return None
