"""Where a session stands on the node that holds its lease, as a table. Pure.

`hibernated`: nothing of it is in a runtime. `waking`: a place is being taken and the session created or resumed.
`idle`: resident, between turns; only here may it be hibernated, so that a session in a turn is never evicted
(trap 10). `running`: in a turn. `hibernating`: being unloaded. `closed`: deleted, or given up by a node that stops.
Losing the runtime leads back to `hibernated` from everywhere: what follows is an ordinary wake-up.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum


class State(StrEnum):
    HIBERNATED = "hibernated"
    WAKING = "waking"
    IDLE = "idle"
    RUNNING = "running"
    HIBERNATING = "hibernating"
    CLOSED = "closed"


class Stimulus(StrEnum):
    WAKE = "wake"
    AWAKE = "awake"
    SEND = "send"
    #: Nothing of the turn is left to wait for.
    SETTLED = "settled"
    HIBERNATE = "hibernate"
    UNLOADED = "unloaded"
    #: The runtime has gone, could not be had, or may not be written through any more.
    LOST = "lost"
    CLOSE = "close"


TRANSITIONS: dict[tuple[State, Stimulus], State] = {
    (State.HIBERNATED, Stimulus.WAKE): State.WAKING,
    (State.WAKING, Stimulus.AWAKE): State.IDLE,
    (State.IDLE, Stimulus.SEND): State.RUNNING,
    (State.RUNNING, Stimulus.SETTLED): State.IDLE,
    (State.IDLE, Stimulus.HIBERNATE): State.HIBERNATING,
    (State.HIBERNATING, Stimulus.UNLOADED): State.HIBERNATED,
    (State.WAKING, Stimulus.LOST): State.HIBERNATED,
    (State.IDLE, Stimulus.LOST): State.HIBERNATED,
    (State.RUNNING, Stimulus.LOST): State.HIBERNATED,
    (State.HIBERNATING, Stimulus.LOST): State.HIBERNATED,
    # Closing does not wait for what is under way; its outcome changes nothing any more.
    (State.CLOSED, Stimulus.AWAKE): State.CLOSED,
    (State.CLOSED, Stimulus.SETTLED): State.CLOSED,
    (State.CLOSED, Stimulus.UNLOADED): State.CLOSED,
    (State.CLOSED, Stimulus.LOST): State.CLOSED,
    **{(state, Stimulus.CLOSE): State.CLOSED for state in State},
}


class ImpossibleTransition(Exception):
    """A stimulus that cannot come in this state: a bug of ours."""


class SessionMachine:
    def __init__(self) -> None:
        self.state = State.HIBERNATED
        #: The last steps, for the error that tells how it came to this.
        self._story: deque[str] = deque([State.HIBERNATED.value], maxlen=13)

    def apply(self, stimulus: Stimulus) -> State:
        """Raises `ImpossibleTransition`, with the last steps that led here, when the table has no such row."""
        target = TRANSITIONS.get((self.state, stimulus))
        if target is None:
            raise ImpossibleTransition(f"{stimulus} in state {self.state}; last steps: {' '.join(self._story)}")
        self._story.append(f"-{stimulus}-> {target}")
        self.state = target
        return target
