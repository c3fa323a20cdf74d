"""What a runtime has died of: read out of what is left of it, and out of real ends."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aerodrome.runtime.deaths import Death, death_of
from aerodrome.runtime.probe import ProbeModel
from aerodrome.runtime.supervisor import ManagedRuntime
from support.cli import fake, launcher, runtime_options

_numbers = itertools.count()
V8 = "<--- Last few GCs --->\nFATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory"


@pytest.mark.parametrize(
    ("exit_code", "said", "oom_kills", "death"),
    [
        (-signal.SIGABRT, V8, 0, Death.MEMORY),
        (-signal.SIGTRAP, "# Fatal process out of memory: Zone", 0, Death.MEMORY),
        (134, V8, 0, Death.MEMORY),
        (-signal.SIGABRT, "assertion failed", 0, Death.CRASHED),
        (-signal.SIGSEGV, "", 0, Death.CRASHED),
        (139, "", 0, Death.CRASHED),
        (7, "uncaught exception", 0, Death.CRASHED),
        (0, "", 0, Death.OUTSIDE),
        (-signal.SIGKILL, "", 0, Death.OUTSIDE),
        (137, "", 0, Death.OUTSIDE),
        (-signal.SIGKILL, "", 1, Death.SHORTAGE),
        (137, "", 1, Death.SHORTAGE),
        (-signal.SIGTERM, V8, 1, Death.OUTSIDE),
        (None, V8, 1, Death.OUTSIDE),
    ],
)
def test_what_is_left_tells(exit_code: int | None, said: str, oom_kills: int, death: Death) -> None:
    assert death_of(exit_code, said, oom_kills=oom_kills) is death


@pytest.fixture
async def probe() -> AsyncIterator[ProbeModel]:
    model = ProbeModel()
    await model.start()
    yield model
    await model.aclose()


async def started(
    tmp_path: Path, probe: ProbeModel, watched: dict[str, Any] | None = None, **misbehaviour: Any
) -> ManagedRuntime:
    options = runtime_options(tmp_path, fake(tmp_path, "protocol"), misbehaviour=misbehaviour)
    runtime = ManagedRuntime(f"rt-{next(_numbers)}", replace(options, ping_interval=0.05, **(watched or {})))
    await runtime.start(launcher(), probe)
    return runtime


async def test_a_crash_is_told_from_a_kill_although_the_connection_goes_first(
    tmp_path: Path, probe: ProbeModel
) -> None:
    crashing = await started(tmp_path, probe, dies_on="session.crash")
    asyncio.get_running_loop().create_task(_ignore(crashing.control.request("session.crash", {})))
    assert await asyncio.wait_for(crashing.death, 30) is Death.CRASHED
    killed = await started(tmp_path, probe)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    assert await asyncio.wait_for(killed.death, 30) is Death.OUTSIDE


async def test_one_that_was_stopped_is_told_from_one_that_was_busy(tmp_path: Path, probe: ProbeModel) -> None:
    # Long enough that what it did between its last answer and being stopped is little work beside it.
    soon = {"ping_timeout": 3}
    # What it has done to start says nothing, also when it is stopped before its first ping.
    paused = await started(tmp_path, probe, soon, start_work=0.5)
    assert paused.pid is not None
    os.kill(paused.pid, signal.SIGSTOP)
    assert await asyncio.wait_for(paused.death, 30) is Death.OUTSIDE
    assert "it hangs" in paused.lost_reason
    busy = await started(tmp_path, probe, soon, busy_on="session.spin")
    asyncio.get_running_loop().create_task(_ignore(busy.control.request("session.spin", {})))
    assert await asyncio.wait_for(busy.death, 30) is Death.STUCK


async def test_what_we_end_ourselves_is_nobodys_fault(tmp_path: Path, probe: ProbeModel) -> None:
    killed = await started(tmp_path, probe)
    killed.kill("for a test")
    assert await asyncio.wait_for(killed.death, 30) is Death.OUTSIDE
    stopped = await started(tmp_path, probe)
    await stopped.stop()
    assert stopped.death.result() is Death.OUTSIDE


async def _ignore(work: Any) -> None:
    try:
        await work
    except Exception:
        return
