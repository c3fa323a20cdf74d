"""Removing a directory that somebody has filled who wishes us ill.

No link is followed, and neither depth nor permissions stop it. `shutil.rmtree` recurses, and holds a descriptor for
each level; here each level is moved up beside the first before it is looked into, so that there are only ever two.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

#: Names of a directory that are held at a time.
_AT_ONCE = 10_000


def remove_tree(root: Path | str, dir_fd: int | None = None, *, within: float = math.inf) -> None:
    """Remove the directory with all that is in it.

    Whoever is still at work in it can keep it from being removed, and leads us nowhere else.

    Args:
        dir_fd: Of the directory that `root` is relative to.
        within: Seconds, for a directory that somebody may fill as fast as it is emptied.

    Raises:
        OSError: Not all of it could be removed; `TimeoutError`: within the time.
    """
    deadline = monotonic() + within
    while True:
        _clear(root, dir_fd, deadline)
        try:
            os.rmdir(root, dir_fd=dir_fd)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or within == math.inf:
                raise


def clear_tree(root: Path | str, dir_fd: int | None = None, *, within: float = math.inf) -> None:
    """As `remove_tree`; the directory itself stays."""
    _clear(root, dir_fd, monotonic() + within)


def _clear(root: Path | str, dir_fd: int | None, deadline: float) -> None:
    top = _open(str(root), dir_fd)
    try:
        moved = 0
        for name in _left(top, deadline):
            if not _is_directory(name, top):
                _unlink(name, top)
                continue
            directory = _open(name, top)
            try:
                moved = _empty(directory, top, moved, deadline)
            finally:
                os.close(directory)
            try:
                os.rmdir(name, dir_fd=top)
            except OSError as error:
                # Filled again meanwhile: it is found again.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or deadline == math.inf:
                    raise
    finally:
        os.close(top)


def _empty(directory: int, top: int, moved: int, deadline: float) -> int:
    """Files go; directories come up. Returns how many have so far, which is where their names come from."""
    for name in _left(directory, deadline):
        if not _is_directory(name, directory):
            _unlink(name, directory)
            continue
        # A directory that may not be written to cannot be moved: its `..` changes.
        os.close(_open(name, directory))
        while True:
            moved += 1
            try:
                # Never into an existing one that is empty: it may be one that a caller is looking into.
                if not _exists(f".removed-{moved}", top):
                    os.rename(name, f".removed-{moved}", src_dir_fd=directory, dst_dir_fd=top)
                    break
            except FileExistsError:
                continue
    return moved


def _left(directory: int, deadline: float) -> Iterator[str]:
    """What is in it, until there is nothing. Whoever asks for the next has removed the one before."""
    while names := _some(directory):
        for name in names:
            if monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "it is filled as fast as it is emptied, or takes too long")
            yield name


def _some(directory: int) -> list[str]:
    """Names of what is left in it. Not all: millions of them are hundreds of megabytes."""
    with os.scandir(directory) as entries:
        return [entry.name for entry in itertools.islice(entries, _AT_ONCE)]


def _is_directory(name: str, directory: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False  # its owner was faster


def _unlink(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _open(name: str, directory: int | None = None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        opened = os.open(name, flags, dir_fd=directory)
    except PermissionError:
        _unlock(name, directory)
        opened = os.open(name, flags, dir_fd=directory)
    try:
        if stat.S_IMODE(os.fstat(opened).st_mode) & 0o700 != 0o700:
            os.fchmod(opened, 0o700)
    except BaseException:
        os.close(opened)
        raise
    return opened


def _unlock(name: str, directory: int | None) -> None:
    """Not by its name: a link may have taken its place, and `chmod` would follow it."""
    found = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.chmod(f"/proc/self/fd/{found}", 0o700)
    finally:
        os.close(found)
