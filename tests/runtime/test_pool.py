"""The pool. Where it matters how a runtime behaves it is the real CLI; else a script that starts in no time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from aerodrome._util.clock import ManualClock
from aerodrome.errors import Capacity, Draining, RuntimeUnavailable
from aerodrome.model import RuntimeKey
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.pool import RuntimePool
from aerodrome.runtime.ports import Runtime
from aerodrome.runtime.supervisor import ManagedRuntime
from support.cli import OFFLINE, fake, hang, has_ended, processes_at_home, running_pool, runtime_options
from support.waiting import until

ACME = RuntimeKey("acme", None)
ALICE, BOB, CAROL = (RuntimeKey("acme", user) for user in ("alice", "bob", "carol"))


@asynccontextmanager
async def fakes(
    tmp_path: Path, misbehaviour: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[RuntimePool]:
    """A pool of scripts. Each start leaves a file in `starts`."""
    starts = tmp_path / "starts"
    starts.mkdir()
    runtime = runtime_options(
        tmp_path, fake(tmp_path, "protocol"), misbehaviour={"started": str(starts), **(misbehaviour or {})}
    )
    async with running_pool(runtime, **options) as pool:
        yield pool


def starts(tmp_path: Path) -> int:
    return len(list((tmp_path / "starts").iterdir()))


@pytest.fixture
def hold(tmp_path: Path) -> Path:
    """While this file exists, fakes that are given it as `held_while` do not come up."""
    path = tmp_path / "hold"
    path.touch()
    return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """Of the pool: it stands still until the test advances it."""
    clock = ManualClock()
    monkeypatch.setattr("aerodrome.runtime.pool.time", clock)
    return clock


def states(pool: RuntimePool) -> list[str]:
    return sorted(runtime.state.value for runtime in pool.runtimes)


def process_of(runtime: ManagedRuntime) -> psutil.Process:
    assert runtime.pid is not None
    return psutil.Process(runtime.pid)


# --- the real CLI ---


@pytest.mark.cli
async def test_trap_01_two_first_requests_start_one_runtime(cli: Path, tmp_path: Path) -> None:
    async with running_pool(runtime_options(tmp_path, cli)) as pool:
        reserved = await asyncio.gather(*(pool.reserve(ALICE) for _ in range(8)))
        (runtime,) = set(reserved)
        assert runtime.key == ALICE
        assert runtime.reserved == 8
        assert pool.runtimes == [runtime]
        assert [process.pid for process in processes_at_home(tmp_path)] == [runtime.pid]
        # What a claimed runtime has seen is not for anybody else.
        other = await pool.reserve(BOB)
        assert other is not runtime
        assert {process.pid for process in processes_at_home(tmp_path)} == {runtime.pid, other.pid}


@pytest.mark.cli
async def test_trap_02_the_runtime_picks_its_port(cli: Path, tmp_path: Path) -> None:
    """Many at once, beside a neighbour on the CLI's customary port and many others."""
    with socket.socket() as customary:
        customary.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            customary.bind(("127.0.0.1", 4321))
        except OSError:
            pass  # somebody else has it: just as well
        else:
            customary.listen()
        async with running_pool(runtime_options(tmp_path, cli), spawn_concurrency=4) as pool:
            keys = [RuntimeKey("acme", f"user{n}") for n in range(4)]
            reserved = await asyncio.gather(*(pool.reserve(key) for key in keys))
            listening = set()
            for runtime in reserved:
                for connection in process_of(runtime).net_connections():
                    if connection.status == psutil.CONN_LISTEN:
                        listening.add((runtime.id, connection.laddr.ip, connection.laddr.port))
            assert len(listening) == 4
            assert len({port for _, _, port in listening}) == 4
            assert {ip for _, ip, _ in listening} == {"127.0.0.1"}
            assert 4321 not in {port for _, _, port in listening}


@pytest.mark.cli
async def test_trap_16_a_hung_runtime_is_dead(cli: Path, tmp_path: Path) -> None:
    lost: list[Runtime] = []
    async with running_pool(runtime_options(tmp_path, cli)) as pool:
        pool.on_lost = lost.append
        hung = await pool.reserve(ALICE)
        process = hang(hung)
        await asyncio.wait_for(hung.lost.wait(), 50)
        assert "no answer to a ping within 1 s: it hangs" in hung.lost_reason
        assert hung.state is RuntimeState.FAILED
        await until(lambda: has_ended(process))
        pool.release(hung)
        replacement = await pool.reserve(ALICE)
        assert replacement is not hung
        assert replacement.reserved == 1
        # And one that is killed is noticed without waiting for a ping.
        process_of(replacement).kill()
        await asyncio.wait_for(replacement.lost.wait(), 30)
        await until(lambda: pool.runtimes == [])
        assert lost == [hung, replacement]
        assert not hung.home.exists()
        assert not replacement.home.exists()


@pytest.mark.cli
async def test_no_runtime_outlives_a_pool_that_was_killed(cli: Path, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "homes"), str(tmp_path / "logs"), str(cli), json.dumps(OFFLINE), "2"]
    script = Path(__file__).parents[1] / "support" / "pool_process.py"
    owner = subprocess.Popen([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        line = ""
        while not line.startswith("pids "):
            line = await asyncio.to_thread(owner.stdout.readline)
            assert line, "the pool ended"
        runtimes = [psutil.Process(int(pid)) for pid in line.split()[1:]]
        assert len(runtimes) == 2
        owner.kill()
        try:
            await until(lambda: all(map(has_ended, runtimes)))
        finally:
            for runtime in runtimes:
                if not has_ended(runtime):
                    runtime.kill()


# --- warm runtimes and claims ---


async def test_the_warm_pool_is_filled_and_refilled(tmp_path: Path) -> None:
    async with fakes(tmp_path, warm=2) as pool:
        await until(lambda: states(pool) == ["warm", "warm"])
        warm = set(pool.runtimes)
        first = await pool.reserve(ALICE)
        assert first in warm
        await until(lambda: states(pool) == ["claimed", "warm", "warm"])
        second = await pool.reserve(ACME)
        assert (first.key, second.key) == (ALICE, ACME)
        await until(lambda: states(pool) == ["claimed", "claimed", "warm", "warm"])
        # A warm one that dies is replaced as well.
        next(r for r in pool.runtimes if r.state is RuntimeState.WARM).kill("for a test")
        await until(lambda: states(pool) == ["claimed", "claimed", "warm", "warm"])
        assert starts(tmp_path) == 5


async def test_a_refill_waits_until_the_claimer_has_got_going(tmp_path: Path) -> None:
    async with fakes(tmp_path, warm=1, replenish_delay=30) as pool:
        await until(lambda: states(pool) == ["warm"])
        await pool.reserve(ALICE)
        for _ in range(50):
            await asyncio.sleep(0)
        assert states(pool) == ["claimed"]


async def test_a_first_request_takes_the_runtime_that_is_being_started_for_the_warm_pool(
    tmp_path: Path, hold: Path
) -> None:
    async with fakes(tmp_path, {"held_while": str(hold)}, warm=1, replenish_delay=30) as pool:
        await until(lambda: states(pool) == ["starting"])
        reserving = asyncio.create_task(pool.reserve(ALICE))
        await until(lambda: ALICE in pool._claims)
        hold.unlink()
        await reserving
        assert starts(tmp_path) == 1


async def test_a_claimed_runtime_is_never_handed_on(tmp_path: Path) -> None:
    """Not when it is idle, not when there is no other room: it ends, and its successor knows nothing of it."""
    async with fakes(tmp_path, max_runtimes=1, capacity_timeout=10) as pool:
        alices = await pool.reserve(ALICE)
        process = process_of(alices)
        (alices.workspace / "secret").write_text("alice's")
        pool.release(alices)
        bobs = await pool.reserve(BOB)
        assert bobs is not alices
        assert has_ended(process)
        assert not alices.home.exists()
        assert alices.key == ALICE
        assert list(bobs.workspace.iterdir()) == []


async def test_a_tenants_users_share_and_tenants_do_not(tmp_path: Path) -> None:
    async with fakes(tmp_path) as pool:
        first, second = await pool.reserve(ACME), await pool.reserve(ACME)
        other = await pool.reserve(RuntimeKey("globex", None))
        assert first is second
        assert other is not first


async def test_a_full_runtime_is_followed_by_another(tmp_path: Path) -> None:
    async with fakes(tmp_path, max_sessions=2) as pool:
        reserved = await asyncio.gather(*(pool.reserve(ACME) for _ in range(5)))
        assert sorted(runtime.reserved for runtime in set(reserved)) == [1, 2, 2]
        assert starts(tmp_path) == 3


# --- trap 3: bounded, and stopped when idle ---


async def test_trap_03_two_hundred_first_requests_stay_within_the_ceiling(tmp_path: Path, clock: ManualClock) -> None:
    highest = 0
    async with fakes(tmp_path, warm=1, max_runtimes=3, spawn_concurrency=2, capacity_timeout=100) as pool:

        async def visit(n: int) -> str:
            nonlocal highest
            try:
                await pool.reserve(RuntimeKey("acme", f"user{n}"))
            except Capacity:
                return "told to wait"
            finally:
                highest = max(highest, len(processes_at_home(tmp_path)) if n % 20 == 0 else len(pool.runtimes))
            return "served"

        visits = [asyncio.create_task(visit(n)) for n in range(200)]
        await until(lambda: sum(visit.done() for visit in visits) == 3, timeout=60)
        clock.advance(101)
        pool.notify()
        outcomes = await asyncio.gather(*visits)
        assert outcomes.count("served") == 3
        assert outcomes.count("told to wait") == 197
        assert highest <= 3
        assert starts(tmp_path) == 3


async def test_trap_03_idle_runtimes_stop(tmp_path: Path) -> None:
    async with fakes(tmp_path, idle_timeout=0.3) as pool:
        users, tenants, busy = await asyncio.gather(*(pool.reserve(key) for key in (ALICE, ACME, BOB)))
        pool.release(users)
        released_at = asyncio.get_running_loop().time()
        pool.release(tenants)
        await until(lambda: users not in pool.runtimes)
        await until(lambda: tenants not in pool.runtimes)
        # A tenant's waits for its next user; a user's own one does not.
        assert asyncio.get_running_loop().time() - released_at >= 0.3
        assert pool.runtimes == [busy]
        assert users.state is tenants.state is RuntimeState.STOPPED


async def test_an_idle_one_that_does_not_end_keeps_no_other_from_being_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waits for a file system on the network can be killed when that is back, and not before."""
    back = asyncio.Event()
    async with fakes(tmp_path, idle_timeout=0.3) as pool:
        alice, bob = await asyncio.gather(pool.reserve(ALICE), pool.reserve(BOB))
        stop = alice.stop

        async def stop_when_it_can() -> None:
            await back.wait()
            await stop()

        monkeypatch.setattr(alice, "stop", stop_when_it_can)
        pool.release(alice)
        pool.release(bob)
        await until(lambda: bob not in pool.runtimes)
        assert alice in pool.runtimes
        back.set()
        await until(lambda: not pool.runtimes)


async def test_what_was_started_for_a_request_that_gave_up_stays_warm_for_a_while(
    tmp_path: Path, hold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fakes(tmp_path, {"held_while": str(hold)}, idle_timeout=1.0) as pool:
        warm_since: list[float] = []
        monkeypatch.setattr(pool.standby, "started", lambda _: warm_since.append(time.monotonic()))

        async def start_and_give_up() -> None:
            hold.touch()
            impatient = asyncio.create_task(pool.reserve(ALICE))
            await until(lambda: "starting" in states(pool))
            (runtime,) = pool.in_state(RuntimeState.STARTING)
            impatient.cancel()
            with pytest.raises(asyncio.CancelledError):
                await impatient
            # What a start takes is no idleness, though it be longer than that may last.
            await until(lambda: time.monotonic() - runtime.last_held > 1.0)
            hold.unlink()

        await start_and_give_up()
        await until(lambda: states(pool) == ["warm"])
        assert (await pool.reserve(BOB)).key == BOB
        assert starts(tmp_path) == 1
        await start_and_give_up()
        await until(lambda: len(warm_since) == 2)
        await until(lambda: states(pool) == ["claimed"])
        assert time.monotonic() - warm_since[1] > 0.8


async def test_who_is_cancelled_does_not_spoil_it_for_the_others(tmp_path: Path, hold: Path) -> None:
    async with fakes(tmp_path, {"held_while": str(hold)}) as pool:
        first, second = asyncio.create_task(pool.reserve(ALICE)), asyncio.create_task(pool.reserve(ALICE))
        await until(lambda: states(pool) == ["starting"])
        first.cancel()
        hold.unlink()
        assert (await second).reserved == 1
        assert starts(tmp_path) == 1


# --- waiting for room ---


async def test_no_room_is_told_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome.runtime.queueing.time", ManualClock())
    async with fakes(tmp_path, max_runtimes=1, capacity_timeout=0.2) as pool:
        await pool.reserve(ALICE)
        with pytest.raises(Capacity, match=r"1 of 1 runtimes are in use .* within 0\.2 s") as caught:
            await pool.reserve(BOB)
        assert caught.value.retry_after == pytest.approx(1.0, abs=0.3)
        assert states(pool) == ["claimed"]
        # Nothing of the failed request is left to claim the room that comes.
        assert (await pool.reserve(ALICE)).reserved == 2


async def test_who_does_not_wait_gets_what_is_there(tmp_path: Path) -> None:
    """With `runtime.capacity_timeout = 0` only what has to be waited for is refused."""
    async with fakes(tmp_path, warm=1, capacity_timeout=0.0) as pool:
        await until(lambda: states(pool) == ["warm"])
        runtime = await pool.reserve(ALICE)
        assert await pool.reserve(ALICE) is runtime


async def test_a_start_under_way_is_no_lack_of_room(tmp_path: Path, hold: Path, clock: ManualClock) -> None:
    async with fakes(tmp_path, {"held_while": str(hold)}, capacity_timeout=100) as pool:
        reserving = asyncio.create_task(pool.reserve(ALICE))
        await until(lambda: pool._starts.under_way == 1)
        clock.advance(101)
        pool.notify()
        hold.unlink()
        assert (await reserving).key == ALICE


async def test_many_who_wait_do_not_look_again_at_each_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take all of the event loop's time, from those at work."""
    monkeypatch.setattr("aerodrome.runtime.pool._FEW", 20)
    monkeypatch.setattr("aerodrome.runtime.pool._APART", 1000.0)
    looks = 0
    look = RuntimePool._with_room

    def counted(self: RuntimePool, *args: Any) -> ManagedRuntime | None:
        nonlocal looks
        looks += 1
        return look(self, *args)

    monkeypatch.setattr(RuntimePool, "_with_room", counted)
    async with fakes(tmp_path, max_runtimes=1, max_sessions=1) as pool:
        held = await pool.reserve(ALICE)
        waiting = [asyncio.create_task(pool.reserve(ALICE)) for _ in range(50)]
        for _ in range(5):
            await asyncio.sleep(0)
        pool.notify()
        for _ in range(5):
            await asyncio.sleep(0)
        looks = 0
        for _ in range(100):
            pool.notify()
            await asyncio.sleep(0)
        assert looks <= 50
        # Late, and not never.
        pool.release(held)
        pool._wake()
        done, _ = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_they_are_woken_after_the_last_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome.runtime.pool._FEW", 20)
    monkeypatch.setattr("aerodrome.runtime.pool._APART", 0.005)
    async with fakes(tmp_path, max_runtimes=1, max_sessions=1) as pool:
        held = await pool.reserve(ALICE)
        waiting = [asyncio.create_task(pool.reserve(ALICE)) for _ in range(50)]
        for _ in range(len(waiting)):
            pool.notify()
            await asyncio.sleep(0)
            pool.release(held)
            done, _ = await asyncio.wait(waiting, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            (task,) = done
            held = task.result()
            waiting.remove(task)


async def test_room_that_comes_wakes_who_waits(tmp_path: Path) -> None:
    async with fakes(tmp_path, max_runtimes=1, capacity_timeout=30) as pool:
        runtime = await pool.reserve(ALICE)
        waiting = [asyncio.create_task(pool.reserve(key)) for key in (BOB, CAROL)]
        await asyncio.sleep(0)
        pool.release(runtime)
        bobs = await waiting[0]
        assert bobs.key == BOB
        assert not waiting[1].done()
        pool.release(bobs)
        assert (await waiting[1]).key == CAROL


async def test_a_place_that_is_released_wakes_who_waits(tmp_path: Path) -> None:
    async with fakes(tmp_path, max_runtimes=1, max_sessions=1, capacity_timeout=30) as pool:
        runtime = await pool.reserve(ALICE)
        waiting = asyncio.create_task(pool.reserve(ALICE))
        for _ in range(10):
            await asyncio.sleep(0)
        pool.release(runtime)
        assert await waiting is runtime
        assert starts(tmp_path) == 1


async def test_a_runtime_that_is_lost_makes_room(tmp_path: Path) -> None:
    async with fakes(tmp_path, max_runtimes=1, capacity_timeout=30) as pool:
        runtime = await pool.reserve(ALICE)
        waiting = asyncio.create_task(pool.reserve(BOB))
        await asyncio.sleep(0)
        process_of(runtime).kill()
        assert (await waiting).key == BOB


async def test_a_runtime_whose_claimer_gave_up_at_the_last_moment_is_free_for_who_waits(
    tmp_path: Path, hold: Path
) -> None:
    """Who waits looks first, and sees a runtime that somebody is about to take; only then is that one cancelled."""
    async with fakes(tmp_path, {"held_while": str(hold)}, max_runtimes=1, capacity_timeout=30) as pool:
        first = asyncio.create_task(pool.reserve(ACME))
        await until(lambda: states(pool) == ["starting"])
        bobs = asyncio.create_task(pool.reserve(BOB))
        await until(lambda: BOB in pool._claims)
        last = asyncio.create_task(pool.reserve(ACME))
        await asyncio.sleep(0)
        first.cancel()
        (runtime,) = pool.runtimes
        claim = runtime.claim

        def claimed_too_late(key: RuntimeKey) -> None:
            claim(key)
            last.cancel()

        runtime.claim = claimed_too_late  # type: ignore[method-assign]
        hold.unlink()
        assert (await bobs).key == BOB
        assert last.cancelled()


async def test_keys_that_wait_for_room_do_not_end_each_others_runtimes(tmp_path: Path) -> None:
    keys = [RuntimeKey("acme", f"user{n}") for n in range(12)]
    async with fakes(tmp_path, max_runtimes=2, capacity_timeout=40) as pool:

        async def visit(key: RuntimeKey) -> None:
            runtime = await pool.reserve(key)
            assert runtime.key == key
            assert runtime.state is RuntimeState.CLAIMED
            await asyncio.sleep(0)
            pool.release(runtime)

        await asyncio.gather(*map(visit, keys))
        assert starts(tmp_path) <= len(keys)


class Sessions:
    """What the sessions room does when it is asked to make room: the answers are the test's."""

    def __init__(self, pool: RuntimePool) -> None:
        #: For a place in the runtimes of a key, or for a whole runtime, of a tenant or (``None``) of anybody.
        self.asked: list[RuntimeKey | str | None] = []
        self.idle: list[ManagedRuntime] = []
        self._pool = pool
        pool.make_room = self.make_room
        pool.empty_runtime = self.empty_runtime

    async def make_room(self, key: RuntimeKey) -> bool:
        self.asked.append(key)
        return await self._let_go(lambda of: of == key)

    async def empty_runtime(self, tenant: str | None) -> bool:
        self.asked.append(tenant)
        return await self._let_go(lambda of: tenant in (None, of.tenant))

    async def _let_go(self, whose: Callable[[RuntimeKey], bool]) -> bool:
        await asyncio.sleep(0)
        for runtime in self.idle:
            if runtime.key is not None and whose(runtime.key):
                self.idle.remove(runtime)
                self._pool.release(runtime)
                return True
        return False


async def test_a_full_key_hibernates_one_of_its_own_before_it_takes_another_runtime(tmp_path: Path) -> None:
    async with fakes(tmp_path, max_sessions=1) as pool:
        sessions = Sessions(pool)
        runtime = await pool.reserve(ACME)
        sessions.idle.append(runtime)
        assert await pool.reserve(ACME) is runtime
        assert sessions.asked == [ACME]
        assert runtime.reserved == 1
        # Nothing idle any more: another runtime, one for all who wait.
        reserved = await asyncio.gather(pool.reserve(ACME), pool.reserve(ACME))
        assert {other.key for other in reserved} == {ACME}
        assert starts(tmp_path) == 3


async def test_two_requests_of_a_full_key_start_one_more_runtime(tmp_path: Path) -> None:
    """Each has been told that nothing can be hibernated; still it is one claim (trap 1)."""
    async with fakes(tmp_path, max_sessions=2) as pool:
        Sessions(pool)
        await asyncio.gather(pool.reserve(ACME), pool.reserve(ACME))
        await asyncio.gather(pool.reserve(ACME), pool.reserve(ACME))
        assert starts(tmp_path) == 2


async def test_a_node_that_is_full_empties_a_runtime_of_somebody_else(tmp_path: Path) -> None:
    async with fakes(tmp_path, max_runtimes=1, capacity_timeout=10) as pool:
        sessions = Sessions(pool)
        runtime = await pool.reserve(ALICE)
        process = process_of(runtime)
        sessions.idle.append(runtime)
        assert (await pool.reserve(BOB)).key == BOB
        assert sessions.asked == [None]
        assert has_ended(process)


async def test_a_session_that_falls_idle_makes_room_for_who_waits(tmp_path: Path) -> None:
    async with fakes(tmp_path, max_runtimes=1, capacity_timeout=30) as pool:
        sessions = Sessions(pool)
        runtime = await pool.reserve(ALICE)
        waiting = asyncio.create_task(pool.reserve(BOB))
        await until(lambda: bool(sessions.asked))
        assert set(sessions.asked) == {None}
        sessions.idle.append(runtime)
        pool.notify()
        assert (await waiting).key == BOB


async def test_who_cannot_be_helped_does_not_ask_again_and_again(tmp_path: Path) -> None:
    async with fakes(tmp_path, max_runtimes=1, max_sessions=1, capacity_timeout=0.3) as pool:
        sessions = Sessions(pool)
        await pool.reserve(ALICE)
        outcomes = await asyncio.gather(pool.reserve(ALICE), pool.reserve(BOB), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Capacity, Capacity]
        assert len(sessions.asked) < 12


async def test_a_failure_to_make_room_is_told_to_who_waits(tmp_path: Path) -> None:
    async with fakes(tmp_path, max_runtimes=1, capacity_timeout=20) as pool:

        async def crash(tenant: str | None) -> bool:
            raise RuntimeError("a bug")

        await pool.reserve(ALICE)
        pool.empty_runtime = crash
        with pytest.raises(RuntimeError, match="a bug"):
            await pool.reserve(BOB)
        pool.empty_runtime = None
        assert (await pool.reserve(ALICE)).key == ALICE


# --- starts that fail ---


async def test_a_cli_that_does_not_start_is_told_at_once_and_recovers_when_it_is_repaired(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    async with fakes(tmp_path, {"broken_while": str(broken)}, capacity_timeout=30) as pool:
        pool._starts.circuit.first = 0.05
        for failures in range(1, 4):
            assert pool.unavailable_reason is None
            with pytest.raises(RuntimeUnavailable, match=r"libbroken\.so is missing"):
                await pool.reserve(ALICE)
            assert starts(tmp_path) == failures
        assert pool.unavailable_reason is not None
        assert "libbroken.so is missing" in pool.unavailable_reason
        pool._starts.circuit.trying(1e12)  # the next try is far away
        refused = await asyncio.gather(*(pool.reserve(key) for key in (ALICE, BOB, ACME)), return_exceptions=True)
        for error in refused:
            assert isinstance(error, RuntimeUnavailable)
            assert "libbroken.so is missing" in error.detail
            assert error.retry_after is not None
        assert starts(tmp_path) == 3
        assert pool.runtimes == []
        broken.unlink()
        pool._starts.circuit.trying(0.0)
        assert (await pool.reserve(ALICE)).key == ALICE
        assert pool.unavailable_reason is None


async def test_the_warm_pool_recovers_by_itself(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    async with fakes(tmp_path, {"broken_while": str(broken)}, warm=1) as pool:
        pool._starts.circuit.first = 0.02
        await until(lambda: pool.unavailable_reason is not None)
        broken.unlink()
        await until(lambda: states(pool) == ["warm"])
        assert pool.unavailable_reason is None


async def test_a_start_that_fails_is_told_to_all_who_wait_for_it(tmp_path: Path) -> None:
    async with fakes(tmp_path, {"fails_turns": True}) as pool:
        outcomes = await asyncio.gather(*(pool.reserve(ALICE) for _ in range(5)), return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, RuntimeUnavailable)
            assert "no model today" in outcome.detail
        assert starts(tmp_path) == 1


async def test_a_start_that_breaks_in_an_unexpected_way_counts_as_failed(tmp_path: Path) -> None:
    class Crash:
        async def launch(self, *args: Any, **kwargs: Any) -> Any:
            raise ZeroDivisionError("a bug of the launcher")

    async with fakes(tmp_path) as pool:
        pool._starts._launcher = Crash()
        with pytest.raises(RuntimeUnavailable, match="ZeroDivisionError: a bug of the launcher"):
            await pool.reserve(ALICE)
        assert pool.runtimes == []
        assert pool._starts.circuit.failures == 1


async def test_who_waits_behind_starts_that_fail_is_told_when_no_more_are_tried(tmp_path: Path) -> None:
    """One that does not listen takes `start_timeout`: those behind it would wait for as many times that."""
    failing = asyncio.Event()

    class Broken:
        launched = 0

        async def launch(self, *args: Any, **kwargs: Any) -> Any:
            self.launched += 1
            await failing.wait()
            raise RuntimeUnavailable("it did not listen")

    async with fakes(tmp_path, spawn_concurrency=1) as pool:
        launcher = pool._starts._launcher = Broken()
        keys = [RuntimeKey(f"tenant-{n}", None) for n in range(8)]
        waiting = asyncio.gather(*(pool.reserve(key) for key in keys), return_exceptions=True)
        await until(lambda: len(pool.runtimes) == len(keys))
        failing.set()
        for error in await waiting:
            assert isinstance(error, RuntimeUnavailable)
            assert "it did not listen" in error.detail
        assert launcher.launched == 3
        assert pool.runtimes == []


async def test_one_that_dies_as_soon_as_it_is_warm_is_replaced_less_and_less_often(tmp_path: Path) -> None:
    """Each start takes a core for a second, from those at work; and whatever kills it may go on."""
    # The first ping comes when it is warm; one that died any sooner might count as a start that has failed.
    async with fakes(tmp_path, {"dies_after": "ping"}, warm=1) as pool:
        pool.upkeep.deaths.first = 0.3
        await until(lambda: starts(tmp_path) == 4)
        began = sorted(path.stat().st_mtime for path in (tmp_path / "starts").iterdir())
        assert began[3] - began[0] >= 0.3 + 0.6 + 1.2


# --- being closed ---


async def test_closing_ends_all_that_is_under_way(tmp_path: Path, hold: Path) -> None:
    hold.unlink()
    misbehaviour = {"held_while": str(hold)}
    async with fakes(tmp_path, misbehaviour, max_runtimes=3, spawn_concurrency=1, capacity_timeout=30) as pool:
        claimed = await pool.reserve(ALICE)
        process = process_of(claimed)
        hold.touch()
        waiting = [asyncio.create_task(pool.reserve(key)) for key in (BOB, CAROL, RuntimeKey("globex", None))]
        await until(lambda: states(pool).count("starting") == 2)
        await pool.aclose()
        assert has_ended(process)
        for task in waiting:
            with pytest.raises(Draining):
                await task
        with pytest.raises(Draining):
            await pool.reserve(ALICE)
        assert processes_at_home(tmp_path) == []


async def test_closing_waits_for_what_has_just_been_lost(tmp_path: Path) -> None:
    async with fakes(tmp_path) as pool:
        lost = await pool.reserve(ALICE)
        os.kill(process_of(lost).pid, signal.SIGKILL)
        await lost.lost.wait()
    assert not lost.home.exists()


async def test_stubborn_runtimes_are_killed_when_the_pool_closes(tmp_path: Path) -> None:
    starts_in = tmp_path / "starts"
    starts_in.mkdir()
    runtime = replace(
        runtime_options(tmp_path, fake(tmp_path, "protocol"), misbehaviour={"stubborn": True}), stop_timeout=0.2
    )
    async with running_pool(runtime) as pool:
        await asyncio.gather(*(pool.reserve(key) for key in (ALICE, BOB)))
    assert processes_at_home(tmp_path) == []


# --- sessions that are not let go of ---


class Stuck:
    """A runtime that does not answer `session.detach` until `gate` is set, and everything else."""

    def __init__(self, runtime: ManagedRuntime) -> None:
        self.gate = asyncio.Event()
        self._request = runtime.control.request
        runtime.control.request = self.request  # type: ignore[method-assign]
        runtime.control._timeout = 0.05

    async def request(self, method: str, params: dict[str, Any], *, timeout: float | None = None) -> Any:
        if method != "session.detach":
            return await self._request(method, params, timeout=timeout or 30)
        await self.gate.wait()
        return {"success": True}


async def test_a_session_does_not_come_to_a_runtime_that_has_not_let_go_of_it(tmp_path: Path) -> None:
    async with fakes(tmp_path) as pool:
        first = await pool.reserve(ACME, "s1")
        stuck = Stuck(first)
        assert not await first.let_go("s1")
        assert not first.lost.is_set()
        pool.release(first)
        second = await pool.reserve(ACME, "s1")
        assert second is not first
        assert await pool.reserve(ACME, "s2") is first  # it has less to do
        pool.release(first)
        stuck.gate.set()
        await until(lambda: not first.letting_go)
        assert await pool.reserve(ACME, "s1") is first


async def test_a_session_that_gets_stuck_again_has_to_wait(tmp_path: Path) -> None:
    async with fakes(tmp_path) as pool:
        gates = []
        for _ in range(2):
            runtime = await pool.reserve(ACME, "s1")
            gates.append(Stuck(runtime).gate)
            assert not await runtime.let_go("s1")
            pool.release(runtime)
        with pytest.raises(RuntimeUnavailable, match="let go"):
            await pool.reserve(ACME, "s1")
        gates[0].set()
        await until(lambda: not pool.runtimes[0].letting_go or not pool.runtimes[1].letting_go)
        pool.release(await pool.reserve(ACME, "s1"))
        gates[1].set()


async def test_a_runtime_that_leaves_a_request_unanswered_is_ended_when_it_hangs(tmp_path: Path) -> None:
    async with fakes(tmp_path) as pool:
        runtime = await pool.reserve(ACME)
        assert await runtime.answers("session.send")
        assert not runtime.lost.is_set()
        process_of(runtime).suspend()
        await until(lambda: process_of(runtime).status() == psutil.STATUS_STOPPED)
        runtime._ping_timeout = 0.1
        assert not await runtime.answers("session.send")
        assert "session.send" in runtime.lost_reason


async def test_a_session_that_has_to_be_alone_gets_a_runtime_of_its_own(tmp_path: Path) -> None:
    async with fakes(tmp_path) as pool:
        shared = await pool.reserve(ACME)
        alone = await pool.reserve(ACME, alone=True)
        assert alone is not shared
        # Nobody joins it, and nobody who has to be alone joins another.
        assert await pool.reserve(ACME) is shared
        other = await pool.reserve(ACME, alone=True)
        assert len({shared, alone, other}) == 3
        assert [runtime.describe()["alone"] for runtime in (shared, alone, other)] == [False, True, True]
        # Empty again, it serves whoever comes, and an empty one does for who has to be alone.
        pool.release(alone)
        assert not alone.alone
        assert await pool.reserve(ACME, alone=True) is alone
        pool.release(other)
        assert await pool.reserve(ACME) in (shared, other)


async def test_a_runtime_that_has_not_let_go_of_others_is_not_empty(tmp_path: Path) -> None:
    async with fakes(tmp_path) as pool:
        runtime = await pool.reserve(ACME)
        pool.release(runtime)
        runtime.letting_go["other"] = asyncio.create_task(asyncio.sleep(0, True))
        assert await pool.reserve(ACME, alone=True) is not runtime


async def test_one_that_has_to_be_alone_waits_for_room_like_others(tmp_path: Path) -> None:
    async with fakes(tmp_path, max_runtimes=1, capacity_timeout=0.2) as pool:
        shared = await pool.reserve(ACME)
        with pytest.raises(Capacity):
            await pool.reserve(ACME, alone=True)
        pool.release(shared)
        assert await pool.reserve(ACME, alone=True) is shared
