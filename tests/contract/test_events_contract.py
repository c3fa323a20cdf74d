"""Cluster events of every store. `pair` is the store as two nodes see it."""

from __future__ import annotations

import asyncio

from aerodrome.coordination.ports import ClusterEvent
from support.coordination import Pair
from support.waiting import until


def event(number: int) -> ClusterEvent:
    return ClusterEvent("test.happened", f"acme/ü {number}", "a-1")


async def test_events_arrive_everywhere_in_order(pair: Pair) -> None:
    heard: list[list[ClusterEvent]] = [[], [], []]
    for store, ear in zip((pair.a, pair.a, pair.b), heard, strict=True):
        store.listen(ear.append)
        await store.publish(ClusterEvent("ready", ""))
    # Who listens at b is known to be there only when it has heard itself.
    await until(lambda: ClusterEvent("ready", "") in heard[2])
    sent = [event(number) for number in range(20)]
    for one in sent:
        await pair.a.publish(one)
    await until(lambda: all(sent[-1] in ear for ear in heard))
    assert all([one for one in ear if one.kind != "ready"] == sent for ear in heard)


async def test_what_was_published_before_is_not_heard_nor_after(pair: Pair) -> None:
    await pair.a.publish(event(0))
    await asyncio.sleep(0)  # within one process it is on its way until then
    heard: list[ClusterEvent] = []
    stop = pair.a.listen(heard.append)
    await pair.a.publish(event(1))
    await until(lambda: bool(heard))
    stop()
    stop()
    others: list[ClusterEvent] = []
    pair.a.listen(others.append)
    await pair.a.publish(event(2))
    await until(lambda: bool(others))
    assert heard == [event(1)]
    assert others == [event(2)]


async def test_a_listener_that_fails_keeps_nobody_else_from_hearing(pair: Pair) -> None:
    heard: list[ClusterEvent] = []

    def fail(_: ClusterEvent) -> None:
        heard.append(ClusterEvent("failing", ""))
        raise RuntimeError("on purpose")

    pair.a.listen(fail)
    pair.a.listen(heard.append)
    for number in range(2):
        await pair.a.publish(event(number))
    await until(lambda: len(heard) == 4)
    assert [one for one in heard if one.kind != "failing"] == [event(0), event(1)]
