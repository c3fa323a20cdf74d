from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from aerodrome._util.clock import ManualClock
from aerodrome._util.patience import Patience, patient
from aerodrome.errors import NotFound, StoreUnavailable


class Store:
    """Away until a moment of the clock."""

    def __init__(self, clock: ManualClock, away: float) -> None:
        self._clock = clock
        self._back_at = clock.now + away
        self.asked = 0

    async def read(self, word: str) -> str:
        self.asked += 1
        if self._clock.now < self._back_at:
            raise StoreUnavailable("away")
        return word

    async def append(self, word: str) -> str:
        return await self.read(word)


def sleeping(clock: ManualClock) -> Callable[[float], Awaitable[None]]:
    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    return sleep


@pytest.mark.parametrize(("away", "seconds"), [(0.0, 0.0), (0.0, 15.0), (9.9, 15.0), (14.99, 15.0)])
async def test_a_store_that_comes_back_in_time_fails_nobody(away: float, seconds: float) -> None:
    clock = ManualClock()
    store = Store(clock, away)
    patience = Patience(seconds, clock=clock, sleep=sleeping(clock))
    assert await patience(lambda: store.read("a")) == "a"
    # Not in a loop that keeps the store from coming back, and soon after it has.
    assert store.asked <= 1 + 8 + away * 2
    assert clock.now - 1_000_000.0 <= away + 1.0


@pytest.mark.parametrize("seconds", [0.0, 3.0])
async def test_patience_ends_with_the_error_and_a_time_to_come_back(seconds: float) -> None:
    clock = ManualClock()
    store = Store(clock, 3600.0)
    began = clock.now
    with pytest.raises(StoreUnavailable, match="away") as failure:
        await Patience(seconds, clock=clock, sleep=sleeping(clock))(lambda: store.read("a"))
    assert failure.value.retry_after
    assert clock.now - began == pytest.approx(seconds)


async def test_nothing_else_is_tried_again() -> None:
    asked = 0

    async def missing() -> None:
        nonlocal asked
        asked += 1
        raise NotFound("gone")

    with pytest.raises(NotFound):
        await Patience(15.0)(missing)
    assert asked == 1


async def test_only_the_named_methods_of_a_port_are_patient() -> None:
    clock = ManualClock()
    store = Store(clock, 1.0)
    port = patient(store, Patience(15.0, clock=clock, sleep=sleeping(clock)), ("read",))
    with pytest.raises(StoreUnavailable):
        await port.append("a")
    assert store.asked == 1
    assert await port.read("a") == "a"
    assert await port.append("b") == "b"
    assert patient(store, Patience(0.0), ("read",)) is store
