"""What a sandbox uses, as its keeper sees it: memory, descriptors, disk. Standard library only.

Whoever is in the sandbox chooses the names and the shape of all that is looked at here, and moves it meanwhile.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False  # `typing` is not needed to run, and takes its time to load
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

#: A tree nested deeper than this is walked without a descriptor for each level.
_DEEPEST = 200
#: Entries of a directory between two pauses of a walk.
_PIECE = 200
#: Descriptors of a process by which it cannot have many watches.
_FEW = 100
#: Bytes of the kernel for a semaphore.
_SEMAPHORE = 64
#: Lines of `/proc/PID/status`, in KiB: memory that is nobody else's, what of it is swapped out, and the tables for it;
#: and what is in huge pages, which are counted by themselves.
_OWN = (b"RssAnon:", b"VmSwap:", b"VmPTE:", b"HugetlbPages:")


class Over(Exception):
    """A limit has been passed."""


# --- memory ---


def memory(processes: Iterable[str], limit: int) -> int:
    """Bytes that the processes, as directories of `/proc`, have together.

    What several share is counted for each of them, unless that alone would pass the limit: telling exactly takes time.
    """
    own = shared = 0
    sharing = []
    for process in processes:
        figures = _figures(f"{process}/status", (*_OWN, b"RssShmem:"))
        own += sum(figures.get(name, 0) for name in _OWN)
        if taken := figures.get(b"RssShmem:", 0):
            shared += taken
            sharing.append(process)
    if own + shared > limit >= own:
        shared = sum(_figures(f"{process}/smaps_rollup", (b"Pss_Shmem:",)).get(b"Pss_Shmem:", 0) for process in sharing)
    return own + shared


def _figures(path: str, wanted: tuple[bytes, ...]) -> dict[bytes, int]:
    """Figures of a file of `/proc`, in bytes. By whole lines: the process's name, which it chooses, is in one."""
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    return {
        words[0]: int(words[1]) << 10 for words in map(bytes.split, lines) if len(words) == 3 and words[0] in wanted
    }


def in_segments() -> int:
    """Bytes in what System V has for processes of the present namespace to share; it stays when they have ended."""
    return (
        sum(int(row[14]) + int(row[15]) for row in _rows("shm"))
        + sum(int(row[3]) for row in _rows("msg"))
        + sum(int(row[3]) * _SEMAPHORE for row in _rows("sem"))
    )


def _rows(kind: str) -> list[list[str]]:
    try:
        with open(f"/proc/sysvipc/{kind}") as file:
            return [line.split() for line in file.read().splitlines()[1:]]
    except OSError:
        return []  # a kernel without


def occupied(file_system: int) -> int:
    """Bytes of a file system in memory."""
    about = os.fstatvfs(file_system)
    return (about.f_blocks - about.f_bfree) * about.f_frsize


# --- descriptors ---


def descriptors(processes: Iterable[str]) -> int:
    """How many the processes have open. Sockets and pipes hold memory of the kernel, which is counted nowhere else."""
    return sum(_open_in(process) for process in processes)


def _open_in(process: str) -> int:
    try:
        # Linux has the number there from 6.2 on.
        return os.stat(f"{process}/fd").st_size or len(os.listdir(f"{process}/fd"))
    except OSError:
        return 0


def watches(processes: Iterable[str], most: int) -> int:
    """How many descriptors are watched by epoll, up to a little more than `most`: each by each is a product, and the
    kernel has a number of them for an account. Those of processes with few descriptors are few, and not counted."""
    found = 0
    for process in processes:
        if _open_in(process) <= _FEW:
            continue
        try:
            for name in os.listdir(f"{process}/fd"):
                if os.readlink(f"{process}/fd/{name}") == "anon_inode:[eventpoll]":
                    with open(f"{process}/fdinfo/{name}", "rb") as file:
                        found += file.read().count(b"tfd:")
                if found > most:
                    return found
        except OSError:
            continue  # it has just ended, or closed one
    return found


def unlinked(processes: Iterable[str], device: int) -> int:
    """Bytes of files of a disk that have no name any more and are kept by being open."""
    found: dict[int, int] = {}
    for process in processes:
        try:
            for name in os.listdir(f"{process}/fd"):
                about = os.stat(f"{process}/fd/{name}")
                if about.st_dev == device and about.st_nlink == 0 and stat.S_ISREG(about.st_mode):
                    found[about.st_ino] = about.st_blocks * 512
        except OSError:
            continue  # it has just ended, or closed one
    return sum(found.values())


# --- disk ---


def measure(tree: int) -> int:
    """Bytes that a directory takes on its disk. Raises `Over`."""
    used = 0
    for so_far in walk(tree):
        used = so_far
    return used


def walk(tree: int) -> Iterator[int]:
    """The bytes of a directory found so far, again and again until all are; no link is followed, none counted twice.

    Raises:
        Over: It is moved about so deep down that it cannot be told.
    """
    links: set[tuple[int, int]] = set()
    used = 0
    here = os.dup(tree)
    #: The directories above: a descriptor, if not too deep; what it is; the directories in it that are still to come.
    above: list[tuple[int | None, tuple[int, int], list[str]]] = []
    try:
        names: list[str] = []
        used = yield from _files(here, used, links, names)
        while True:
            if names:
                below = _open(names.pop(), here)
                if below is None:
                    continue  # it has just gone, or become something else
                about = os.fstat(here)
                if len(above) < _DEEPEST:
                    above.append((here, (about.st_dev, about.st_ino), names))
                else:
                    above.append((None, (about.st_dev, about.st_ino), names))
                    os.close(here)
                here, names = below, []
                used = yield from _files(here, used, links, names)
            elif above:
                descriptor, known, names = above.pop()
                if descriptor is None:
                    descriptor = _parent(here, known)
                os.close(here)
                here = descriptor
            else:
                yield used
                return
    finally:
        os.close(here)
        for descriptor, _, _ in above:
            if descriptor is not None:
                os.close(descriptor)


def _files(directory: int, used: int, links: set[tuple[int, int]], names: list[str]) -> Generator[int, None, int]:
    """Adds what is in a directory, a piece at a time, and returns it; the names of those below go into `names`."""
    entries = os.scandir(directory)
    with entries:
        for number, entry in enumerate(entries):
            if number % _PIECE == 0:
                yield used
            try:
                about = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # it has just gone
            if stat.S_ISDIR(about.st_mode):
                names.append(entry.name)
            elif about.st_nlink > 1:
                if (about.st_dev, about.st_ino) in links:
                    continue
                links.add((about.st_dev, about.st_ino))
            # An empty file or link takes an entry and an inode all the same.
            used += max(about.st_blocks * 512, 512)
    yield used
    return used


def _open(name: str, directory: int) -> int | None:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None


def _parent(directory: int, known: tuple[int, int]) -> int:
    """The directory above, if it still is that one: whoever moves one in it must not lead us out of the workspace."""
    found = _open("..", directory)
    if found is not None:
        about = os.fstat(found)
        if (about.st_dev, about.st_ino) == known:
            return found
        os.close(found)
    raise Over(f"directories that are more than {_DEEPEST} deep are moved while they are measured")
