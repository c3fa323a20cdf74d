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
import time
from pathlib import Path
from typing import IO, Self

import psutil
import structlog

from aerodrome._util.trees import remove_tree

log = structlog.get_logger(__name__)

#: Seconds for what somebody may fill as fast as it is emptied.
_ERASING = 60.0
#: Looks for processes to end. Whoever starts others faster than that goes on.
_LOOKS = 20
#: Seconds in which an `exec` has come far enough for the new environment to be seen.
_EXEC = 0.01
#: Parent of the kernel's own threads, which never have an environment.
_KTHREADD = 2
#: How the name of each process's part begins.
_PART = "node-"


class Homes:
    """Use as a context manager; `path` is this process's part."""

    def __init__(self, root: Path) -> None:
        # Absolute: the path is in the environment of runtimes, which have another working directory, and is
        # recognised there by a later process that may spell the root differently.
        self._root = root.resolve()
        self.path = self._root / f"{_PART}{os.getpid()}-{secrets.token_hex(4)}"
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The lock is taken on a hidden name first: a directory that can be seen is locked already.
        self._lock = self._lock_path(self.path).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path.mkdir(mode=0o700)
        for other in self._root.glob(f"{_PART}*"):
            if other != self.path and other.is_dir():
                self._clear_if_dead(other)
        return self

    def __exit__(self, *_: object) -> None:
        erase(self.path)
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
                erase(part)
                self._lock_path(part).unlink(missing_ok=True)
                log.info("homes.cleared", part=part.name, killed=ended)
            finally:
                lock.close()
        except BlockingIOError:
            pass  # its process lives
        except OSError as error:
            log.warning("homes.not_cleared", part=part.name, error=str(error))


def has_home(part: Path, runtime_id: str) -> bool:
    """Whether a runtime of this process, or of another one that shares the directory, has a home."""
    return any((p / runtime_id).exists() for p in (part, *part.parent.glob(f"{_PART}*")))


def kill_leftovers(directory: Path) -> int:
    """End the processes whose `COPILOT_HOME` is somewhere in the directory: what runtimes at home there have
    started, also when it has left their process group. Returns how many there were. Blocks."""
    ended: set[psutil.Process] = set()
    unsettled: set[psutil.Process] = set()
    for _ in range(_LOOKS):
        found, bare = _processes_at_home(directory)
        if not (found - ended) and bare <= unsettled:
            break
        for process in found - ended:
            with contextlib.suppress(psutil.Error):
                process.kill()
        # And again: what they have started since we looked is not among them.
        ended |= found
        if bare - unsettled:
            time.sleep(_EXEC)
        unsettled = bare
    return len(ended)


def _processes_at_home(directory: Path) -> tuple[set[psutil.Process], set[psutil.Process]]:
    """Those of which it is known, and those without an environment: among them who is about to become another program,
    which has none for a moment."""
    found, bare = set(), set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get("COPILOT_HOME", "").startswith(f"{directory}/") and process.pid != os.getpid():
                found.add(process)
            elif not environment and _KTHREADD not in (process.pid, process.ppid()):
                bare.add(process)
    return found, bare


def erase(directory: Path) -> None:
    """Remove a directory with all that is in it, however deep a tool has made it or whatever it has locked; what cannot
    be removed stays."""
    try:
        remove_tree(directory, within=_ERASING)
    except FileNotFoundError:
        return
    except OSError:
        with contextlib.suppress(RecursionError):
            shutil.rmtree(directory, ignore_errors=True)  # goes on behind what it cannot remove
