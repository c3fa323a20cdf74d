"""Where the files of a session are on a volume, and what there is beside them (`volume`).

What is in a tenant's directory is written by people whom nobody trusts: by the tools of its servers, if not by who runs
them. So all of it is reached by way of `beneath`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aerodrome._util.surrogates import to_blob
from aerodrome._util.trees import clear_tree
from aerodrome.errors import Conflict, StoreUnavailable
from aerodrome.model import SessionKey
from aerodrome.statestore.backends import beneath
from aerodrome.statestore.backends.beneath import Astray, descend, look
from aerodrome.statestore.backends.common import os_error, parse
from aerodrome.statestore.provider import STATE_PATH

_OWN = ".aerodrome"
#: What the runtime leaves beside a session's files to tell others that it is there; no content of the session.
LOCK = re.compile(r"inuse\.(\d{1,10})\.(lock|hold)|\.workspace-fork\.lock")
_OPERATION_LOCKS = ".session-operation-locks"
#: Levels below a session. Each is opened by itself on the way to a file.
_DEEPEST = 100
#: Seconds that a removal may take before the rest is left to the next.
REMOVED_WITHIN = 20.0


class Places:
    """The methods raise `OSError`, and those of `beneath`.

    Args:
        path: Of the volume, for messages.
        root: A descriptor of its directory, which is open as long as the methods are used.
    """

    def __init__(self, path: Path, root: int) -> None:
        self._path = path
        self._root = root

    @contextmanager
    def tenant(self, tenant: str, *, make: bool = False) -> Iterator[int]:
        """The tenant's directory. It is the operator's, and may be a link to a share; what is in it is not.

        Raises:
            FileNotFoundError: There is none yet.
        """
        if make:
            with suppress(FileExistsError):
                os.mkdir(tenant, 0o700, dir_fd=self._root)
        try:
            descriptor = os.open(tenant, beneath.DIRECTORY, dir_fd=self._root)
        except OSError as error:
            absent = isinstance(error, FileNotFoundError) and not beneath.exists(self._root, tenant)
            if absent or isinstance(error, PermissionError):
                raise
            raise StoreUnavailable(f"{self._path / tenant} cannot be used: {error.strerror}; is it mounted?") from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def at(self, key: SessionKey, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The directory that a file of the session is in, and its name there.

        Args:
            make: Directories above it are made.

        Raises:
            Conflict: The session's directory is not one of ours.
            Astray: It is none, or something on the way is a link or the like.
        """
        names = _names(key, path)
        with self.tenant(key.tenant, make=make) as tenant:
            session = look(tenant, key.id)
            if not _is_claimed(tenant, key):
                if session is not None:
                    raise Conflict("the volume has files under this id that belong to no session of this host")
                if make:
                    with descend(tenant, [_OWN, key.id], make=True):
                        pass
            elif session is not None and not stat.S_ISDIR(session.st_mode):
                raise Astray(key.id)
            with descend(tenant, names[:-1], make=make) as parent:
                yield parent, names[-1]

    def claim(self, key: SessionKey) -> None:
        with self.tenant(key.tenant, make=True) as tenant:
            if not beneath.exists(tenant, key.id):
                with descend(tenant, [_OWN, key.id], make=True):
                    pass

    def erase(self, key: SessionKey, *, claim: bool) -> None:
        with suppress(FileNotFoundError), self.tenant(key.tenant) as tenant:
            if not _is_claimed(tenant, key):
                return  # it is not ours
            beneath.remove(tenant, key.id, within=REMOVED_WITHIN)
            with suppress(FileNotFoundError, NotADirectoryError, Astray), descend(tenant, [_OPERATION_LOCKS]) as locks:
                beneath.remove(locks, f"{key.id}.lock", within=REMOVED_WITHIN)
            # The claim goes last: a deletion that was cut short finds it again.
            with descend(tenant, [_OWN]) as own:
                if claim:
                    beneath.remove(own, key.id, within=REMOVED_WITHIN)
                else:
                    with suppress(NotADirectoryError):
                        clear_tree(key.id, own, within=REMOVED_WITHIN)

    def total_bytes(self, key: SessionKey) -> int:
        with suppress(FileNotFoundError), self.tenant(key.tenant) as tenant:
            roots = ((key.id,), (_OWN, key.id))
            return sum(sum(beneath.sizes(tenant, root, _is_content, levels=_DEEPEST)) for root in roots)
        return 0

    def locks(self, key: SessionKey) -> list[tuple[int, bool]]:
        """The processes that have left a lock in the session's directory, and whether they live."""
        with suppress(FileNotFoundError), self._session(key) as directory:
            return [(pid, held) for pid, held, _ in _locks(directory)]
        return []

    def clear_stale(self, key: SessionKey) -> int:
        """Remove the locks of processes that are no more. Returns of how many."""
        with suppress(FileNotFoundError), self._session(key) as directory:
            stale = [names for _, held, names in _locks(directory) if not held]
            for name in (name for names in stale for name in names):
                beneath.remove(directory, name, within=REMOVED_WITHIN)
            return len(stale)
        return 0

    @contextmanager
    def _session(self, key: SessionKey) -> Iterator[int]:
        with self.at(key, STATE_PATH) as (parent, name), descend(parent, [name]) as directory:
            yield directory


def _locks(directory: int) -> list[tuple[int, bool, list[str]]]:
    """By process: whether it lives, and what it has left."""
    by_pid: dict[int, list[str]] = {}
    for name in os.listdir(directory):
        if (found := LOCK.fullmatch(name)) and found[1]:
            by_pid.setdefault(int(found[1]), []).append(name)
    return [(pid, any(_is_held(directory, name) for name in names), names) for pid, names in sorted(by_pid.items())]


def _names(key: SessionKey, path: str) -> list[str]:
    """Where a file of the session is in the tenant's directory."""
    parse(path)
    names = [name for name in os.fsdecode(to_blob(path)).split("/") if name]
    if len(names) > _DEEPEST:
        raise os_error(errno.ENAMETOOLONG, path)
    return [key.id, *names[1:]] if f"/{names[0] if names else ''}" == STATE_PATH else [_OWN, key.id, *names]


def is_root(path: str) -> bool:
    return path in ("/", STATE_PATH)


def is_outermost(path: str) -> bool:
    """Whether it is in a directory that is always there."""
    return path.rpartition("/")[0] in ("", STATE_PATH)


def _is_content(name: str) -> bool:
    return not LOCK.fullmatch(name)


def _is_claimed(tenant: int, key: SessionKey) -> bool:
    """Whether the session is ours. Raises `Astray` when what says so has been replaced."""
    try:
        with descend(tenant, [_OWN]) as own:
            return beneath.exists(own, key.id)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        raise Astray(_OWN) from None


def _is_held(directory: int, name: str) -> bool:
    """Whether a living process has the lock: its end gives it back, however it came."""
    try:
        descriptor = beneath.open_file(directory, name, os.O_RDONLY)
    except (OSError, Astray):
        return False  # gone at this moment, or no lock
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
