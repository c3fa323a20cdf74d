"""How a runtime came to its end, from what is left of it. Pure.

It matters for blame: a session that makes a runtime end itself does so again, in the next one. Somebody's `kill -9`, or
an end that we have asked for, says nothing about any session.
"""

from __future__ import annotations

import signal
from enum import StrEnum


class Death(StrEnum):
    #: It ended by itself: a fatal error, a signal of its own making, an exit nobody has asked for.
    CRASHED = "crashed"
    #: It had no memory left.
    MEMORY = "memory"
    #: The kernel has killed it, because the machine or the container had no memory left: whoever has taken it.
    SHORTAGE = "shortage"
    #: It was at work and answered no ping.
    STUCK = "stuck"
    #: By us, or by somebody else.
    OUTSIDE = "outside"


#: What V8, Rust, the C library and C++ say of it, in their last words.
_MEMORY_WORDS = ("out of memory", "allocation failed", "memory allocation of", "cannot allocate memory", "bad_alloc")
#: Signals that come from outside; the kernel's own killer sends the first.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def death_of(exit_code: int | None, said: str, *, oom_kills: int = 0) -> Death:
    """
    Args:
        exit_code: As `subprocess` tells it, negative for a signal; ``None``: it had to be ended by us.
        said: The last of its output.
        oom_kills: Processes that the kernel has killed for want of memory since its latest sign of life.
    """
    if exit_code is None:
        return Death.OUTSIDE
    number = exit_code - 128 if exit_code > 128 else -exit_code  # a shell or a sandbox between tells it that way
    if number in _FROM_OUTSIDE:
        return Death.SHORTAGE if number == signal.SIGKILL and oom_kills else Death.OUTSIDE
    if exit_code == 0:
        return Death.OUTSIDE
    words = said.lower()
    return Death.MEMORY if any(word in words for word in _MEMORY_WORDS) else Death.CRASHED
