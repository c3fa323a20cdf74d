"""A ceiling to wait at: in fair order, bounded in time, given back, and with an honest time to come again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from aerodrome._util.clock import ManualClock
from aerodrome.errors import Capacity, RateLimited
from aerodrome.fairness.estimate import JITTER
from aerodrome.fairness.gate import FairGate
from aerodrome.fairness.line import Ceilings
from support.scripted_node import settle


def gate_of(timeout: float = 60.0, **ceilings: int) -> FairGate:
    return FairGate(Ceilings(**ceilings), timeout=timeout, what="no turn could be started")


async def held(gate: FairGate, tenant: str, user: str = "alice") -> AsyncExitStack:
    stack = AsyncExitStack()
    await stack.enter_async_context(gate.hold(tenant, user))
    return stack


def nothing_left(gate: FairGate) -> bool:
    return not gate.line.tenants and not gate._granted and not gate._rates


async def test_a_tenant_waits_behind_its_own_ceiling_and_delays_nobody_else() -> None:
    gate = gate_of(total=3, per_tenant=2)
    mine = [await held(gate, "acme") for _ in range(2)]
    waiting = [asyncio.create_task(held(gate, "acme")) for _ in range(50)]
    await settle(5)
    other = await held(gate, "bank")
    await mine[0].aclose()
    await settle(5)
    assert [task.done() for task in waiting[:2]] == [True, False]  # in order
    await other.aclose()
    await mine[1].aclose()
    for task in waiting:
        await (await task).aclose()
    assert nothing_left(gate)


async def test_a_user_waits_behind_a_ceiling_of_its_own_and_delays_no_colleague() -> None:
    gate = gate_of(total=3, per_user=1)
    first = await held(gate, "acme", "alice")
    waiting = [asyncio.create_task(held(gate, "acme", "alice")) for _ in range(50)]
    await settle(5)
    assert not gate.free("acme", "alice")
    assert gate.free("acme", "bob")
    await (await held(gate, "acme", "bob")).aclose()
    await first.aclose()
    for task in waiting:
        await (await task).aclose()
    assert nothing_left(gate)


async def test_another_tenant_is_served_next_during_a_storm() -> None:
    gate = gate_of(total=1)
    order: list[str] = []

    async def turn(tenant: str, user: str) -> None:
        async with gate.hold(tenant, user):
            order.append(tenant)

    first = await held(gate, "storm")
    storm = [asyncio.create_task(turn("storm", f"user{number}")) for number in range(300)]
    await settle(5)
    quiet = [asyncio.create_task(turn("quiet", "alice")) for _ in range(10)]
    await settle(5)
    await first.aclose()
    await asyncio.gather(*storm, *quiet)
    assert [order[2 * n : 2 * n + 2].count("quiet") for n in range(10)] == [1] * 10


async def test_whoever_finds_no_room_in_time_is_told_when_to_come_again() -> None:
    gate = gate_of(timeout=0.01, total=1, per_tenant=5)
    first = await held(gate, "acme")
    with pytest.raises(Capacity) as full:
        await held(gate, "bank")
    assert type(full.value) is Capacity
    assert full.value.retry_after is not None
    assert full.value.retry_after >= 1.0
    await first.aclose()
    await (await held(gate, "bank")).aclose()
    assert nothing_left(gate)


@pytest.mark.parametrize("ceilings", [{"per_tenant": 1}, {"per_user": 1}, {"per_user": 1, "total": 1}])
async def test_at_a_ceiling_of_its_own_it_is_told_so(ceilings: dict[str, int]) -> None:
    """A node that is full is another matter: for a load balancer, and for whoever is on duty."""
    gate = gate_of(timeout=0.01, **ceilings)
    first = await held(gate, "acme")
    with pytest.raises(RateLimited) as refused:
        await held(gate, "acme")
    assert refused.value.retry_after is not None
    await first.aclose()
    assert nothing_left(gate)


async def test_the_time_to_come_again_is_that_of_the_line_and_of_the_rate() -> None:
    clock = ManualClock()
    gate = FairGate(Ceilings(total=1), timeout=60.0, what="none", monotonic=clock.monotonic)
    for _ in range(300):
        place = await held(gate, "acme")
        clock.advance(0.5)  # two a second
        await place.aclose()
    first = await held(gate, "acme")
    waiting = [asyncio.create_task(held(gate, "acme", f"user{number}")) for number in range(39)]
    await settle(5)
    # 39 are before it and it is the 40th; the other tenant has one of them before it.
    assert 20 * 0.9 <= gate.retry_after("acme", "late") <= 20 * (1 + JITTER) * 1.1
    assert gate.retry_after("bank", "late") <= 2.0
    await first.aclose()
    for task in waiting:
        await (await task).aclose()


async def test_who_waits_for_its_own_ceiling_is_told_by_its_own_rate() -> None:
    clock = ManualClock()
    gate = FairGate(Ceilings(total=100, per_user=1), timeout=60.0, what="none", monotonic=clock.monotonic)
    slow = await held(gate, "acme", "alice")
    for _ in range(300):  # others come and go ten times a second
        place = await held(gate, "acme", "bob")
        clock.advance(0.1)
        await place.aclose()
    assert gate.retry_after("acme", "alice") >= 15.0
    await slow.aclose()


async def test_a_time_out_inside_a_turn_is_not_one_of_the_gate() -> None:
    gate = gate_of(total=1)
    with pytest.raises(TimeoutError):
        async with gate.hold("acme", "alice"):
            raise TimeoutError
    await (await held(gate, "acme")).aclose()


async def test_a_cancelled_wait_takes_no_place() -> None:
    gate = gate_of(total=1, per_tenant=1)
    first = await held(gate, "acme")
    for tenant in ("acme", "bank"):
        waiting = asyncio.create_task(held(gate, tenant))
        await settle(5)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await first.aclose()
    await (await held(gate, "acme")).aclose()
    assert nothing_left(gate)


async def test_a_place_that_came_with_the_cancellation_is_given_on() -> None:
    gate = gate_of(total=1)
    first = await held(gate, "acme")
    waiting = asyncio.create_task(held(gate, "acme", "bob"))
    await settle(5)
    waiting.cancel()
    await first.aclose()  # in the same moment
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(30):
        await (await held(gate, "bank")).aclose()
    assert nothing_left(gate)
