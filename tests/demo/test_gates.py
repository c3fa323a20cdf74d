"""Gates between two event loops."""

from __future__ import annotations

import asyncio
import threading

import pytest

from aerodrome.demo.gates import Gates


@pytest.fixture
def gates() -> Gates:
    return Gates()


async def test_a_gate_holds_until_it_is_opened(gates: Gates) -> None:
    held = asyncio.create_task(gates.passed("g"))
    await gates.reached("g")
    assert not held.done()
    gates.open("g")
    await held
    await gates.left("g")


async def test_an_open_gate_lets_all_pass_until_it_is_closed(gates: Gates) -> None:
    gates.open("g")
    await gates.passed("g")
    await gates.passed("g")
    gates.close("g")
    held = asyncio.create_task(gates.passed("g"))
    await gates.reached("g")
    assert not held.done()
    held.cancel()


async def test_closing_counts_anew_but_keeps_those_that_are_held(gates: Gates) -> None:
    gates.open("g")
    await gates.passed("g")
    gates.close("g")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await gates.reached("g")
    held = asyncio.create_task(gates.passed("g"))
    await gates.reached("g")
    gates.close("g")
    await gates.reached("g")
    held.cancel()


async def test_reached_counts_requests(gates: Gates) -> None:
    tasks = [asyncio.create_task(gates.passed("g"))]
    second = asyncio.create_task(gates.reached("g", times=2))
    await gates.reached("g")
    assert not second.done()
    tasks.append(asyncio.create_task(gates.passed("g")))
    await second
    gates.open("g")
    await asyncio.gather(*tasks)


async def test_a_request_that_is_given_up_leaves_the_gate(gates: Gates) -> None:
    held = asyncio.create_task(gates.passed("g"))
    await gates.reached("g")
    left = asyncio.create_task(gates.left("g"))
    held.cancel()
    await left
    assert held.cancelled()
    gates.open("g")
    await gates.passed("g")


async def test_a_wait_for_a_gate_may_be_given_up(gates: Gates) -> None:
    waiting = asyncio.create_task(gates.reached("g"))
    await asyncio.sleep(0)
    waiting.cancel()
    held = asyncio.create_task(gates.passed("g"))
    await gates.reached("g")
    gates.open("g")
    await held


async def test_both_sides_may_be_on_different_loops(gates: Gates) -> None:
    thread = threading.Thread(target=asyncio.run, args=[gates.passed("g")])
    thread.start()
    await gates.reached("g")
    assert thread.is_alive()
    gates.open("g")
    await gates.left("g")
    await asyncio.to_thread(thread.join)
