"""What a process uses, as the operating system tells it. Takes milliseconds: call it in a thread."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """``None``: this system does not tell."""

    #: Proportional set size of the process and all that it has started, in bytes: what would be free without them.
    memory: int | None = None
    descriptors: int | None = None
    #: Descriptors that the process may have.
    descriptor_limit: int | None = None
    children: int | None = None


def process_use(pid: int) -> ProcessUse:
    """What a process uses at this moment; nothing of one that has gone."""
    try:
        process = psutil.Process(pid)
        children = process.children(recursive=True)
        memory = memory_of(process)
        if memory is not None:
            memory += sum(memory_of(child) or 0 for child in children)
        return ProcessUse(memory, *_descriptors(process), len(children))
    except psutil.Error:
        return ProcessUse()


def memory_of(process: psutil.Process) -> int | None:
    """PSS where the kernel tells it (Linux: `smaps_rollup`, about 2 ms for a runtime), else RSS."""
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.rss))
    except psutil.Error:
        return None


def _descriptors(process: psutil.Process) -> tuple[int | None, int | None]:
    with contextlib.suppress(psutil.Error, AttributeError, OSError):
        return process.num_fds(), process.rlimit(psutil.RLIMIT_NOFILE)[0]
    return None, None


def cpu_seconds(pid: int) -> float:
    """Processor time of the process alone, user and system; 0 when it has gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def oom_kills() -> int:
    """Processes that the kernel has killed for want of memory since it was started; 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
