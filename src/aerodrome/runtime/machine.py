"""The life of a runtime as a table. Pure: no process, no clock, no loop.

A runtime is started for nobody (`starting`), proves that it can hold a session and is then `warm`. A claim gives
it to one user or tenant for the rest of its life (`claimed`): it is never handed on and never becomes warm again,
because what one tenant left in its memory or home must not meet another. One that is to be replaced or drained goes on
with what it has and gets no new session (`retiring`). `draining` ends in `stopped`. Whatever dies or hangs without
being asked to is `failed`; both ends are final, and a replacement is another runtime.
"""

from __future__ import annotations

from enum import StrEnum

from aerodrome._util.transitions import Machine


class RuntimeState(StrEnum):
    STARTING = "starting"
    WARM = "warm"
    CLAIMED = "claimed"
    RETIRING = "retiring"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return self in (RuntimeState.STOPPED, RuntimeState.FAILED)

    @property
    def serves(self) -> bool:
        """It may hold sessions."""
        return self in (RuntimeState.CLAIMED, RuntimeState.RETIRING)


class Stimulus(StrEnum):
    #: It listens, and a session could be created in it.
    READY = "ready"
    CLAIM = "claim"
    #: No session comes to it any more; those that it has move elsewhere.
    RETIRE = "retire"
    #: We want it gone.
    STOP = "stop"
    #: The process has ended, or was killed because it hung.
    ENDED = "ended"


TRANSITIONS: dict[tuple[RuntimeState, Stimulus], RuntimeState] = {
    (RuntimeState.STARTING, Stimulus.READY): RuntimeState.WARM,
    (RuntimeState.STARTING, Stimulus.STOP): RuntimeState.DRAINING,
    (RuntimeState.STARTING, Stimulus.ENDED): RuntimeState.FAILED,
    (RuntimeState.WARM, Stimulus.CLAIM): RuntimeState.CLAIMED,
    (RuntimeState.WARM, Stimulus.STOP): RuntimeState.DRAINING,
    (RuntimeState.WARM, Stimulus.ENDED): RuntimeState.FAILED,
    (RuntimeState.CLAIMED, Stimulus.STOP): RuntimeState.DRAINING,
    (RuntimeState.CLAIMED, Stimulus.ENDED): RuntimeState.FAILED,
    (RuntimeState.CLAIMED, Stimulus.RETIRE): RuntimeState.RETIRING,
    (RuntimeState.RETIRING, Stimulus.STOP): RuntimeState.DRAINING,
    (RuntimeState.RETIRING, Stimulus.ENDED): RuntimeState.FAILED,
    # Asked to stop twice is asked to stop.
    (RuntimeState.DRAINING, Stimulus.STOP): RuntimeState.DRAINING,
    (RuntimeState.DRAINING, Stimulus.ENDED): RuntimeState.STOPPED,
    # The end can be noticed by the process watcher and by the health check; the first notice counts.
    (RuntimeState.STOPPED, Stimulus.ENDED): RuntimeState.STOPPED,
    (RuntimeState.STOPPED, Stimulus.STOP): RuntimeState.STOPPED,
    (RuntimeState.FAILED, Stimulus.ENDED): RuntimeState.FAILED,
    (RuntimeState.FAILED, Stimulus.STOP): RuntimeState.FAILED,
}


class RuntimeMachine(Machine[RuntimeState, Stimulus]):
    def __init__(self) -> None:
        super().__init__(RuntimeState.STARTING, TRANSITIONS)
