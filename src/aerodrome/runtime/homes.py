"""The directory of runtime homes, shared by the aerodrome processes of one machine.

Each process has its own part and holds a lock on it while it lives. At its start it clears the parts of those that
are dead: their runtimes died with them (parent-death signal), but what a runtime had started may not have, and homes
hold what users' tools have written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import IO, Self

import psutil
import structlog

log = structlog.get_logger(__name__)


class Homes:
    """Use as a context manager; `path` is this process's part."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.path = root / f"node-{os.getpid()}-{secrets.token_hex(4)}"
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The lock is taken on a hidden name first: a directory that can be seen is locked already.
        self._lock = self._lock_path(self.path).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path.mkdir(mode=0o700)
        for other in self._root.glob("node-*"):
            if other != self.path and other.is_dir():
                self._clear_if_dead(other)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock_path(self.path).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def _lock_path(self, part: Path) -> Path:
        return part.with_name(f".{part.name}.lock")

    def _clear_if_dead(self, part: Path) -> None:
        try:
            lock = self._lock_path(part).open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ended = kill_leftovers(part)
                shutil.rmtree(part, ignore_errors=True)
                self._lock_path(part).unlink(missing_ok=True)
                log.info("homes.cleared", part=part.name, killed=ended)
            finally:
                lock.close()
        except BlockingIOError:
            pass  # its process lives
        except OSError as error:
            log.warning("homes.not_cleared", part=part.name, error=str(error))


def kill_leftovers(part: Path) -> int:
    """End the processes that were started by runtimes at home here, known by their environment."""
    ended = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            home = process.environ().get("COPILOT_HOME", "")
            if home.startswith(f"{part}/") and process.pid != os.getpid():
                process.kill()
                ended += 1
    return ended
