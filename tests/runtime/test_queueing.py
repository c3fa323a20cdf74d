"""Who gets a runtime, or a place in one, when they are few: fair between tenants and between users, by counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aerodrome._util.clock import ManualClock
from aerodrome.errors import Capacity
from aerodrome.model import RuntimeKey
from aerodrome.runtime.pool import RuntimePool
from support.cli import fake, running_pool, runtime_options
from support.scripted_node import settle

pytestmark = pytest.mark.timeout(120)

ACME = RuntimeKey("acme", None)


@asynccontextmanager
async def fakes(tmp_path: Path, **options: Any) -> AsyncIterator[RuntimePool]:
    runtime = runtime_options(tmp_path, fake(tmp_path, "protocol"), misbehaviour={})
    async with running_pool(runtime, **options) as pool:
        yield pool


def use(pool: RuntimePool, key: RuntimeKey, user: str, order: list[str]) -> asyncio.Task[None]:
    """Take a place, note it, give it back."""

    async def take() -> None:
        runtime = await pool.reserve(key, user=user)
        order.append(f"{key.tenant}/{user}")
        pool.release(runtime)

    return asyncio.create_task(take())


async def test_users_who_share_runtimes_take_turns(tmp_path: Path) -> None:
    async with fakes(tmp_path, max_runtimes=1, max_sessions=1) as pool:
        order: list[str] = []
        first = await pool.reserve(ACME, user="storm")
        waiting = [use(pool, ACME, "storm", order) for _ in range(200)]
        await settle()
        waiting += [use(pool, ACME, user, order) for user in ("alice", "bob", "alice")]
        await settle()
        pool.release(first)
        async with asyncio.timeout(60):
            await asyncio.gather(*waiting)
        assert max(place for place, name in enumerate(order) if name != "acme/storm") <= 6
        assert pool._queue.waiting == {}


async def test_tenants_take_turns_for_a_runtime(tmp_path: Path) -> None:
    """Each of the storm's users needs a runtime of its own; the other tenant has the next but one."""
    async with fakes(tmp_path, max_runtimes=1, warm=0, capacity_timeout=100.0) as pool:
        order: list[str] = []
        first = await pool.reserve(RuntimeKey("storm", "u0"))
        waiting = [use(pool, RuntimeKey("storm", f"u{n}"), f"u{n}", order) for n in range(1, 12)]
        await settle()
        waiting += [use(pool, RuntimeKey("quiet", user), user, order) for user in ("alice", "bob")]
        await settle()
        pool.release(first)
        async with asyncio.timeout(100):
            await asyncio.gather(*waiting)
        assert max(place for place, name in enumerate(order) if name.startswith("quiet")) <= 4


async def test_a_request_that_has_just_come_is_not_faster_than_those_that_wait(tmp_path: Path) -> None:
    async with fakes(tmp_path, max_runtimes=1, max_sessions=1) as pool:
        order: list[str] = []
        first = await pool.reserve(ACME, user="alice")
        waiting = [use(pool, ACME, "bob", order)]
        await settle()
        pool.release(first)
        waiting.append(use(pool, ACME, "carol", order))  # finds the place free, were it not for bob
        await asyncio.gather(*waiting)
        assert order == ["acme/bob", "acme/carol"]


async def test_one_request_too_many_is_refused_at_once(tmp_path: Path) -> None:
    options = {"max_waiting_per_user": 2, "max_waiting_per_tenant": 3}
    async with fakes(tmp_path, max_runtimes=1, max_sessions=1, **options) as pool:
        order: list[str] = []
        first = await pool.reserve(ACME, user="alice")
        waiting = [use(pool, ACME, "alice", order) for _ in range(2)]
        await settle()
        with pytest.raises(Capacity) as refused:
            await pool.reserve(ACME, user="alice")
        assert refused.value.retry_after is not None
        waiting.append(use(pool, ACME, "bob", order))
        await settle()
        with pytest.raises(Capacity):
            await pool.reserve(ACME, user="carol")
        waiting[0].cancel()
        await settle()
        waiting.append(use(pool, ACME, "carol", order))
        await settle()
        pool.release(first)
        await asyncio.gather(*waiting[1:])
        assert sorted(order) == ["acme/alice", "acme/bob", "acme/carol"]


async def test_the_time_to_come_again_depends_on_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    monkeypatch.setattr("aerodrome.runtime.queueing.time", clock)
    async with fakes(tmp_path, max_runtimes=1, max_sessions=1, capacity_timeout=0.5) as pool:
        await pool.reserve(ACME, user="alice")
        waiting = [asyncio.create_task(pool.reserve(ACME, user="alice")) for _ in range(200)]
        await asyncio.sleep(0)
        assert pool._queue.waiting == {"acme": 200}
        clock.advance(0.5)
        refused = await asyncio.gather(*waiting, return_exceptions=True)
        times = [error.retry_after for error in refused if isinstance(error, Capacity) and error.retry_after]
        assert len(times) == 200
        # None came back in half a second. Who comes again now is behind all who still wait: for the first to give up
        # these are many, for the last nobody.
        assert min(times) < 3.0
        assert max(times) > 80.0
