from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aerodrome._util.tasks import TaskOwner
from aerodrome.app.workspaces import WorkspaceCare, remove_unowned
from aerodrome.coordination.backends.memory_directory import MemoryDirectory
from aerodrome.coordination.ports import Directory, Page
from aerodrome.model import Isolation, Role, RuntimeKey, SessionKey, SessionRow
from aerodrome.runtime.workspaces import Workspaces
from support.waiting import until


async def test_a_file_system_that_does_not_answer_keeps_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not one for each runtime that ends meanwhile: the node has few for all that it does."""
    answers, asked = threading.Event(), []

    def directory_of(_: Workspaces, owner: RuntimeKey) -> SimpleNamespace:
        def exists() -> bool:
            asked.append(owner)
            answers.wait(30)
            return False

        return SimpleNamespace(exists=exists)

    monkeypatch.setattr(Workspaces, "directory", directory_of)

    def directory() -> Directory:
        return None  # type: ignore[return-value] # it is not asked for a workspace that is not there

    tasks = TaskOwner("test")
    care = WorkspaceCare(directory, Workspaces(tmp_path), tasks)
    for number in range(20):
        care.released(RuntimeKey("acme", f"user-{number}"))
    await until(lambda: len(asked) > 0)
    most_at_once = len(asked)
    answers.set()
    await until(lambda: len(asked) == 20)
    await tasks.aclose()
    assert most_at_once == 1


async def test_a_session_that_is_used_while_it_is_looked_for_keeps_its_workspace(tmp_path: Path) -> None:
    """A listing is by last use: it goes from the page that comes next to the one that has been turned."""
    mine = SessionRow(SessionKey("acme", "mine"), "alice", isolation=Isolation.USER)

    class Used(MemoryDirectory):
        async def list(self, *args: Any, **kwargs: Any) -> Page:
            page = await super().list(*args, **kwargs)
            await self.update(mine.key, last_used_at=1000.0)
            return page

    directory, workspaces, alice = Used(), Workspaces(tmp_path), RuntimeKey("acme", "alice")
    await directory.insert(mine)
    for number in range(200):
        shared = SessionKey("acme", f"shared-{number}")
        await directory.insert(SessionRow(shared, "bob", last_used_at=1.0 + number, members={"alice": Role.READER}))
    workspaces.open(alice).release()
    assert not await remove_unowned(directory, workspaces, alice)
    assert workspaces.directory(alice).exists()
