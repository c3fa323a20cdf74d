"""Aborting what a runtime is at work on: only once nothing is left in it that somebody still wants."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from aerodrome.errors import RuntimeUnavailable
from aerodrome.sessions.activation import Activation
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.delivery import Delivery
from aerodrome.sessions.residency import Residency
from aerodrome.sessions.run import TurnRun

#: Seconds after which the runtime is told again, if nothing has come of it: one that comes just when a prompt is on its
#: way from the runtime's queue into a turn is answered, and has no effect (docs/facts.md, "Wire").
AGAIN = 1.0


class Aborts:
    def __init__(self, context: SessionContext, residency: Residency, delivery: Delivery) -> None:
        self._context = context
        self._residency = residency
        self._delivery = delivery

    def look(self) -> None:
        """A prompt that is with the runtime may have been asked to end, or be the last that is left: tell the runtime
        to abort, if the end of all of them was asked for and it has not been told."""
        activation, runs = self._residency.activation, self._delivery.runs
        if activation is None or not runs or not all(run.stop_asked.done() for run in runs):
            return
        if not all(run.abort_sent for run in runs):
            for run in runs:
                run.abort_sent = True
            self._context.tasks.start(self._abort(activation, runs), "abort")

    async def _abort(self, activation: Activation, runs: list[TurnRun]) -> None:
        loop, timeout = asyncio.get_running_loop(), self._context.options.abort_timeout
        await self._ask(activation)
        give_up = loop.time() + timeout
        while not await _over(runs, min(give_up, loop.time() + AGAIN)):
            if loop.time() >= give_up:
                activation.discard(f"the runtime did not end an aborted turn within {timeout:g} s")
                return
            if set(runs) & set(self._delivery.runs):
                await self._ask(activation)

    async def _ask(self, activation: Activation) -> None:
        with suppress(RuntimeUnavailable):
            await activation.abort()


async def _over(runs: list[TurnRun], until: float) -> bool:
    """``False``: not all have ended by then, by the loop's time."""
    loop = asyncio.get_running_loop()
    return all([await run.over(max(0.0, until - loop.time())) for run in runs])
