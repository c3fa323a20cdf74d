"""The ceiling of runtimes of one tenant: past it a tenant has to free one of its own, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aerodrome._util.clock import ManualClock
from aerodrome.errors import Capacity
from aerodrome.model import RuntimeKey
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.pool import RuntimePool
from aerodrome.runtime.ports import Runtime
from aerodrome.runtime.supervisor import ManagedRuntime
from support.cli import fake, running_pool, runtime_options
from support.waiting import until

ALICE, BOB, CAROL = (RuntimeKey("acme", user) for user in ("alice", "bob", "carol"))
ZOE = RuntimeKey("globex", "zoe")


@asynccontextmanager
async def pool_of(tmp_path: Path, **options: Any) -> AsyncIterator[RuntimePool]:
    runtime = runtime_options(tmp_path, fake(tmp_path, "protocol"))
    async with running_pool(runtime, **{"capacity_timeout": 40, **options}) as pool:
        yield pool


def claimed(pool: RuntimePool) -> list[RuntimeKey | None]:
    return [runtime.key for runtime in pool.in_state(RuntimeState.CLAIMED)]


async def test_past_its_ceiling_a_tenant_waits_and_another_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    monkeypatch.setattr("aerodrome.runtime.pool.time", clock)
    async with pool_of(tmp_path, max_runtimes_per_tenant=2) as pool:
        await pool.reserve(ALICE)
        alices = await pool.reserve(ALICE)
        bobs = await pool.reserve(BOB)
        refused = asyncio.create_task(pool.reserve(CAROL))
        assert (await pool.reserve(ZOE)).key == ZOE
        assert not refused.done()
        clock.advance(41)
        pool.notify()
        with pytest.raises(Capacity, match=r"all 2 runtimes of your organisation are in use, and none became free"):
            await refused
        assert alices.reserved == 2  # a place in a runtime that the tenant has is no new runtime
        assert sorted(map(str, claimed(pool))) == sorted(map(str, (ALICE, BOB, ZOE)))
        pool.release(bobs)
        assert (await pool.reserve(CAROL)).key == CAROL
        assert BOB not in claimed(pool)


async def test_it_empties_a_runtime_of_its_own_and_nobody_elses(tmp_path: Path) -> None:
    async with pool_of(tmp_path, max_runtimes_per_tenant=1) as pool:
        emptied: list[str | None] = []
        held = {runtime.key: runtime for runtime in (await pool.reserve(ZOE), await pool.reserve(ALICE))}

        async def empty_runtime(tenant: str | None) -> bool:
            emptied.append(tenant)
            pool.release(held[ALICE])
            return True

        pool.empty_runtime = empty_runtime
        assert (await pool.reserve(BOB)).key == BOB
        assert emptied == ["acme"]
        assert claimed(pool) == [ZOE, BOB]


async def test_one_that_is_lost_counts_no_more(tmp_path: Path) -> None:
    async with pool_of(tmp_path, max_runtimes_per_tenant=1) as pool:
        alices = await pool.reserve(ALICE)
        waiting = asyncio.create_task(pool.reserve(BOB))
        await until(lambda: BOB in pool._claims)
        assert alices.pid is not None
        os.kill(alices.pid, signal.SIGKILL)
        assert (await waiting).key == BOB
        # The place that one has left is one place: no more than before.
        refused = asyncio.create_task(pool.reserve(CAROL))
        await until(lambda: CAROL in pool._claims)
        assert (await pool.reserve(ZOE)).key == ZOE
        assert CAROL not in claimed(pool)
        refused.cancel()


async def test_who_is_held_back_starts_no_runtimes_and_takes_no_warm_ones(tmp_path: Path) -> None:
    async with pool_of(tmp_path, max_runtimes_per_tenant=1, warm=1, replenish_delay=60.0) as pool:
        await pool.reserve(ALICE)
        waiting = [asyncio.create_task(pool.reserve(key)) for key in (BOB, CAROL)]
        await until(lambda: BOB in pool._claims and CAROL in pool._claims)
        await pool.spawn()
        assert pool.spare == 1
        assert claimed(pool) == [ALICE]
        warm: list[ManagedRuntime] = pool.in_state(RuntimeState.WARM)
        assert [await pool.reserve(ZOE)] == warm
        for task in waiting:
            task.cancel()


async def test_at_its_ceiling_a_recycled_one_goes_before_its_successor_comes(tmp_path: Path) -> None:
    async with pool_of(tmp_path, max_runtimes_per_tenant=1) as pool:
        worn = await pool.reserve(ALICE)

        async def hibernate(runtime: Runtime, reload: bool) -> bool:
            assert claimed(pool) == []  # retiring, and no other one beside it
            pool.release(worn)
            return True

        pool.move_sessions = hibernate
        await pool.recycle(worn.id, "turns")
        assert pool.runtimes == []
        assert (await pool.reserve(ALICE)).key == ALICE
