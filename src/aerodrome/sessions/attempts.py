"""Brings one prompt to its end, over as many attempts as it takes: wake the session, send, see it through, and, when
the runtime is lost, find out what has become of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial

import structlog

from aerodrome._util.tasks import Forestalled, unless
from aerodrome.errors import (
    AerodromeError,
    Capacity,
    Quarantined,
    Refused,
    RuntimeUnavailable,
    TurnFailed,
    TurnInterrupted,
)
from aerodrome.events import SessionEvent
from aerodrome.sessions.activation import Activation, ActivationRefused, Loss
from aerodrome.sessions.books import TurnBooks
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.delivery import Delivery
from aerodrome.sessions.history import standing
from aerodrome.sessions.outcome import ATTEMPTS, Outcome, outcome_after, outcome_of
from aerodrome.sessions.parsing import parse
from aerodrome.sessions.residency import Residency
from aerodrome.sessions.row_updates import RowUpdates
from aerodrome.sessions.run import TurnRun
from aerodrome.sessions.wake import read_history, take_lease

log = structlog.get_logger(__name__)


class Attempts:
    """Args:
    publish: Tells the session's readers of an event.
    on_history: Called with the history, when an answer was found there that the runtime did not live to tell.
    movable: Whether nothing but turns keeps the session in its runtime.
    on_progress: Called whenever a prompt has been taken by the runtime, or has ended.
    put_back: Takes prompts that are to be sent again, in turns of their own, before others.
    """

    def __init__(
        self,
        context: SessionContext,
        updates: RowUpdates,
        residency: Residency,
        delivery: Delivery,
        books: TurnBooks,
        *,
        publish: Callable[[SessionEvent], None],
        on_history: Callable[[str], Awaitable[None]],
        movable: Callable[[], bool],
        on_progress: Callable[[], None],
        put_back: Callable[[list[TurnRun]], None],
    ) -> None:
        self._context = context
        self._updates = updates
        self._residency = residency
        self._delivery = delivery
        self._books = books
        self._publish = publish
        self._on_history = on_history
        self._movable = movable
        self._on_progress = on_progress
        self._put_back = put_back

    async def bring_to_end(self, run: TurnRun) -> None:
        """See the run to its end, and those that come to it to theirs or back to the queue.

        Raises:
            Forestalled: Its end was asked for before it was sent (again).
            AerodromeError: What it is to end with.
        """
        if run.stop_asked.done():
            raise Forestalled
        if not self._context.may_serve():
            await unless(self._context.serving(), run.stop_asked)
        if not await self._books.start(run):
            return
        while True:
            activation = await self._awake(run)
            if run.stop_asked.done():
                raise Forestalled
            async with AsyncExitStack() as stack:
                await self._place_in(activation, run, stack)
                if activation.runtime.foreign and not await unless(activation.takes_prompts(), run.stop_asked):
                    continue  # it hangs
                if self._residency.loaded is not activation:
                    continue  # lost as it was handed over, and perhaps others are loading the session again
                loss = await self._attempt(run, activation)
            if loss is None or run not in await self._after(loss, run):
                return

    async def _awake(self, run: TurnRun) -> Activation:
        if (loaded := self._residency.loaded) is not None:
            if not self._residency.to_move:
                return loaded
            if not await self._residency.hibernate(self._movable):
                return await unless(self._residency.awake(), run.stop_asked)
        try:
            try:
                return await unless(self._residency.awake(), run.stop_asked)
            except ActivationRefused:
                # The runtime went while the session was being loaded; nothing has been sent.
                return await unless(self._residency.awake(), run.stop_asked)
        except AerodromeError as error:
            if run.attempts == 0 or isinstance(error, Quarantined):
                raise
            raise TurnInterrupted(f"the runtime was lost in mid-turn, and then: {error.detail}") from error

    async def _place_in(self, activation: Activation, run: TurnRun, stack: AsyncExitStack) -> None:
        """Have room for one more turn in the runtime, unless that is lost meanwhile."""
        if not self._context.admission.limits_runtimes:
            return
        place = self._context.admission.hold_in(activation.runtime, run.row)
        try:
            await unless(stack.enter_async_context(place), run.stop_asked, activation.lost)
        except Forestalled:
            if run.stop_asked.done():
                raise
        except Capacity as error:
            if run.attempts == 0:
                raise
            raise TurnInterrupted(f"the runtime was lost in mid-turn, and then: {error.detail}") from error

    async def _attempt(self, run: TurnRun, activation: Activation) -> Loss | None:
        """Send the prompt and see it, and what comes to it, to the end. A `Loss` when the activation was lost before.

        Prompts that have ended are told so one by one; the others are left in the delivery.
        """
        self._residency.turn_began()
        self._updates.note(last_used_at=self._context.clock.time())
        activation.runtime.turns += 1
        run.span.set({"aerodrome.runtime.id": activation.runtime.id})
        self._delivery.add(run)
        try:
            await unless(self.send(run, activation), activation.lost)
        except Forestalled:
            return activation.lost.result()
        except Refused as error:
            # Perhaps it had unloaded the session by itself: asked again, it has been loaded anew.
            final = TurnFailed(error.detail) if run.attempts >= ATTEMPTS else None
            activation.discard(error.detail, final)
            return activation.lost.result()
        except RuntimeUnavailable as error:
            activation.discard(error.detail)
            return activation.lost.result()
        self._books.sent(run)
        return await self._see_to_the_end(activation)

    async def send(self, run: TurnRun, activation: Activation, *, steer: bool = False) -> None:
        """Hand a prompt over that is in the delivery. Raises what `Activation.send` raises."""
        async with activation.line:
            if activation.lost.done():
                raise RuntimeUnavailable(activation.lost.result().reason)
            first = run.first_message_id
            if first is None:
                await self._delivery.send(run, activation, steer=steer)
                return
            # Clients know the message by another id than the one it is about to get.
            attachments = self._residency.attachments
            attachments.sent_again(first, None)
            try:
                await self._delivery.send(run, activation, steer=steer)
            finally:
                attachments.sent_again(first, run.row.message_id or first)

    async def _see_to_the_end(self, activation: Activation) -> Loss | None:
        while True:
            # First what has ended, then what was lost: the events were stored before the end was told.
            ended = self._delivery.take_ended()
            self._books.unsettled.update(ended)
            over = not self._delivery.runs
            if over:
                self._residency.turn_ended()  # from here on no prompt can steer it
            for run in ended:
                await self._books.end(run, *outcome_of(run))
            if over:
                if not activation.lost.done():
                    self._context.suspicions.turn_ended(activation.key, activation.runtime)
                return None
            if activation.lost.done():
                return activation.lost.result()
            self._on_progress()  # one that was asked to end may be the last that is left
            if not self._delivery.runs:
                continue  # what was left has ended without the runtime, as the end of the others was recorded
            if overdue := self._delivery.overdue():
                await self._give_up(overdue, activation)
            else:
                await self._delivery.change(activation.lost)

    async def _give_up(self, overdue: list[TurnRun], activation: Activation) -> None:
        reason = f"the turn took longer than {self._context.options.turn_timeout:g} s"
        for run in overdue:
            run.stop(TurnFailed(reason))
        with suppress(RuntimeUnavailable):
            await activation.abort()
        activation.discard(reason)

    # --- after a loss ---

    async def _after(self, loss: Loss, run: TurnRun) -> list[TurnRun]:
        """Bring what was with the lost runtime to its end as far as possible. Returns those to be sent again, of which
        all but `run` are back in the queue."""
        undone = self._delivery.take_all()
        self._books.unsettled.update(undone)
        try:
            text = await self._residency.settle(loss.reason, partial(self._history_after, undone, loss))
        except AerodromeError as error:
            text = ""
            loss = Loss(loss.reason, TurnInterrupted(f"the runtime was lost ({loss.reason}), and then: {error.detail}"))
        again: list[TurnRun] = []
        ending: list[tuple[TurnRun, Outcome]] = []
        for other in undone:
            found = await parse(partial(standing, message_id=other.row.message_id), text)
            if found is not None and found.answer is not None and not other.tracker.ended:
                await self._on_history(text)
                other.tracker.answer = found.answer
            outcome = outcome_after(other, loss, found)
            if outcome is not None:
                ending.append((other, outcome))
            else:
                again.append(other)
        self._residency.attachments.doubt([other.first_message_id for other in again if other.first_message_id])
        for number, (other, outcome) in enumerate(ending, 1):
            # The runtime says once for all of them that it is idle. A client that has seen its answer would take it for
            # stored when it is another's turn that has ended, and its own prompt is about to be sent again.
            await self._books.end(other, *outcome, idle=not again and number == len(ending))
        for other in again:
            self._announce_retry(other, loss)
        self._put_back([other for other in again if other is not run])
        self._books.unsettled.difference_update(undone)
        return again

    async def _history_after(self, undone: list[TurnRun], loss: Loss) -> str:
        """What is stored for certain: read under a lease of our own, so that no write of the lost one comes behind."""
        if loss.error is not None or not any(run.row.message_id for run in undone):
            return ""
        lease, row = await take_lease(self._context, self._updates.row)
        try:
            return await read_history(self._context, row.key)
        finally:
            self._context.release_lease(lease)

    def _announce_retry(self, run: TurnRun, loss: Loss) -> None:
        self._context.telemetry.meter.turn_retried()
        log.info("turn.retried", session=str(self._updates.row.key), turn=run.id, reason=loss.reason)
        run.row = replace(run.row, retried=True, message_id=None)
        self._books.note(run, retried=True)
        self._publish(self._context.host_event("aerodrome.turn_retried", {"turn": run.id, "reason": loss.reason}))
