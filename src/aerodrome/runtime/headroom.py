"""What the machine, or the container, has left. Cheap enough for the event loop: some small files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from aerodrome.runtime.demand import Headroom

_CGROUPS = Path("/sys/fs/cgroup")
#: Version 1 says "no limit" with the largest number of pages that there is.
_UNLIMITED = 1 << 60


def read_headroom() -> Headroom:
    """Memory that is available to us, and how busy the processors were since the last reading."""
    available = int(psutil.virtual_memory().available)
    limited = cgroup_available()
    return Headroom(
        available if limited is None else min(available, limited), psutil.cpu_percent(interval=None) / 100.0
    )


def cgroup_available(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes left below the lowest memory limit of our control groups, of either version; ``None``: there is none."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    left: list[int | None] = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:
            left += [_left(group, _VERSION_2) for group in _groups(root, path)]
        elif "memory" in controllers.split(","):
            left += [_left(group, _VERSION_1) for group in _groups(root / "memory", path)]
    return min((value for value in left if value is not None), default=None)


def _groups(root: Path, path: str) -> list[Path]:
    """The group and those that it is in. In a container the path may be that of the host, where only the root is ours:
    what is not there is passed over."""
    group = root / path.lstrip("/")
    return [each for each in (group, *group.parents) if each == root or root in each.parents]


@dataclass(frozen=True, slots=True)
class _Files:
    limits: tuple[str, ...]
    used: str
    #: In `memory.stat`: the page cache that is given back when somebody needs it.
    cache: str


#: Past `memory.high` the kernel slows a group down instead of giving it memory.
_VERSION_2 = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")
_VERSION_1 = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def _left(group: Path, files: _Files) -> int | None:
    limits = [limit for name in files.limits if (limit := _number(group / name)) is not None and limit < _UNLIMITED]
    used = _number(group / files.used)
    if not limits or used is None:
        return None
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        cache = int(stat.get(files.cache, 0))
    except (OSError, ValueError):
        cache = 0
    return max(0, min(limits) - used + cache)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # "max", too
