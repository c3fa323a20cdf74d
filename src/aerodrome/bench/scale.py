"""How often each thing is done: the whole benchmark, and a quick one that shows no more than that it works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    name: str
    #: Rounds of plain turns, one a contender.
    turns: int
    #: Rounds of first turns: each takes a warm runtime, and waits until it is replaced.
    first_turns: int
    cold_starts: int
    #: Hibernated sessions, and how many of them are woken.
    hibernated: int
    wake_ups: int
    #: Turns over which processor time is counted.
    cpu_turns: int
    #: Sessions in one runtime, for its memory.
    resident: int
    #: Seconds a runtime gets to give memory back before it is looked at.
    settle: float
    appends: int
    pings: int
    #: Rounds of what a native client does, one a contender.
    native_turns: int
    #: Sessions at work at the same time in one CLI, turns of all of them together in a window, and such windows.
    busy_sessions: int
    window_turns: int
    windows: int
    #: Rounds of round trips through the gateway alone, round trips in each, and rounds and seconds of a full pipe.
    trip_rounds: int
    trips: int
    pipe_rounds: int
    pipe_seconds: float
    kills: int
    idle_clients: int
    #: Nodes that are killed, for each time to live.
    node_kills: int
    #: Sessions in the larger directory, and rounds of opening and listing.
    directory_rows: int
    directory_rounds: int
    #: Prompts of the storm, milliseconds that each turn takes in the model, and turns of the quiet tenant.
    storm: int
    storm_turn_ms: int
    storm_turns: int
    #: Runtimes of users of their own: from which the constants are taken, and against which they are held. Turns at
    #: the same time in one runtime.
    gb_few: int
    gb_many: int
    gb_turns: int
    #: Turns of a runtime's long life, and claims of warm runtimes.
    wear_turns: int
    claims: int


FULL = Scale(
    name="full",
    turns=60,
    first_turns=15,
    cold_starts=5,
    hibernated=10_000,
    wake_ups=40,
    cpu_turns=100,
    resident=50,
    settle=2.0,
    appends=300,
    pings=50,
    native_turns=40,
    busy_sessions=50,
    window_turns=100,
    windows=4,
    trip_rounds=30,
    trips=50,
    pipe_rounds=5,
    pipe_seconds=1.0,
    kills=20,
    idle_clients=2_000,
    node_kills=20,
    directory_rows=100_000,
    directory_rounds=200,
    storm=4_000,
    storm_turn_ms=2_000,
    storm_turns=30,
    gb_few=4,
    gb_many=12,
    gb_turns=20,
    wear_turns=600,
    claims=20,
)
QUICK = Scale(
    name="quick",
    turns=4,
    first_turns=2,
    cold_starts=1,
    hibernated=200,
    wake_ups=3,
    cpu_turns=5,
    resident=4,
    settle=0.1,
    appends=20,
    pings=5,
    native_turns=2,
    busy_sessions=4,
    window_turns=8,
    windows=1,
    trip_rounds=3,
    trips=10,
    pipe_rounds=1,
    pipe_seconds=0.3,
    kills=1,
    idle_clients=50,
    node_kills=1,
    directory_rows=1_000,
    directory_rounds=10,
    storm=200,
    storm_turn_ms=300,
    storm_turns=4,
    gb_few=2,
    gb_many=3,
    gb_turns=2,
    wear_turns=8,
    claims=2,
)
