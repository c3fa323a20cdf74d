"""The first turn of a user nobody has seen, on a warm runtime, on none, and of a user who has a runtime already.

What is timed is what the user waits for: opening a session and its first turn. Isolation is `user`, so that each new
user takes a runtime of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from aerodrome.bench.lab import Lab, NodeProcess, User
from aerodrome.bench.report import Row, compare
from aerodrome.bench.rounds import interleave
from aerodrome.bench.scale import Scale

PROMPT = "Say hello."
_WARM_UP = 1
_ISOLATION = {"default": "user"}
#: The tenant of the users who come and go; the one who stays belongs to another.
_VISITORS = "visitors"


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    share = scale.first_turns / (scale.first_turns + scale.cold_starts)
    # A user's runtime stops when its last session has hibernated: looked at four times an `idle_timeout`.
    runtime = {"idle_timeout": "400ms"}
    async with lab.node(isolation=_ISOLATION, runtime={**runtime, "warm": 1}) as node:
        times = await _warm(node, scale.first_turns, lambda done: progress(done * share))
    async with lab.node(isolation=_ISOLATION, runtime={**runtime, "warm": 0}) as node:
        times |= await _cold(node, scale.cold_starts, lambda done: progress(share + done * (1 - share)))
    return [
        compare(
            "first-turn",
            "first turn of a new user (warm pool) / of a present user",
            ("new", "present"),
            times,
            target=1.2,
        ),
        compare("first-turn", "first turn of a new user (cold start) / of a present user", ("cold", "present"), times),
    ]


async def _warm(node: NodeProcess, rounds: int, progress: Callable[[float], None]) -> dict[str, list[float]]:
    present = await node.user("stays", "residents")
    # This session keeps the user's runtime.
    await _first_turn(present, "home")
    visitors = _Visitors(node)
    numbers = count()
    session = ""

    async def prepare() -> None:
        nonlocal session
        if session:
            await node.hibernate("residents", session)
        session = f"session-{next(numbers)}"
        await visitors.next()
        await node.settled(claimed=1, warm=1)

    return await interleave(
        {"new": visitors.first_turn, "present": lambda: _first_turn(present, session)},
        rounds,
        warm_up=_WARM_UP,
        prepare=prepare,
        progress=progress,
    )


async def _cold(node: NodeProcess, rounds: int, progress: Callable[[float], None]) -> dict[str, list[float]]:
    visitors = _Visitors(node)

    async def prepare() -> None:
        await visitors.next()
        await node.settled(warm=0)

    return await interleave({"cold": visitors.first_turn}, rounds, prepare=prepare, progress=progress)


class _Visitors:
    """New users, one after the other; the one before leaves, and the runtime goes too."""

    def __init__(self, node: NodeProcess) -> None:
        self._node = node
        self._count = 0
        self._user: User

    async def next(self) -> None:
        if self._count:
            await self._node.hibernate(_VISITORS)
        self._count += 1
        self._user = await self._node.user(f"visitor-{self._count}", _VISITORS)

    async def first_turn(self) -> None:
        await _first_turn(self._user, f"session-{self._count}")


async def _first_turn(user: User, session: str) -> None:
    await user.open(session)
    await user.turn(session, PROMPT)
