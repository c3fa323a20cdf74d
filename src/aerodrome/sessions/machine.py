"""Where a session stands on the node that holds its lease, as a table. Pure.

`asleep`: nothing of it is in a runtime. `waking`: a place is being taken and the session created or resumed.
`idle`: resident, between turns; only here may it be hibernated, so that a session in a turn is never evicted
(trap 10). `running`: in a turn. `dozing`: being hibernated. `closed`: deleted, or given up by a node that stops.
Losing the runtime leads back to `asleep` from everywhere: what follows is an ordinary wake-up.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    ASLEEP = "asleep"
    WAKING = "waking"
    IDLE = "idle"
    RUNNING = "running"
    DOZING = "dozing"
    CLOSED = "closed"


class Stimulus(StrEnum):
    WAKE = "wake"
    AWAKE = "awake"
    SEND = "send"
    SETTLED = "settled"
    HIBERNATE = "hibernate"
    HIBERNATED = "hibernated"
    #: The runtime has gone, could not be had, or may not be written through any more.
    LOST = "lost"
    CLOSE = "close"


TRANSITIONS: dict[tuple[State, Stimulus], State] = {
    (State.ASLEEP, Stimulus.WAKE): State.WAKING,
    (State.WAKING, Stimulus.AWAKE): State.IDLE,
    (State.IDLE, Stimulus.SEND): State.RUNNING,
    (State.RUNNING, Stimulus.SETTLED): State.IDLE,
    (State.IDLE, Stimulus.HIBERNATE): State.DOZING,
    (State.DOZING, Stimulus.HIBERNATED): State.ASLEEP,
    # Lost while asleep: the last notice of a loss that was dealt with already.
    (State.ASLEEP, Stimulus.LOST): State.ASLEEP,
    (State.WAKING, Stimulus.LOST): State.ASLEEP,
    (State.IDLE, Stimulus.LOST): State.ASLEEP,
    (State.RUNNING, Stimulus.LOST): State.ASLEEP,
    (State.DOZING, Stimulus.LOST): State.ASLEEP,
    # Closing does not wait for what is under way; its outcome changes nothing any more.
    (State.CLOSED, Stimulus.AWAKE): State.CLOSED,
    (State.CLOSED, Stimulus.SETTLED): State.CLOSED,
    (State.CLOSED, Stimulus.HIBERNATED): State.CLOSED,
    (State.CLOSED, Stimulus.LOST): State.CLOSED,
    **{(state, Stimulus.CLOSE): State.CLOSED for state in State},
}


class ImpossibleTransition(Exception):
    """A stimulus that cannot come in this state: a bug of ours."""


class SessionMachine:
    def __init__(self) -> None:
        self.state = State.ASLEEP
        self._story: list[str] = [State.ASLEEP.value]

    def apply(self, stimulus: Stimulus) -> State:
        """Raises `ImpossibleTransition`, with the last steps that led here, when the table has no such row."""
        target = TRANSITIONS.get((self.state, stimulus))
        if target is None:
            raise ImpossibleTransition(f"{stimulus} in state {self.state}; last steps: {' '.join(self._story)}")
        self._story = [*self._story[-12:], f"-{stimulus}-> {target}"]
        self.state = target
        return target
