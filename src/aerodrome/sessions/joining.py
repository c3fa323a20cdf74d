"""Prompts that come to a running turn: handed to the runtime that is in it, which takes them up there, or behind it."""

from __future__ import annotations

import asyncio
from collections import deque

from aerodrome._util.tasks import Forestalled
from aerodrome.errors import Refused, RuntimeUnavailable
from aerodrome.sessions.activation import Activation
from aerodrome.sessions.attempts import Attempts
from aerodrome.sessions.books import TurnBooks
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.delivery import Delivery
from aerodrome.sessions.machine import State
from aerodrome.sessions.outcome import outcome_as_asked, status_of
from aerodrome.sessions.residency import Residency
from aerodrome.sessions.run import TurnRun, failure_of


class Joining:
    """Args:
    queue: Accepted prompts that wait. What is handed over leaves it, and comes back when it is refused.
    """

    def __init__(
        self,
        context: SessionContext,
        residency: Residency,
        delivery: Delivery,
        books: TurnBooks,
        attempts: Attempts,
        queue: deque[TurnRun],
    ) -> None:
        self._context = context
        self._residency = residency
        self._delivery = delivery
        self._books = books
        self._attempts = attempts
        self._queue = queue
        #: Prompts come to a running turn in their order, however long the ledger takes for each.
        self._handing_in = asyncio.Lock()

    def progress(self) -> None:
        """Hand over what waits for nothing else, as far as may be."""
        while self._queue and self._queue[0].joins and self._queue[0].recorded.done():
            waiting = self._queue[0]
            self.hand_over(waiting, steer=False)
            if self._queue and self._queue[0] is waiting:
                return

    def hand_over(self, run: TurnRun, *, steer: bool) -> None:
        """Hand the prompt to the runtime that is in a turn, if there is one that goes on; else it stays in the
        queue."""
        activation = self._residency.activation
        if activation is None or activation.lost.done() or self._residency.state is not State.RUNNING:
            return
        if any(running.stop_asked.done() for running in self._delivery.runs):
            return  # an abort throws away what the runtime has not taken up yet
        if self._residency.to_move and not steer:
            return  # after this turn, and not after all that may come yet
        self._queue.remove(run)
        self._context.admission.backlog.leave(run.row)
        self._delivery.add(run)
        self._context.tasks.start(self._hand_in(run, activation, steer=steer), "hand in")

    async def _hand_in(self, run: TurnRun, activation: Activation, *, steer: bool) -> None:
        attempt = run.tracker
        try:
            async with self._handing_in:
                started = await self._books.start(run)
                if started and activation.runtime.foreign and not await activation.takes_prompts():
                    raise RuntimeUnavailable(activation.runtime.lost_reason)
            # No await from here until it is in the activation's line: the next one comes behind it.
            if not started:
                self._delivery.remove(run, attempt)
            elif self._delivery.has(run, attempt):
                if run.stop_asked.done():
                    raise Forestalled
                run.placed_at = run.placed_at or asyncio.get_running_loop().time()  # that of the turn it comes to
                await self._attempts.send(run, activation, steer=steer)
                self._books.sent(run)
        except Forestalled:
            # The abort has gone to the runtime before it.
            if self._delivery.remove(run, attempt):
                await self._books.end(run, *outcome_as_asked(run), idle=False)
        except Refused:
            if self._delivery.has(run, attempt):
                run.joins = False  # offered again while the turn goes on, it would be refused again
                self._queue.appendleft(run)
                self._delivery.remove(run, attempt)
        except RuntimeUnavailable as error:
            activation.discard(error.detail)  # the worker deals with it
        except Exception as error:
            failure = failure_of(run, error)
            if self._delivery.remove(run, attempt):
                await self._books.end(run, status_of(failure), failure)
