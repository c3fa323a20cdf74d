"""Recycling and draining as the pool sees them: whose sessions move is a script's, the processes are fakes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from aerodrome.errors import Conflict, NotFound, RuntimeUnavailable
from aerodrome.model import RuntimeKey
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.pool import RuntimePool
from aerodrome.runtime.ports import Runtime
from aerodrome.runtime.recycler import RecycleOptions
from support.cli import fake, has_ended, running_pool, runtime_options
from support.waiting import until

ACME, GLOBEX = RuntimeKey("acme", None), RuntimeKey("globex", None)


class Sessions:
    """Places in runtimes: `idle` ones move when they are asked to, the others are in a turn."""

    def __init__(self, pool: RuntimePool) -> None:
        self.pool = pool
        self.idle: list[Runtime] = []
        self.moved: list[Runtime | None] = []
        pool.move_sessions = self.move

    async def move(self, runtime: Runtime, reload: bool) -> bool:
        found = runtime in self.idle
        while runtime in self.idle:
            self.idle.remove(runtime)
            self.pool.release(runtime)
            assert runtime.key is not None
            self.moved.append(await self.pool.reserve(runtime.key) if reload else None)
        return found


def states(pool: RuntimePool) -> list[str]:
    return sorted(runtime.state.value for runtime in pool.runtimes)


async def test_the_replacement_is_there_before_the_old_one_goes(tmp_path: Path) -> None:
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol"))) as pool:
        sessions = Sessions(pool)
        worn = await pool.reserve(ACME)
        sessions.idle.append(worn)
        recycling = asyncio.create_task(pool.recycle(worn.id, "turns"))
        await until(lambda: len(pool.runtimes) == 2)
        # While the other is being started, it goes on as before, and takes sessions.
        assert states(pool) == ["claimed", "starting"]
        assert await pool.reserve(ACME) is worn
        sessions.idle.append(worn)
        await recycling
        assert worn.state is RuntimeState.STOPPED
        (successor,) = pool.runtimes
        assert sessions.moved == [successor, successor]
        assert (successor.replaces, pool.retirements.recycled) == (("turns",), {"turns": 1})
        assert {"recycles": 1, "reasons": ["turns"], "retiring": None}.items() <= successor.describe().items()


async def test_a_turn_is_waited_for_and_nothing_new_comes_in(tmp_path: Path) -> None:
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol"))) as pool:
        Sessions(pool)
        worn = await pool.reserve(ACME)
        recycling = asyncio.create_task(pool.recycle(worn.id, "age"))
        await until(lambda: worn.state is RuntimeState.RETIRING)
        assert worn.describe()["retiring"] == "age"
        other = await pool.reserve(ACME)
        assert other is not worn
        # Whoever asks for the same waits for it.
        again = asyncio.create_task(pool.recycle(worn.id, "memory"))
        await asyncio.sleep(0)
        assert not recycling.done()
        pool.release(worn)
        await asyncio.gather(recycling, again)
        assert pool.runtimes == [other]
        assert pool.retirements.recycled == {"age": 1}


async def test_a_turn_that_does_not_end_does_not_keep_it_for_ever(tmp_path: Path) -> None:
    lost: list[Runtime] = []
    options = runtime_options(tmp_path, fake(tmp_path, "protocol"))
    async with running_pool(options, recycle=RecycleOptions(patience=0.2)) as pool:
        pool.on_lost = lost.append
        worn = await pool.reserve(ACME)
        await pool.recycle(worn.id, "memory")
        assert lost == [worn]  # those who hold it fail over
        assert "recycled (memory), and its turns did not end within 0.2 s" in worn.lost_reason
        assert worn not in pool.runtimes


async def test_others_with_room_are_replacement_enough(tmp_path: Path) -> None:
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol")), max_sessions=2) as pool:
        sessions = Sessions(pool)
        first, second, third = [await pool.reserve(ACME) for _ in range(3)]
        assert first is second is not third
        pool.release(second)
        sessions.idle.append(first)
        await pool.recycle(first.id, "turns")
        assert pool.runtimes == [third]
        assert third.reserved == 2
        assert third.replaces == ()


async def test_at_the_ceiling_nobody_else_is_pushed_out(tmp_path: Path) -> None:
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol")), max_runtimes=2) as pool:
        pushed: list[RuntimeKey | str | None] = []
        worn, other = await pool.reserve(ACME), await pool.reserve(GLOBEX)

        async def make_room(whose: RuntimeKey | str | None) -> bool:
            pushed.append(whose)
            return False

        async def hibernate(runtime: Runtime, reload: bool) -> bool:
            pool.release(runtime)
            return True

        pool.make_room = pool.empty_runtime = make_room
        pool.move_sessions = hibernate
        await pool.recycle(worn.id, "turns")
        assert pool.runtimes == [other]
        assert pushed == []


async def test_a_drained_runtime_gets_no_replacement(tmp_path: Path) -> None:
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol"))) as pool:
        sessions = Sessions(pool)
        drained = await pool.reserve(ACME)
        assert await pool.reserve(ACME) is drained
        sessions.idle.append(drained)
        draining = asyncio.create_task(pool.drain(drained.id))
        await until(lambda: sessions.moved == [None])
        assert not draining.done()  # the other one is in a turn
        pool.release(drained)
        await draining
        assert pool.runtimes == []


async def test_who_asks_and_goes_away_does_not_stop_it(tmp_path: Path) -> None:
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol"))) as pool:
        runtime = await pool.reserve(ACME)
        draining = asyncio.create_task(pool.drain(runtime.id))
        await until(lambda: runtime.state is RuntimeState.RETIRING)
        draining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await draining
        pool.release(runtime)
        await until(lambda: pool.runtimes == [])


async def test_one_that_is_lost_meanwhile_is_gone(tmp_path: Path) -> None:
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol"))) as pool:
        runtime = await pool.reserve(ACME)
        draining = asyncio.create_task(pool.drain(runtime.id))
        await until(lambda: runtime.state is RuntimeState.RETIRING)
        runtime.kill("for a test")
        await draining
        assert pool.runtimes == []


async def test_a_warm_one_is_replaced_by_the_pool(tmp_path: Path) -> None:
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol")), warm=1) as pool:
        await until(lambda: [r.state for r in pool.runtimes] == [RuntimeState.WARM])
        (worn,) = pool.runtimes
        await pool.recycle(worn.id, "age")
        await until(lambda: [r.state for r in pool.runtimes] == [RuntimeState.WARM] and worn not in pool.runtimes)


async def test_what_cannot_be_recycled_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    hold = tmp_path / "hold"
    hold.touch()
    misbehaviour = {"broken_while": str(broken), "held_while": str(hold)}
    options = runtime_options(tmp_path, fake(tmp_path, "protocol"), misbehaviour=misbehaviour)
    async with running_pool(options) as pool:
        for ask in (pool.drain, lambda runtime_id: pool.recycle(runtime_id, "age")):
            with pytest.raises(NotFound, match="this node has no runtime rt-none"):
                await ask("rt-none")
        starting = asyncio.create_task(pool.reserve(ACME))
        await until(lambda: [r.state for r in pool.runtimes] == [RuntimeState.STARTING])
        with pytest.raises(Conflict, match="is being started"):
            await pool.recycle(pool.runtimes[0].id, "age")
        hold.unlink()
        worn = await starting
        # No other one can be had: it is better than none.
        broken.touch()
        with pytest.raises(RuntimeUnavailable, match="is missing"):
            await pool.recycle(worn.id, "age")
        assert worn.state is RuntimeState.CLAIMED
        assert worn.pid is not None
        assert not has_ended(psutil.Process(worn.pid))
        assert pool.retirements.recycled == {}


async def test_without_patience_only_those_in_a_turn_are_cut(tmp_path: Path) -> None:
    lost: list[Runtime] = []
    options = runtime_options(tmp_path, fake(tmp_path, "protocol"))
    async with running_pool(options, recycle=RecycleOptions(patience=0.0)) as pool:
        pool.on_lost = lost.append
        sessions = Sessions(pool)
        worn = await pool.reserve(ACME)
        sessions.idle.append(worn)
        await pool.recycle(worn.id, "memory")
        assert (lost, len(sessions.moved)) == ([], 1)
        (busy,) = pool.runtimes
        await pool.recycle(busy.id, "memory")
        assert lost == [busy]


async def test_a_replacement_that_others_have_taken_is_not_waited_for(tmp_path: Path) -> None:
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol")), warm=1, max_runtimes=2) as pool:
        worn = await pool.reserve(ACME)
        await until(lambda: states(pool) == ["claimed", "warm"])
        recycling = asyncio.create_task(pool.recycle(worn.id, "memory"))
        await asyncio.sleep(0)
        # It looks while one is warm that somebody else is about to claim.
        await pool.reserve(GLOBEX)
        await until(lambda: worn.state is RuntimeState.RETIRING)
        pool.release(worn)
        await recycling
        assert worn not in pool.runtimes


async def test_a_move_that_fails_unexpectedly_is_tried_again(tmp_path: Path) -> None:
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol"))) as pool:
        sessions = Sessions(pool)
        failures = [RuntimeError("for a test")]

        async def move(runtime: Runtime, reload: bool) -> bool:
            if failures:
                raise failures.pop()
            return await sessions.move(runtime, reload)

        pool.move_sessions = move
        worn = await pool.reserve(ACME)
        sessions.idle.append(worn)
        # Given up half way it would take no sessions and never stop.
        await pool.recycle(worn.id, "age")
        assert worn not in pool.runtimes


async def test_at_the_ceiling_it_is_remembered_what_the_next_one_replaces(tmp_path: Path) -> None:
    async with running_pool(runtime_options(tmp_path, fake(tmp_path, "protocol")), max_runtimes=1) as pool:

        async def hibernate(runtime: Runtime, reload: bool) -> bool:
            pool.release(runtime)
            return True

        pool.move_sessions = hibernate
        for generation in range(3):
            worn = await pool.reserve(ACME)
            assert worn.replaces == ("memory",) * generation
            await pool.recycle(worn.id, "memory")
        other = await pool.reserve(GLOBEX)
        assert other.replaces == ()


async def test_one_that_is_lost_before_its_replacement_is_there_was_not_recycled(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    options = runtime_options(tmp_path, fake(tmp_path, "protocol"), misbehaviour={"held_while": str(hold)})
    async with running_pool(options) as pool:
        Sessions(pool)
        worn = await pool.reserve(ACME)
        hold.touch()
        recycling = asyncio.create_task(pool.recycle(worn.id, "memory"))
        await until(lambda: states(pool) == ["claimed", "starting"])
        worn.kill("for a test")
        await until(lambda: worn not in pool.runtimes)
        hold.unlink()
        await recycling
        (other,) = pool.runtimes
        assert (other.replaces, pool.retirements.recycled) == ((), {})
