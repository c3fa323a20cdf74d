"""What the doctor of a fleet reads one after the other, while the fleet goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from aerodrome.app import cluster_doctor
from aerodrome.app.cluster_doctor import _sessions
from aerodrome.app.stores import Stores
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.backends.memory_directory import MemoryDirectory
from aerodrome.coordination.ports import Node
from aerodrome.model import SessionKey, SessionRow, SessionState, TurnRow, TurnStatus
from aerodrome.sessions.backends.memory import MemoryLedger

SLEEPS, LEFT = SessionKey("acme", "sleeps"), SessionKey("acme", "left")


def stores(coordination: MemoryCoordination, directory: MemoryDirectory, ledger: MemoryLedger) -> Stores:
    return cast("Stores", SimpleNamespace(coordination=coordination, directory=directory, ledger=ledger))


async def test_a_session_that_goes_to_sleep_is_not_one_that_a_dead_node_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease is given back before its row says so."""

    class Behind(MemoryDirectory):
        async def get(self, key: SessionKey) -> SessionRow | None:
            await self.update(SLEEPS, state=SessionState.HIBERNATED)
            return await super().get(key)

    directory = Behind()
    for key in (SLEEPS, LEFT):
        await directory.insert(SessionRow(key, "alice", state=SessionState.RESIDENT))
    monkeypatch.setattr(cluster_doctor, "_SAID", 0.0)
    report = await _sessions(stores(MemoryCoordination(), directory, MemoryLedger()), [])
    assert report.orphaned == [str(LEFT)]


async def test_the_turns_of_a_node_that_comes_while_we_look_are_not_those_of_a_dead_one() -> None:
    coordination = MemoryCoordination()

    class Joined(MemoryLedger):
        async def unfinished(self, *args: Any, **kwargs: Any) -> list[TurnRow]:
            await coordination.join(Node("new", "new-1"), 60)
            return await super().unfinished(*args, **kwargs)

    ledger = Joined()
    for incarnation in ("new-1", "dead-1"):
        await ledger.accept(TurnRow(SLEEPS, incarnation, "alice", TurnStatus.RUNNING, "hi", incarnation=incarnation))
    report = await _sessions(stores(coordination, MemoryDirectory(), ledger), await coordination.nodes())
    assert report.unfinished_of_dead == 1
