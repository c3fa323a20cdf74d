"""What the machine, or the container, has left. Cheap enough for the event loop: some small files."""

from __future__ import annotations

from pathlib import Path

import psutil

from aerodrome.runtime.demand import Headroom

_CGROUPS = Path("/sys/fs/cgroup")


def read_headroom() -> Headroom:
    """Memory that is available to us, and how busy the processors were since the last reading."""
    available = int(psutil.virtual_memory().available)
    limited = cgroup_available()
    return Headroom(
        available if limited is None else min(available, limited), psutil.cpu_percent(interval=None) / 100.0
    )


def cgroup_available(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes left below the lowest memory limit of our control groups (version 2); ``None``: there is none."""
    try:
        line = next(line for line in own.read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    group = root / line.removeprefix("0::").strip().lstrip("/")
    left = [_left(path) for path in (group, *group.parents) if path == root or root in path.parents]
    return min((value for value in left if value is not None), default=None)


def _left(group: Path) -> int | None:
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    # The page cache is given back when somebody needs it.
    return max(0, int(limit) - used + int(stat.get("inactive_file", 0)))
