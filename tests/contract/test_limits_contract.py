"""What every store does about rates and places. `pair` is the store as two nodes see it."""

from __future__ import annotations

import asyncio
from time import monotonic

from aerodrome.coordination.ports import Admission, Cap, Rate
from support.coordination import TTL, Pair, join_both

RATE = Rate("user", 4, 60.0)
CAP = Cap("user", 2)


async def admitted(pair: Pair, count: int, rate: Rate = RATE) -> list[Admission]:
    """One after the other, through both nodes in turn."""
    return [await pair.nodes[number % 2].admit(f"t-{number}", "a-1", rates=[rate]) for number in range(count)]


async def test_a_rate_holds_over_two_nodes_and_says_when_to_come_again(pair: Pair) -> None:
    await join_both(pair)
    began = monotonic()
    *granted, refused = await admitted(pair, 5)
    assert granted == [Admission()] * 4
    assert refused.exceeded == RATE
    # The clock of a server goes on by itself.
    assert 15.0 - (monotonic() - began) - 0.1 < refused.retry_after <= 15.1
    pair.clock.advance(refused.retry_after)
    assert await pair.a.admit("t-5", "a-1", rates=[RATE]) == Admission()
    assert (await pair.b.admit("t-6", "b-1", rates=[RATE])).exceeded == RATE
    assert await pair.b.admit("t-7", "b-1", rates=[Rate("another", 1, 60.0)]) == Admission()


async def test_a_rate_is_whole_again_after_its_period_and_saves_up_no_more_than_its_limit(pair: Pair) -> None:
    await join_both(pair)
    for _ in range(2):
        assert [admission.exceeded for admission in await admitted(pair, 5)] == [None] * 4 + [RATE]
        pair.clock.advance(1000.0)


async def test_a_burst_of_a_large_limit_comes_through_whole(pair: Pair) -> None:
    await join_both(pair)
    # One more is earned in 51 s, which is more than so many calls take a server.
    rate = Rate("many", 700, 36_000.0)
    await asyncio.gather(*(pair.nodes[number % 2].admit("t", "a-1", rates=[rate]) for number in range(700)))
    refused = await pair.a.admit("t", "a-1", rates=[rate])
    assert refused.exceeded == rate


async def test_one_rate_that_is_used_up_costs_nothing_of_the_others(pair: Pair) -> None:
    await join_both(pair)
    tight, wide = Rate("tight", 1, 60.0), Rate("wide", 3, 60.0)
    assert await pair.a.admit("t-1", "a-1", rates=[wide, tight], caps=[CAP]) == Admission()
    for _ in range(5):
        assert (await pair.b.admit("t-2", "b-1", rates=[wide, tight], caps=[CAP])).exceeded == tight
    assert await pair.b.admit("t-3", "b-1", rates=[wide], caps=[CAP]) == Admission()  # no place was taken either
    assert await pair.b.admit("t-3", "b-1", rates=[wide]) == Admission()
    assert (await pair.b.admit("t-3", "b-1", rates=[wide])).exceeded == wide


async def test_places_hold_over_two_nodes_until_they_are_given_back(pair: Pair) -> None:
    await join_both(pair)
    assert await pair.a.admit("t-1", "a-1", caps=[CAP]) == Admission()
    assert await pair.b.admit("t-2", "b-1", caps=[CAP]) == Admission()
    assert await pair.a.admit("t-1", "a-1", caps=[CAP]) == Admission()  # it has it already
    assert await pair.b.admit("t-3", "b-1", caps=[CAP]) == Admission(full=CAP)
    await pair.b.vacate("t-3", "b-1")
    assert await pair.b.admit("t-3", "b-1", caps=[CAP]) == Admission(full=CAP)
    await pair.b.vacate("t-1", "a-1")
    await pair.b.vacate("t-1", "a-1")
    assert await pair.b.admit("t-3", "b-1", caps=[CAP]) == Admission()
    assert await pair.a.admit("t-1", "a-1", caps=[CAP]) == Admission(full=CAP)


async def test_a_place_is_given_back_by_whoever_has_it(pair: Pair) -> None:
    """A turn that has moved keeps its place, whatever its first node says late."""
    await join_both(pair)
    one, other = Cap("one", 1), Cap("other", 1)
    assert await pair.a.admit("t-1", "a-1", caps=[one, other]) == Admission()
    assert await pair.b.admit("t-1", "b-1", caps=[one]) == Admission()
    await pair.a.vacate("t-1", "a-1")
    assert await pair.b.admit("t-2", "b-1", caps=[one]) == Admission(full=one)
    assert await pair.b.admit("t-2", "b-1", caps=[other]) == Admission()
    await pair.b.vacate("t-1", "b-1")
    assert await pair.b.admit("t-3", "b-1", caps=[one]) == Admission()


async def test_a_place_is_taken_under_every_cap_or_none(pair: Pair) -> None:
    await join_both(pair)
    tenant = Cap("tenant", 3)
    for number in range(2):
        assert await pair.a.admit(f"t-{number}", "a-1", caps=[tenant, CAP]) == Admission()
    assert await pair.b.admit("t-2", "b-1", caps=[tenant, CAP]) == Admission(full=CAP)
    assert await pair.b.admit("t-3", "b-1", caps=[tenant]) == Admission()
    assert await pair.b.admit("t-4", "b-1", caps=[tenant]) == Admission(full=tenant)
    await pair.a.vacate("t-0", "a-1")
    assert await pair.b.admit("t-4", "b-1", caps=[tenant, CAP]) == Admission()


async def test_the_places_of_a_dead_node_are_free(pair: Pair) -> None:
    await join_both(pair)
    for number in range(2):
        assert await pair.a.admit(f"t-{number}", "a-1", caps=[CAP]) == Admission()
    pair.clock.advance(TTL / 2)
    await pair.b.heartbeat("b-1")
    assert await pair.b.admit("t-2", "b-1", caps=[CAP]) == Admission(full=CAP)
    pair.clock.advance(TTL / 2)
    for number in (2, 3):
        assert await pair.b.admit(f"t-{number}", "b-1", caps=[CAP]) == Admission()
    assert await pair.b.admit("t-4", "b-1", caps=[CAP]) == Admission(full=CAP)
    await pair.a.vacate("t-0", "a-1")  # it wakes up, and gives back what is no more
    assert await pair.b.admit("t-4", "b-1", caps=[CAP]) == Admission(full=CAP)


async def test_of_many_who_come_at_once_as_many_are_admitted_as_there_are_places(pair: Pair) -> None:
    await join_both(pair)
    cap, rate = Cap("many", 7), Rate("many", 20, 3600.0)
    found = await asyncio.gather(
        *(pair.nodes[number % 2].admit(f"t-{number}", "b-1", rates=[rate], caps=[cap]) for number in range(30))
    )
    assert sum(admission == Admission() for admission in found) == 7
    assert sum(admission.full == cap for admission in found) == 13
    assert sum(admission.exceeded == rate for admission in found) == 10


async def test_names_may_hold_anything(pair: Pair) -> None:
    await join_both(pair)
    names = ["a b", "ü", "\ud800", "x\ny", "a:b", "\\xfc", '"', "{x}"]
    caps = [Cap(name, 1) for name in names]
    assert await pair.a.admit("ü-1", "a-1", rates=[Rate(name, 1, 60.0) for name in names], caps=caps) == Admission()
    for cap in caps:
        assert await pair.b.admit("t-2", "b-1", caps=[cap]) == Admission(full=cap)
        assert (await pair.b.admit("t-2", "b-1", rates=[Rate(cap.name, 1, 60.0)])).exceeded is not None
    await pair.a.vacate("ü-1", "a-1")
    assert await pair.b.admit("t-2", "b-1", caps=caps) == Admission()
