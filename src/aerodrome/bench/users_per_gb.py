"""Users in a gigabyte: the memory of a node with its runtimes, at shares of users who are active at once.

Memory is PSS of the node and of all that it has started. The constants of the formula (`operators.capacity`) are
differences between small loads. The shares are then measured as they are, and one of them, which no constant was taken
from, is held against the formula.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psutil

from aerodrome.bench.hibernation import sleeping_sessions
from aerodrome.bench.lab import Lab, NodeProcess, User
from aerodrome.bench.report import Row
from aerodrome.bench.scale import Scale
from aerodrome.operators.capacity import MEGABYTE, Costs

_TARGET = 15.0
_PROMPT = "Say hello."


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    tenant = await _shared(lab, scale, lambda done: progress(done / 3))
    user = await _isolated(lab, scale, lambda done: progress((1 + done) / 3))
    asleep = await _asleep(lab, scale, lambda done: progress((2 + done) / 3))
    few, many = scale.gb_few, scale.gb_many
    session = (tenant["all_mb"] - tenant["one_mb"]) / (scale.resident - 1)
    costs = Costs(
        node=user["node_mb"],
        # What another runtime takes, which shares its program with those that are there.
        runtime=(user[f"runtimes_{few}_mb"] - user["runtimes_1_mb"]) / (few - 1) - session,
        session=session,
        turn=max(0.0, (tenant["running_mb"] - tenant["all_mb"]) / scale.gb_turns),
        asleep=max(0.0, asleep),
    )
    measured = user[f"runtimes_{many}_mb"]
    said = costs.memory(nodes=1, runtimes=many, loaded=many, running=0, asleep=0)
    constants = {
        "node_mb": costs.node,
        "runtime_mb": costs.runtime,
        "session_mb": costs.session,
        "turn_mb": costs.turn,
        "asleep_mb": costs.asleep,
    }
    shared = tenant["all_mb"]
    return [
        _users("isolation user, 2 % active", many, 0.02, measured, costs),
        _users("isolation user, 10 % active", many, 0.1, measured, costs),
        _users("isolation tenant, 2 % active", scale.resident, 0.02, shared, costs),
        _users("isolation tenant, 10 % active", scale.resident, 0.1, shared, costs),
        Row(
            "users-per-gb",
            f"the formula is off by, at {many} runtimes",
            abs(said - measured) / measured * 100,
            "%",
            target=_TARGET,
            measured={"formula_mb": said, "measured_mb": measured, **constants},
        ),
    ]


def _users(what: str, active: int, share: float, memory: float, costs: Costs) -> Row:
    """Args:
    active: So many users were measured, with this memory in MB; the others sleep.
    """
    users = active / share
    total = memory + (users - active) * costs.asleep
    measured = {"memory_mb": total, "users": users, "active": active}
    return Row("users-per-gb", f"users per GB, {what}", users / total * 1e3, "users/GB", measured=measured)


async def _shared(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> dict[str, float]:
    """One runtime for all: with one session, with all, and while some of them are in turns."""
    runtime = {"warm": 0, "max_sessions": scale.resident}
    measured = {}
    async with lab.node(runtime=runtime) as node:
        user = await node.user()
        for number in range(scale.resident):
            await _talk(user, f"session-{number}")
            if number == 0:
                measured["one_mb"] = await _memory(node, scale)
            progress((number + 1) / scale.resident)
        measured["all_mb"] = await _memory(node, scale)
        prompt = f"{_PROMPT} [[tokens: 300]] [[delay: {4 * scale.settle + 4:.0f}s]]"
        turns = [asyncio.create_task(user.turn(f"session-{number}", prompt)) for number in range(scale.gb_turns)]
        await asyncio.sleep(2.0)  # until they all wait for the model
        measured["running_mb"] = await _memory(node, scale)
        await asyncio.gather(*turns)
    return measured


async def _isolated(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> dict[str, float]:
    """A runtime for each user: the node alone, then with 1, few and many of them."""
    points = (1, scale.gb_few, scale.gb_many)
    runtime = {"warm": 0, "max_runtimes": scale.gb_many}
    limits = {"max_runtimes_per_tenant": scale.gb_many}
    measured = {}
    async with lab.node(runtime=runtime, limits=limits, isolation={"default": "user"}) as node:
        first = await node.user("user-0")
        # What the node loads with its first turn is its own; the runtime is counted later.
        await _talk(first, "session-0")
        for number in range(1, scale.gb_many + 1):
            if number > 1:
                await _talk(await node.user(f"user-{number}"), f"session-{number}")
            if number in points:
                measured[f"runtimes_{number}_mb"] = await _memory(node, scale)
            progress(number / scale.gb_many)
        measured["node_mb"] = _pss(node.stats)
    return measured


async def _asleep(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> float:
    """MB of the node for each hibernated session."""
    async with lab.node(runtime={"warm": 0}) as node:
        before, after = await sleeping_sessions(node, scale, progress)
    return (after - before) / MEGABYTE / scale.hibernated


async def _talk(user: User, session: str) -> None:
    await user.open(session)
    await user.turn(session, _PROMPT)


async def _memory(node: NodeProcess, scale: Scale) -> float:
    await asyncio.sleep(scale.settle)
    return _pss(node.stats) + sum(_pss(process) for process in node.stats.children(recursive=True))


def _pss(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss) / MEGABYTE
