"""Files beneath a directory that somebody else fills, and may fill with traps.

A path is gone along name by name, each opened from the descriptor of the one before, and no link is followed: what was
looked at is what is used, whatever is moved meanwhile. What is neither a file nor a directory is not opened: a pipe
would hold up whoever opens it, a device does what devices do.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from aerodrome._util.trees import remove_tree
from aerodrome.errors import TooLarge

#: How a directory is opened that a link may lead to.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: A lease on a file, and a pipe that has slipped in, would hold up an `open` that waits.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PIECE = 1 << 20


class Astray(Exception):
    """What has this name is neither a file nor a directory but a link, a pipe, a device; or a file where a directory
    has to be."""


@contextmanager
def descend(at: int, names: Sequence[str], *, make: bool = False) -> Iterator[int]:
    """The directory that the names lead to from `at`, open within the block.

    Args:
        make: What is missing is made.

    Raises:
        Astray: It leads through a link.
        FileNotFoundError, NotADirectoryError: As `open` does.
    """
    current = os.dup(at)
    try:
        for name in names:
            below = _enter(current, name, make=make)
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def _enter(at: int, name: str, *, make: bool) -> int:
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=at)
    try:
        return os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            look(at, name)  # says so if it is a link
        raise


def look(at: int, name: str) -> os.stat_result | None:
    """The file or directory; ``None`` when there is nothing. Raises `Astray` for anything else."""
    try:
        found = os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not _is_content(found):
        raise Astray(name)
    return found


def exists(at: int, name: str) -> bool:
    """Whether there is anything of that name."""
    try:
        os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def open_file(at: int, name: str, flags: int) -> int:
    """A descriptor of the file.

    Raises:
        Astray: It is neither a file nor a directory.
        FileNotFoundError, IsADirectoryError: As `open` does.
    """
    look(at, name)
    try:
        descriptor = os.open(name, flags | _FILE, 0o600, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Astray(name) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        raise Astray(name)
    return descriptor


def read(at: int, name: str, limit: int) -> bytearray:
    """Raises `TooLarge` without having read more than `limit` bytes, and otherwise as `open_file`."""
    descriptor = open_file(at, name, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        data = bytearray()
        while size <= limit and (piece := os.read(descriptor, _PIECE)):
            data += piece
            size = max(size, len(data))  # it may have grown, or on a network have more than we were told
    finally:
        os.close(descriptor)
    if size > limit:
        raise TooLarge(f"the file has {size} bytes; at most {limit} are read", limit=limit)
    return data


def append(at: int, name: str, data: bytes) -> None:
    """To the disk. Raises as `open_file`."""
    _write_all(open_file(at, name, os.O_WRONLY | os.O_APPEND | os.O_CREAT), data)


def replace(at: int, name: str, data: bytes) -> None:
    """In one piece: a reader on another machine sees the old file or the new one. Raises as `open_file`."""
    found = look(at, name)
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    fresh = f".aerodrome-{secrets.token_hex(8)}"
    try:
        _write_all(open_file(at, fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL), data)
        os.rename(fresh, name, src_dir_fd=at, dst_dir_fd=at)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh, dir_fd=at)
        raise


def _write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def entries(directory: int) -> Iterator[tuple[str, os.stat_result]]:
    """Files and directories in it; all else is passed over."""
    with os.scandir(directory) as found:
        for entry in found:
            with suppress(FileNotFoundError):  # it has just gone
                if _is_content(status := entry.stat(follow_symlinks=False)):
                    yield entry.name, status


def sizes(at: int, names: Sequence[str], counts: Callable[[str], bool], *, levels: int) -> Iterator[int]:
    """Bytes of each file in and below the directory that the names lead to.

    Args:
        counts: Whether a file of this name does.
        levels: How deep to look. Each directory is opened from the first: to do that for deep ones takes long.
    """
    left = [tuple(names)]
    while left:
        way = left.pop()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError, Astray), descend(at, way) as directory:
            for name, found in entries(directory):
                if not stat.S_ISDIR(found.st_mode):
                    if counts(name):
                        yield found.st_size
                elif len(way) - len(names) < levels:
                    left.append((*way, name))


def remove(at: int, name: str, *, within: float) -> None:
    """Whatever it is, with all that is in it, if it is there. Raises `OSError` when not all could be removed.

    Args:
        within: Seconds.
    """
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            remove_tree(name, at, within=within)
        else:
            os.unlink(name, dir_fd=at)
    except FileNotFoundError:
        return


def _is_content(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
