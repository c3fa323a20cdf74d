from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.ports import Node
from aerodrome.model import SessionKey, SessionRow
from aerodrome.sessions.checkup import Stores, check
from support.scripted_node import MemoryFiles

KEY = SessionKey("acme", "s1")


@pytest.mark.parametrize(("loads", "verdict"), [(True, "loaded"), (False, "damaged")])
async def test_a_session_that_is_loaded_while_it_is_looked_at_is_not_in_need_of_a_repair(
    loads: bool, verdict: str
) -> None:
    coordination = MemoryCoordination()
    await coordination.join(Node("a", "a-1"), 60)

    class Files(MemoryFiles):
        async def read(self, key: SessionKey, path: str) -> str:
            if loads:
                await coordination.acquire(key, "a-1")
            return '{"type": "session.st'

    stores = cast("Stores", SimpleNamespace(coordination=coordination, files=Files(), volume=None))
    (finding,) = [finding async for finding in check(stores, [SessionRow(KEY, "alice")])]
    assert finding.verdict == verdict
