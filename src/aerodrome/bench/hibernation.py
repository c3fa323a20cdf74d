"""What sleeping sessions cost: memory of the node for thousands of them, and the first turn of one that is woken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from aerodrome.app.stores import Stores, open_stores
from aerodrome.bench.lab import Lab, NodeProcess, User
from aerodrome.bench.report import Row, compare
from aerodrome.bench.rounds import interleave
from aerodrome.bench.scale import Scale
from aerodrome.config.settings import Settings
from aerodrome.model import SessionKey, SessionRow, TurnRow
from aerodrome.statestore.ports import SessionFileStore

PROMPT = "Say hello."
MEGABYTE = 1e6
_WARM_UP = 3
#: Sessions written at the same time: they share commits.
_AT_ONCE = 100


async def run(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    async with lab.node(runtime={"warm": 0}) as node:
        user = await node.user()
        without, _ = await sleeping_sessions(node, scale, progress)
        times = await _wake_up(node, user, scale, progress)
        with_them = node.stats.memory_info().rss
    grown = (with_them - without) / MEGABYTE
    measured = {"without_mb": without / MEGABYTE, "with_mb": with_them / MEGABYTE, "sessions": scale.hibernated}
    return [
        Row("hibernation", "memory of the node for hibernated sessions", grown, "MB", 50, measured=measured),
        compare("hibernation", "first turn of a woken session / plain turn", ("woken", "plain"), times, target=3),
    ]


async def sleeping_sessions(node: NodeProcess, scale: Scale, progress: Callable[[float], None]) -> tuple[int, int]:
    """Give alice of acme so many; returns the memory of the node (RSS, bytes) before and when they have been listed."""
    user = await node.user()
    await _live_through(node, user)
    without = node.stats.memory_info().rss
    await _copy_session(node.settings, SessionKey("acme", "pattern"), _ids(scale.hibernated), progress)
    listed = await user.list()
    if listed < scale.hibernated:
        raise AssertionError(f"{listed} sessions are listed of {scale.hibernated}")
    return without, node.stats.memory_info().rss


async def _live_through(node: NodeProcess, user: User) -> None:
    """Do everything once that is done later, so that what it loads is not counted as memory of sessions."""
    await user.open("pattern")
    await user.turn("pattern", PROMPT)
    await node.hibernate(session="pattern")
    await user.turn("pattern", PROMPT)
    await user.list()


def _ids(number: int) -> list[str]:
    return [f"copy-{index}" for index in range(number)]


async def _copy_session(
    settings: Settings, pattern: SessionKey, ids: list[str], progress: Callable[[float], None]
) -> None:
    """Write directory rows, files and ledger of a sleeping session once more under each of these ids.

    Through the stores, beside the running node, as another node would.
    """
    # Nothing here need survive a power cut, and the node's own connections are not concerned.
    quick = settings.model_copy(update={"state": settings.state.model_copy(update={"synchronous": "normal"})})
    async with open_stores(quick) as stores:
        copy = await _Pattern.read(stores, pattern)
        for start in range(0, len(ids), _AT_ONCE):
            await asyncio.gather(*(copy.write(stores, session) for session in ids[start : start + _AT_ONCE]))
            progress((start + _AT_ONCE) / len(ids) / 2)


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A stored session, to be written under other ids."""

    row: SessionRow
    turns: list[TurnRow]
    directories: list[str] = field(default_factory=list)
    #: Path and content.
    files: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    async def read(cls, stores: Stores, key: SessionKey) -> _Pattern:
        row = await stores.directory.get(key)
        assert row is not None
        pattern = cls(row, await stores.ledger.turns(key))
        await pattern._read_files(stores.files, "/")
        return pattern

    async def _read_files(self, store: SessionFileStore, directory: str) -> None:
        for name, info in await store.listdir(self.row.key, directory):
            path = f"{directory.rstrip('/')}/{name}"
            if info.is_directory:
                self.directories.append(path)
                await self._read_files(store, path)
            else:
                self.files.append((path, await store.read(self.row.key, path)))

    async def write(self, stores: Stores, session: str) -> None:
        key, pattern, epoch = SessionKey(self.row.key.tenant, session), self.row.key.id, 1
        await stores.directory.insert(replace(self.row, key=key))
        await stores.files.raise_epoch(key, epoch)
        for path in self.directories:
            await stores.files.mkdir(key, epoch, path.replace(pattern, session), recursive=True)
        for path, content in self.files:
            # The history names its session.
            await stores.files.write(key, epoch, path.replace(pattern, session), content.replace(pattern, session))
        for turn in self.turns:
            await stores.ledger.accept(replace(turn, key=key, id=f"{turn.id}-{session}"))


async def _wake_up(
    node: NodeProcess, user: User, scale: Scale, progress: Callable[[float], None]
) -> dict[str, list[float]]:
    """Turns in a sleeping session, and in the one that was woken in the round before: both have the same history."""
    sleeping = _spread(scale.hibernated)
    woken, awake = "", "pattern"

    async def prepare() -> None:
        nonlocal woken, awake
        if woken:
            await node.hibernate(session=awake)
            awake = woken
        woken = f"copy-{next(sleeping)}"

    return await interleave(
        {"woken": lambda: user.turn(woken, PROMPT), "plain": lambda: user.turn(awake, PROMPT)},
        scale.wake_ups,
        warm_up=_WARM_UP,
        prepare=prepare,
        progress=lambda done: progress((1 + done) / 2),
    )


def _spread(number: int) -> Iterator[int]:
    """Places all over the database, none twice as long as there are others (the step is prime)."""
    return (index * 7919 % number for index in count())
