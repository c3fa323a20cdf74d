"""The row of a session: which changes are written together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aerodrome._util.tasks import TaskOwner
from aerodrome.errors import StoreUnavailable
from aerodrome.model import LastTurn, SessionKey, SessionRow, SessionState, TurnStatus
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.row_updates import RowUpdates

KEY = SessionKey("acme", "s")
TURN = LastTurn("turn_1", TurnStatus.COMPLETED)


class Directory:
    def __init__(self) -> None:
        self.writes: list[dict[str, Any]] = []
        self.refuses = False

    async def update(self, key: SessionKey, **changes: Any) -> bool:
        assert key == KEY
        if self.refuses:
            raise StoreUnavailable("away")
        self.writes.append(changes)
        return True


@pytest.fixture
def directory() -> Directory:
    return Directory()


@pytest.fixture
async def updates(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RowUpdates]:
    # Whoever waited for more would wait for ever.
    monkeypatch.setattr("aerodrome.sessions.row_updates.GATHER", 3600)
    tasks = TaskOwner("test")

    def later(work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        return tasks.start(work, name)

    context = SimpleNamespace(directory=directory, later=later)
    yield RowUpdates(cast("SessionContext", context), SessionRow(KEY, "alice"))
    await tasks.aclose()


async def written(updates: RowUpdates) -> None:
    while updates.pending:
        await asyncio.sleep(0)


async def test_a_short_turn_is_one_write(updates: RowUpdates, directory: Directory) -> None:
    updates.note(state=SessionState.RUNNING, last_used_at=1.0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert directory.writes == []
    updates.note(state=SessionState.RESIDENT, last_used_at=2.0)
    updates.note(last_turn=TURN)
    await written(updates)
    assert directory.writes == [{"state": SessionState.RESIDENT, "last_used_at": 2.0, "last_turn": TURN}]


async def test_a_long_turn_is_seen_to_run(
    updates: RowUpdates, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aerodrome.sessions.row_updates.GATHER", 0)
    updates.note(state=SessionState.RUNNING)
    await written(updates)
    assert directory.writes == [{"state": SessionState.RUNNING}]


async def test_a_flush_does_not_wait_for_more(updates: RowUpdates, directory: Directory) -> None:
    updates.note(state=SessionState.RUNNING)
    await updates.flush()
    assert directory.writes == [{"state": SessionState.RUNNING}]


async def test_what_comes_behind_a_flush_gathers_again(updates: RowUpdates, directory: Directory) -> None:
    updates.note(state=SessionState.RUNNING)
    await updates.flush()
    updates.note(state=SessionState.RESIDENT)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(directory.writes) == 1
    updates.note(last_turn=TURN)
    await written(updates)
    assert directory.writes[1:] == [{"state": SessionState.RESIDENT, "last_turn": TURN}]


async def test_a_refused_write_goes_with_the_next(updates: RowUpdates, directory: Directory) -> None:
    directory.refuses = True
    updates.note(state=SessionState.RESIDENT)
    await updates.flush()
    assert updates.pending
    directory.refuses = False
    updates.note(last_turn=TURN)
    await written(updates)
    assert directory.writes == [{"state": SessionState.RESIDENT, "last_turn": TURN}]


@pytest.mark.parametrize("refused", [False, True])
async def test_a_title_that_somebody_has_chosen_is_not_written_over(
    updates: RowUpdates, directory: Directory, refused: bool
) -> None:
    updates.note(title="what the runtime calls it", last_used_at=1.0)
    directory.refuses = refused
    await updates.choose_title("mine")
    directory.refuses = False
    before = len(directory.writes)
    updates.note(last_used_at=2.0)
    await updates.flush()
    assert updates.row.title == "mine"
    assert directory.writes[before:] == [{"last_used_at": 2.0}]
