"""What happens in one run, drawn from its seed: who asks for what, and what goes wrong when.

A plan is a list of events that mean something each by itself, so that any of them can be left out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

MACHINES = ("n1", "n2", "n3")
SITES = ("coordination", "state")
#: Seconds of a run in which things go wrong; afterwards everything is mended.
LENGTH = 24.0
#: Largest drift of a monotonic clock, and of the store's: at a time to live of which two thirds are used, two clocks
#: may be a third apart.
DRIFT = 0.08


@dataclass(frozen=True, slots=True)
class Event:
    at: float
    kind: str
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.at:9.4f}  {self.kind}{self.args}"


@dataclass(frozen=True, slots=True)
class Plan:
    sessions: int
    rates: dict[str, float]
    events: tuple[Event, ...]


def make_plan(seed: int) -> Plan:
    chance = random.Random(f"plan {seed}")
    sessions = chance.choice((1, 1, 2, 3))
    events = _work(chance, sessions) + _faults(chance)
    rates = {name: 1.0 + chance.uniform(-DRIFT, DRIFT) for name in (*MACHINES, "coordination")}
    return Plan(sessions, rates, tuple(sorted(events, key=lambda event: event.at)))


def _work(chance: random.Random, sessions: int) -> list[Event]:
    events = []
    erasures = chance.choice((0, 0, 4, 15))
    for _ in range(chance.randint(10, 40)):
        at, machine, session = chance.uniform(0.1, LENGTH), chance.choice(MACHINES), chance.randrange(sessions)
        kind = chance.choices(("turn", "hibernate", "erase", "expire"), (75, 20, erasures, erasures))[0]
        args = (machine, session, chance.uniform(0.5, 6.0)) if kind == "expire" else (machine, session)
        events.append(Event(at, kind, args))
    return events


def _faults(chance: random.Random) -> list[Event]:
    events: list[Event] = []
    for _ in range(chance.randint(1, 7)):
        at = chance.uniform(0.5, LENGTH - 4.0)
        if chance.random() < 0.6:
            events.append(_fault(chance, at, chance.choice(_KINDS)))
            continue
        # Where it hurts most: when a store has just done this for a node, and the node does not know it yet.
        machine, moment = chance.choice(MACHINES), chance.choice(_MOMENTS)
        kinds = (
            [chance.choice(_KINDS)]
            if chance.random() < 0.6
            else ["pause", chance.choice((*_KINDS, "empty", "empty", "empty"))]
        )
        events += [Event(at, "when", (machine, moment, _fault(chance, at, kind, machine))) for kind in kinds]
    return events


def _fault(chance: random.Random, at: float, kind: str, machine: str | None = None) -> Event:
    machine, site = machine or chance.choice(MACHINES), chance.choice(SITES)
    # Most are about as long as what they can outlast.
    lasting = chance.choice((0.3, 1.0, 2.5, 4.0, 5.5, 8.0)) * chance.uniform(0.8, 1.2)
    args: tuple[Any, ...]
    match kind:
        case "pause" | "kill" | "leave":
            args = (machine, lasting)
        case "down":
            args = (site, lasting)
        case "cut":
            args = (machine, site, lasting)
        case "empty":
            args = ()
        case "weather":
            args = (lasting * 2, *(chance.choice((0.0, 0.05, 0.2, 0.5)) for _ in range(3)))
        case "wall clock":
            args = (machine, chance.choice((-3600.0, -5.0, 5.0, 3600.0)))
        case _:
            args = (chance.choice((-10.0, -4.0, 4.0, 30.0)),)
    return Event(at, kind, args)


_KINDS = (
    *("pause", "pause", "pause", "kill", "leave", "down", "cut", "empty", "empty"),
    *("weather", "weather", "wall clock", "jump"),
)
_MOMENTS = (
    *("acquire", "acquire", "raise_epoch", "append", "epoch", "release", "heartbeat", "get", "read"),
    *("insert", "delete_session", "remove", "get", "turn_ids", "forget", "forget_session"),
)
