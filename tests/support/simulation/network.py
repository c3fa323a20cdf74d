"""The network between nodes and stores: calls are late or lost, or carried out and the answer is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from aerodrome.errors import AerodromeError, StoreUnavailable
from support.simulation.world import NodeLoop, World


class Site(Protocol):
    """A store at the other end."""

    name: str
    #: It answers nothing, and does nothing.
    down: bool

    def perform(self, caller: str, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry out a call, at once; returns its result or raises its error."""
        ...


@dataclass(slots=True)
class Weather:
    """How calls fare at present; probabilities."""

    slow: float = 0.0
    lose_request: float = 0.0
    #: The store does it, and nobody hears of it.
    lose_answer: float = 0.0


#: Seconds a call may take before its caller gives it up. What it asked for may be carried out still later.
TIMEOUT = 2.0
_FAST, _SLOW, _VERY_LATE = 0.004, 1.2, 4.0


class Network:
    def __init__(self, world: World) -> None:
        self.world = world
        self.weather = Weather()
        #: Pairs of node and site that cannot reach each other.
        self.cut: set[tuple[str, str]] = set()
        #: Called with node and operation when a store has carried out a call.
        self.carried_out: Callable[[str, str], None] = lambda *_: None

    async def call(
        self, loop: NodeLoop, caller: str, site: Site, operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Raises `StoreUnavailable` when no answer comes in time, whether or not the call was carried out."""
        world, weather = self.world, self.weather
        answer: asyncio.Future[Any] = loop.create_future()
        deadline = world.now + TIMEOUT / loop.rate

        def give_up() -> None:
            loop.arrive(_settle, answer, None, StoreUnavailable(f"no answer from {site.name}"))

        def arrive() -> None:
            if site.down or (loop.name, site.name) in self.cut:
                world.at(deadline, give_up)
                return
            result: Any = None
            error: Exception | None = None
            try:
                result = site.perform(caller, operation, args, kwargs)
            except (AerodromeError, OSError) as outcome:  # what stores say on purpose
                error = outcome
            self.carried_out(loop.name, operation)
            back = world.now + self._delay()
            if (weather.lose_answer and world.random.random() < weather.lose_answer) or back > deadline:
                world.say(f"{loop.name}: the answer to {operation} is lost")
                world.at(deadline, give_up)
                return
            world.at(back, lambda: loop.arrive(deliver, result, error))

        def deliver(result: Any, error: Exception | None) -> None:
            # Out of a pause: the answer has been there for long, and so has the time-out. Either may come first.
            if world.now > deadline and world.random.random() < 0.5:
                result, error = None, StoreUnavailable(f"no answer from {site.name}")
            _settle(answer, result, error)

        if weather.lose_request and world.random.random() < weather.lose_request:
            world.say(f"{loop.name}: {operation} is lost")
            world.at(deadline, give_up)
        else:
            world.after(self._delay(), arrive)
        return await answer

    def _delay(self) -> float:
        chance, weather = self.world.random.random, self.weather
        if weather.slow and chance() < weather.slow:
            return chance() * (_SLOW if chance() < 0.8 else _VERY_LATE)
        return chance() * _FAST


def _settle(answer: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)


class Remote:
    """A store as a node sees it: every method is a call over the network.

    Args:
        caller: What the node is called now; it changes with its incarnation.
    """

    def __init__(self, network: Network, loop: NodeLoop, site: Site, caller: Callable[[], str]) -> None:
        self._network = network
        self._loop = loop
        self._site = site
        self._caller = caller

    def __getattr__(self, operation: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._network.call(self._loop, self._caller(), self._site, operation, args, kwargs)

        setattr(self, operation, call)
        return call
