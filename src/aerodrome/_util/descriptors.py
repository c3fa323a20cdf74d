"""How many files this process may have open."""

from __future__ import annotations

import contextlib
import resource

#: As many as the units of `deploy/systemd` give. Not all that there may be: where that is a billion, programs that
#: walk over their descriptors take minutes.
WANTED = 1 << 16


def allow_many() -> int:
    """Raise this process's limit as far as it may, up to `WANTED`; returns the limit. Each client, each runtime and
    each connection of a sandbox is one or more, and what login shells and many containers give is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has another limit for all
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
