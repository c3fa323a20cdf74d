"""The looks at a pool's runtimes, with processes that are fakes and measurements that are the test's."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from aerodrome.model import RuntimeKey
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.measure import ProcessUse, memory_of, process_uses
from aerodrome.runtime.recycler import RecycleOptions, Recycler
from aerodrome.runtime.wear import SUSTAINED, WearLimits
from support.cli import fake, running_pool, runtime_options
from support.waiting import until

TENANTS = [RuntimeKey(name, None) for name in ("acme", "globex", "initech")]
OLD = 1e6


async def test_worn_runtimes_go_one_after_the_other_the_most_pressing_first(tmp_path: Path) -> None:
    uses: dict[int, ProcessUse] = {}
    options = RecycleOptions(WearLimits(memory=1000, turns=100), interval=3600)
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol")), recycle=options) as pool:
        recycler = Recycler(
            pool, options, measure=lambda pids: {pid: uses.get(pid, ProcessUse(memory=1)) for pid in pids}
        )
        runtimes = [await pool.reserve(key) for key in TENANTS]
        chatty, big, well = runtimes
        assert big.pid is not None
        chatty.turns = 200
        big.started -= OLD
        uses[big.pid] = ProcessUse(memory=5000)
        # Counted limits need one look, measured ones several; each is at work until its turn ends.
        await recycler.look()
        await until(lambda: chatty.state is RuntimeState.RETIRING)
        well.turns = 200
        for _ in range(SUSTAINED):
            await recycler.look()
        # A turn may take long, and memory does not wait for it; what is counted does.
        await until(lambda: big.state is RuntimeState.RETIRING)
        assert big.describe()["pss_bytes"] == 5000
        pool.release(chatty)
        await until(lambda: chatty not in pool.runtimes)
        await recycler.look()
        assert well.state is RuntimeState.CLAIMED
        pool.release(big)
        await until(lambda: big not in pool.runtimes)
        await recycler.look()
        await until(lambda: well.state is RuntimeState.RETIRING)
        pool.release(well)
        await until(lambda: well not in pool.runtimes)
        await until(lambda: pool.retirements.under_way == 0)
        assert pool.retirements.recycled == {"turns": 2, "memory": 1}


async def test_what_is_measured_goes_one_after_the_other(tmp_path: Path) -> None:
    options = RecycleOptions(WearLimits(memory=1000), interval=3600)
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol")), recycle=options) as pool:
        recycler = Recycler(pool, options, measure=lambda pids: {pid: ProcessUse(memory=5000) for pid in pids})
        first, second = [await pool.reserve(key) for key in TENANTS[:2]]
        for runtime in (first, second):
            runtime.started -= OLD
        for _ in range(2 * SUSTAINED):
            await recycler.look()
        await until(lambda: RuntimeState.RETIRING in (first.state, second.state))
        assert RuntimeState.CLAIMED in (first.state, second.state)
        for runtime in (first, second):
            pool.release(runtime)


async def test_runtimes_of_one_age_do_not_go_together(tmp_path: Path) -> None:
    options = RecycleOptions(WearLimits(age=1000), interval=3600, at_once=10)
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol")), recycle=options) as pool:
        recycler = Recycler(pool, options, measure=lambda pids: {})
        runtimes = [await pool.reserve(RuntimeKey(f"tenant{n}", None)) for n in range(8)]
        for runtime in runtimes:
            runtime.started -= 800 - 1
        gone_at = []
        for _ in range(22):  # the last at an age of over 1000
            await recycler.look()
            await asyncio.sleep(0)
            gone_at.append(pool.retirements.under_way)
            for runtime in runtimes:
                runtime.started -= 10
        assert gone_at[0] < gone_at[-1] == 8
        assert max(later - earlier for earlier, later in pairwise(gone_at)) < 8
        for runtime in runtimes:
            pool.release(runtime)


def test_what_a_process_uses() -> None:
    use = process_uses([os.getpid()])[os.getpid()]
    assert use.memory is not None
    assert use.descriptors is not None
    assert use.descriptor_limit is not None
    assert 10 << 20 < use.memory < 10 << 30
    assert 3 <= use.descriptors < use.descriptor_limit
    assert process_uses([2**22 + 1]) == {}  # there is no such process


def test_children_count_with_what_they_use() -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '60']); print('up', flush=True); "
        "sys.stdin.read(); child.kill(); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert process_uses([process.pid])[process.pid].children == 1
        process.communicate(b"")


async def test_what_an_operator_drains_does_not_hold_up_recycling(tmp_path: Path) -> None:
    options = RecycleOptions(WearLimits(turns=100), interval=3600, at_once=1)
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol")), recycle=options) as pool:
        recycler = Recycler(pool, options, measure=lambda pids: {})
        drained, worn = [await pool.reserve(key) for key in TENANTS[:2]]
        draining = asyncio.create_task(pool.drain(drained.id))
        await until(lambda: drained.state is RuntimeState.RETIRING)
        worn.turns = 200
        await recycler.look()
        await until(lambda: worn.state is RuntimeState.RETIRING)
        for runtime in (drained, worn):
            pool.release(runtime)
        await draining


async def test_a_look_that_fails_is_not_the_last(tmp_path: Path) -> None:
    looks = 0

    def measure(pids: object) -> dict[int, ProcessUse]:
        nonlocal looks
        looks += 1
        raise OSError("for a test")

    options = RecycleOptions(WearLimits(turns=100), interval=0.01)
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol")), recycle=options) as pool:
        looking = asyncio.create_task(Recycler(pool, options, measure=measure).run())
        await until(lambda: looks > 2)
        looking.cancel()


def test_where_the_proportional_size_is_not_told_the_resident_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", refused)
    assert (memory_of(psutil.Process()) or 0) > 10 << 20
