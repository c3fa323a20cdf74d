"""What a process uses, as the operating system tells it. Takes milliseconds: call it in a thread."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

#: It has gone, or is not ours to look at; or we cannot look at anything now, because too many files are open.
_UNTOLD = (psutil.Error, OSError)


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """``None``: this system does not tell."""

    #: Proportional set size of the process and all that it has started, in bytes: what would be free without them.
    memory: int | None = None
    descriptors: int | None = None
    #: Descriptors that the process may have.
    descriptor_limit: int | None = None
    children: int | None = None


def process_uses(pids: Collection[int]) -> dict[int, ProcessUse]:
    """What each process uses at this moment. Those that have gone are left out.

    All at once, because finding children means to look at every process of the machine.
    """
    families = _families(pids)
    uses = {}
    for pid in pids:
        with contextlib.suppress(*_UNTOLD):
            process, family = psutil.Process(pid), families.get(pid, [])
            memory = memory_of(process)
            if memory is not None:
                memory += sum(memory_of(child) or 0 for child in family)
            uses[pid] = ProcessUse(memory, *_descriptors(process), len(family))
    return uses


def _families(pids: Collection[int]) -> dict[int, list[psutil.Process]]:
    """By pid: the processes that it has started, and those that these have."""
    children: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter(["ppid"]):
        children.setdefault(process.info["ppid"], []).append(process)

    def descend(pid: int) -> list[psutil.Process]:
        return [found for child in children.get(pid, []) for found in (child, *descend(child.pid))]

    return {pid: descend(pid) for pid in pids}


def memory_of(process: psutil.Process) -> int | None:
    """PSS where the kernel tells it (Linux: `smaps_rollup`, about 2 ms for a runtime), else RSS."""
    with contextlib.suppress(*_UNTOLD):
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.rss))
    with contextlib.suppress(*_UNTOLD):  # one may see less of a process than that it is there
        return int(process.memory_info().rss)
    return None


def _descriptors(process: psutil.Process) -> tuple[int | None, int | None]:
    with contextlib.suppress(*_UNTOLD, AttributeError):
        return process.num_fds(), process.rlimit(psutil.RLIMIT_NOFILE)[0]
    return None, None


def rss_of(pid: int) -> int:
    """Resident bytes of the process alone; 0 when it has gone, or cannot be looked at."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except _UNTOLD:
        return 0


def cpu_seconds(pid: int) -> float:
    """Processor time of the process alone, user and system; 0 when it has gone, or cannot be looked at."""
    try:
        times = psutil.Process(pid).cpu_times()
    except _UNTOLD:
        return 0.0
    return float(times.user + times.system)


def oom_kills() -> int:
    """Processes that the kernel has killed for want of memory since it was started; 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
