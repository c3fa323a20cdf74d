"""Where a session stands on the node that holds its lease, as a table. Pure.

`hibernated`: nothing of it is in a runtime. `waking`: a place is being taken and the session created or resumed.
`idle`: resident, between turns; only here may it be hibernated, so that a session in a turn is never evicted
(trap 10). `running`: in a turn. `hibernating`: being unloaded. `closed`: deleted, or given up by a node that stops.
Losing the runtime leads back to `hibernated` from everywhere: what follows is an ordinary wake-up.
"""

from __future__ import annotations

from enum import StrEnum

from aerodrome._util.transitions import Machine


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


class SessionMachine(Machine[State, Stimulus]):
    def __init__(self) -> None:
        super().__init__(State.HIBERNATED, TRANSITIONS)
