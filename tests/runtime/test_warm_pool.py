"""The size of the warm pool follows those who come, and gives way when the machine is short of memory."""

from __future__ import annotations

import asyncio
import errno
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aerodrome.model import RuntimeKey
from aerodrome.runtime.demand import Headroom
from aerodrome.runtime.pool import PoolOptions, RuntimePool
from aerodrome.runtime.standby import Standby, StandbyOptions
from support.cli import fake, launcher, runtime_options
from support.waiting import until

MB = 1 << 20


class Machine:
    def __init__(self) -> None:
        self.available = 100_000 * MB
        #: So many looks at it go wrong.
        self.unseen = 0

    def read(self) -> Headroom:
        if self.unseen:
            self.unseen -= 1
            raise OSError(errno.EMFILE, "Too many open files", "/proc/meminfo")
        return Headroom(self.available)


@asynccontextmanager
async def pool_on(machine: Machine, tmp_path: Path, *, least: int, most: int = 0) -> AsyncIterator[RuntimePool]:
    runtime = runtime_options(tmp_path, fake(tmp_path, "protocol"))
    standby = Standby(StandbyOptions(least, most, reserve=500 * MB), machine.read)
    pool = RuntimePool(PoolOptions(runtime, replenish_delay=0.0), launcher(), standby)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.aclose()


def states(pool: RuntimePool) -> Counter[str]:
    return Counter(runtime.state.value for runtime in pool.runtimes)


async def come(pool: RuntimePool, *names: str) -> None:
    await asyncio.gather(*(pool.reserve(RuntimeKey(name, None)) for name in names))


async def test_after_many_have_come_together_more_stand_by_within_the_bounds(tmp_path: Path) -> None:
    async with pool_on(Machine(), tmp_path, least=1, most=3) as pool:
        await until(lambda: states(pool) == {"warm": 1})
        await come(pool, *"abcdef")
        await until(lambda: states(pool) == {"claimed": 6, "warm": 3})


async def test_without_a_maximum_the_pool_is_as_large_as_it_is_set(tmp_path: Path) -> None:
    async with pool_on(Machine(), tmp_path, least=1) as pool:
        await come(pool, *"abcd")
        await until(lambda: states(pool) == {"claimed": 4, "warm": 1})
        assert pool.upkeep.warm_target() == 1


async def test_what_stands_by_goes_when_memory_is_short_and_claims_do_not_suffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aerodrome.runtime.upkeep._LOOK", 0.02)
    machine = Machine()
    async with pool_on(machine, tmp_path, least=2) as pool:
        await until(lambda: states(pool) == {"warm": 2})
        await come(pool, "a")
        await until(lambda: states(pool) == {"claimed": 1, "warm": 2})
        machine.available = 100 * MB
        await until(lambda: states(pool) == {"claimed": 1})
        # Who needs one gets one.
        await come(pool, "b")
        assert states(pool) == {"claimed": 2}
        machine.available = 100_000 * MB
        await until(lambda: states(pool) == {"claimed": 2, "warm": 2})


async def test_a_look_that_goes_wrong_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome.runtime.upkeep._LOOK", 0.02)
    machine = Machine()
    async with pool_on(machine, tmp_path, least=1) as pool:
        await until(lambda: states(pool) == {"warm": 1})
        machine.unseen = 2
        await until(lambda: not machine.unseen)
        machine.available = 100 * MB
        await until(lambda: not pool.runtimes)


async def test_none_is_started_into_the_reserve(tmp_path: Path) -> None:
    machine = Machine()
    machine.available = (500 + 160) * MB
    async with pool_on(machine, tmp_path, least=3) as pool:
        # One more would fit; the fakes take nothing of what is said to be available.
        pool.standby.look()
        assert pool.upkeep.warm_target() == 1


async def test_what_a_start_takes_is_learnt_without_what_it_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pool_on(Machine(), tmp_path, least=0) as pool:
        told: list[float] = []
        monkeypatch.setattr(pool.standby, "started", told.append)
        circuit = pool._starts.circuit
        circuit.first = 0.5
        began = time.monotonic()
        circuit.failed(began, "for a test")
        await pool.spawn()
        assert told[0] < time.monotonic() - began - 0.4
