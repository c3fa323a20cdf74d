"""How much memory, how many runtimes and nodes a number of users needs. Pure.

    memory = node x nodes + runtime x runtimes + session x loaded + turn x running + asleep x hibernated

Each constant is what one more of its kind takes, measured with the real Copilot CLI as PSS, in which what processes
share is counted once. `aerodrome bench --only users-per-gb` measures them on another machine, and holds the formula
against a load that they were not taken from (docs/capacity.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

MEGABYTE = 1e6
_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Memory in MB, processor time in seconds."""

    #: A node without runtimes.
    node: float
    #: A runtime with nothing in it.
    runtime: float
    #: A session that is loaded and has taken a turn.
    session: float
    #: A turn while it runs, in the node and the runtime.
    turn: float
    #: A hibernated session, in the memory of the node.
    asleep: float
    #: Of a turn, streamed, and of the start of a runtime (docs/facts.md, "Memory and wear" and "Starting").
    turn_cpu: float = 0.2
    start_cpu: float = 1.2

    def memory(self, *, nodes: int, runtimes: int, loaded: int, running: float, asleep: int) -> float:
        """MB."""
        return (
            self.node * nodes
            + self.runtime * runtimes
            + self.session * loaded
            + self.turn * running
            + self.asleep * asleep
        )


#: On Linux x64 with the pinned Copilot CLI: see docs/capacity.md, which says when and how.
MEASURED = Costs(node=60.0, runtime=120.0, session=3.6, turn=1.7, asleep=0.001)


@dataclass(frozen=True, slots=True)
class Demand:
    """Args:
    active: The share of the users who have a loaded session: who used one within `idle_timeout`. From 0 to 1.
    per_minute: Turns of all users together.
    turn_seconds: How long one takes, most of it in the model.
    isolated: A runtime for each user (isolation `user`).
    sessions: Loaded sessions of an active user; and as many are asleep of each other one.
    tenants: Among which the users are spread evenly.
    idle_timeout: Seconds.
    """

    users: int
    active: float
    per_minute: float
    isolated: bool
    turn_seconds: float = 20.0
    sessions: int = 1
    tenants: int = 1
    idle_timeout: float = 1800.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What one node may have. `memory` in MB; `used`: which part of memory and processors is planned with."""

    memory: float = 16_000.0
    cores: float = 4.0
    used: float = 0.75
    max_sessions: int = 50


@dataclass(frozen=True, slots=True)
class Plan:
    active_users: int
    loaded: int
    asleep: int
    runtimes: int
    turns_at_once: int
    #: MB of all nodes together, and processors that are busy.
    memory: float
    cores: float
    #: With the one that may fail.
    nodes: int
    #: What one node is set to, when one has failed.
    runtimes_a_node: int
    turns_a_node: int
    #: The only one may have all runtimes; of several, each has its default.
    of_one_tenant: bool
    users_per_gb: float

    def describe(self) -> dict[str, Any]:
        return {
            "active_users": self.active_users,
            "loaded_sessions": self.loaded,
            "hibernated_sessions": self.asleep,
            "runtimes": self.runtimes,
            "turns_at_once": self.turns_at_once,
            "memory_mb": round(self.memory),
            "cores": round(self.cores, 1),
            "nodes": self.nodes,
            "users_per_gb": round(self.users_per_gb, 1),
            "settings": {
                "runtime.max_runtimes": self.runtimes_a_node,
                "limits.max_turns": self.turns_a_node,
                **({"limits.max_runtimes_per_tenant": self.runtimes_a_node} if self.of_one_tenant else {}),
            },
        }


def plan(demand: Demand, costs: Costs, machine: Machine) -> Plan:
    active = math.ceil(demand.users * demand.active - 1e-9)
    loaded = active * demand.sessions
    asleep = demand.users * demand.sessions - loaded
    runtimes = _runtimes(demand, active, loaded, machine.max_sessions)
    # As many turns as begin while one runs; and, as they come in bunches, three times their deviation more.
    mean = demand.per_minute / _MINUTE * demand.turn_seconds
    at_once = math.ceil(mean + 3 * math.sqrt(mean))
    starts = active / demand.idle_timeout if demand.isolated else 0.0
    cores = demand.per_minute / _MINUTE * costs.turn_cpu + starts * costs.start_cpu
    working = costs.memory(nodes=0, runtimes=runtimes, loaded=loaded, running=at_once, asleep=asleep)
    by_memory = working / max(machine.memory * machine.used - costs.node, 1.0)
    needed = max(1, math.ceil(by_memory), math.ceil(cores / (machine.cores * machine.used)))
    memory = working + costs.node * needed
    return Plan(
        of_one_tenant=demand.tenants == 1,
        active_users=active,
        loaded=loaded,
        asleep=asleep,
        runtimes=runtimes,
        turns_at_once=at_once,
        memory=memory,
        cores=cores,
        nodes=needed + 1,
        runtimes_a_node=max(1, math.ceil(runtimes / needed)),
        turns_a_node=max(1, math.ceil(at_once / needed)),
        users_per_gb=demand.users / memory * 1e3,
    )


def _runtimes(demand: Demand, active: int, loaded: int, max_sessions: int) -> int:
    if demand.isolated:
        return active * math.ceil(demand.sessions / max_sessions)
    tenants = min(demand.tenants, active)
    return tenants * math.ceil(loaded / tenants / max_sessions) if tenants else 0
