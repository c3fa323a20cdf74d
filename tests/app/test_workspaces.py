from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from aerodrome._util.tasks import TaskOwner
from aerodrome.app.workspaces import WorkspaceCare
from aerodrome.coordination.ports import Directory
from aerodrome.model import RuntimeKey
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
