"""Ceilings on running turns: of the node, of a tenant; fair, bounded in time, given back."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from aerodrome.errors import Capacity
from aerodrome.sessions.slots import TurnSlots
from support.scripted_node import settle


async def held(slots: TurnSlots, tenant: str) -> AsyncExitStack:
    stack = AsyncExitStack()
    await stack.enter_async_context(slots.hold(tenant))
    return stack


async def test_a_tenant_waits_behind_its_own_ceiling_and_delays_nobody_else() -> None:
    slots = TurnSlots(total=3, per_tenant=2, timeout=5)
    mine = [await held(slots, "acme") for _ in range(2)]
    waiting = [asyncio.create_task(held(slots, "acme")) for _ in range(50)]
    await settle(5)
    other = await held(slots, "bank")
    await mine[0].aclose()
    await settle(5)
    assert [task.done() for task in waiting[:2]] == [True, False]  # in order
    await other.aclose()
    await mine[1].aclose()
    for task in waiting:
        await (await task).aclose()
    assert slots._tenants == {}


async def test_whoever_finds_no_room_in_time_is_told_when_to_come_again() -> None:
    slots = TurnSlots(total=1, per_tenant=5, timeout=0.01)
    first = await held(slots, "acme")
    with pytest.raises(Capacity) as full:
        await held(slots, "bank")
    assert full.value.retry_after == 0.01
    await first.aclose()
    await (await held(slots, "bank")).aclose()
    assert slots._tenants == {}


async def test_a_time_out_inside_a_turn_is_not_one_of_the_slots() -> None:
    slots = TurnSlots(total=1, per_tenant=1, timeout=5)
    with pytest.raises(TimeoutError):
        async with slots.hold("acme"):
            raise TimeoutError
    await (await held(slots, "acme")).aclose()


async def test_a_cancelled_wait_takes_no_slot() -> None:
    slots = TurnSlots(total=1, per_tenant=1, timeout=5)
    first = await held(slots, "acme")
    for tenant in ("acme", "bank"):
        waiting = asyncio.create_task(held(slots, tenant))
        await settle(5)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await first.aclose()
    await (await held(slots, "acme")).aclose()
    assert slots._tenants == {}
