"""The prompts of one session: admitted, recorded, answered one after the other, and each brought to one end.

A worker task takes them in order and exists only while there are any. Losing the runtime is no special case: the
attempt ends with a `Loss`, and the next attempt, or the next turn, finds the session hibernated and wakes it, wherever
there is room. Every run that was admitted ends: with its row when the end is recorded, with an error otherwise.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import structlog

from aerodrome._util.tasks import Flag, Forestalled, first_of, unless
from aerodrome.errors import (
    AerodromeError,
    Conflict,
    Draining,
    NotFound,
    RateLimited,
    SessionBusy,
)
from aerodrome.events import SessionEvent
from aerodrome.fairness.estimate import Rate, retry_after
from aerodrome.model import OnBusy, SessionKind, SessionRow
from aerodrome.sessions import setbacks
from aerodrome.sessions.aborts import Aborts
from aerodrome.sessions.attempts import Attempts
from aerodrome.sessions.books import TurnBooks
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.delivery import Delivery
from aerodrome.sessions.ends import TurnEnds
from aerodrome.sessions.joining import Joining
from aerodrome.sessions.outcome import outcome_as_asked, status_of
from aerodrome.sessions.residency import Residency
from aerodrome.sessions.row_updates import RowUpdates
from aerodrome.sessions.run import TurnRun, failure_of
from aerodrome.telemetry.trace import within

log = structlog.get_logger(__name__)


class Turns:
    """Args:
    publish: Tells the session's readers of an event.
    on_history: Called with the history, when an answer was found there that the runtime did not live to tell.
    movable: Whether nothing but turns keeps the session in its runtime.
    erase: Deletes everything of the session, for an ephemeral one whose turn has ended.
    """

    def __init__(
        self,
        context: SessionContext,
        updates: RowUpdates,
        residency: Residency,
        ends: TurnEnds,
        *,
        publish: Callable[[SessionEvent], None],
        on_history: Callable[[str], Awaitable[None]],
        movable: Callable[[], bool],
        erase: Callable[[SessionRow], Awaitable[None]],
    ) -> None:
        self._context = context
        self._updates = updates
        self._residency = residency
        self._erase = erase
        #: Accepted prompts that wait. The first is taken once it is recorded.
        self._queue: deque[TurnRun] = deque()
        #: An interrupting prompt has come in before the first of the queue.
        self._passed = Flag()
        #: What the worker is busy with.
        self._current: TurnRun | None = None
        #: It is between two turns.
        self._resting = False
        self._books = TurnBooks(context, updates, residency, ends, publish)
        self._delivery = Delivery(context.options.turn_timeout, lambda run: self._books.note(run, tool_ran=True))
        self._attempts = Attempts(
            context,
            updates,
            residency,
            self._delivery,
            self._books,
            publish=publish,
            on_history=on_history,
            movable=movable,
            on_progress=self._progress,
            put_back=lambda runs: self._queue.extendleft(reversed(runs)),
        )
        self._joining = Joining(context, residency, self._delivery, self._books, self._attempts, self._queue)
        self._aborts = Aborts(context, residency, self._delivery)
        self._worker: asyncio.Task[None] | None = None
        self._closed_with: AerodromeError | None = None
        #: How fast turns end.
        self._rate = Rate(context.clock.monotonic())
        #: Monotonic time of the last use, for the choice of whom to hibernate.
        self.last_used = context.clock.monotonic()

    # --- what is there ---

    @property
    def busy(self) -> bool:
        """A turn is running, waiting, or on its way in."""
        return self._current is not None or bool(self._queue)

    @property
    def at_work(self) -> bool:
        """There are turns, or the last has just ended."""
        return self.busy or (self._worker is not None and not self._worker.done())

    @property
    def delivered(self) -> list[TurnRun]:
        """Those that are with the runtime: the running turn and the prompts that steer it."""
        return self._delivery.runs

    @property
    def all(self) -> list[TurnRun]:
        current = [self._current] if self._current is not None else []
        return list(dict.fromkeys([*current, *self._delivery.runs, *self._queue, *self._books.unsettled]))

    def feed(self, event: SessionEvent) -> None:
        """An event of the runtime: what becomes of the turns is read out of these."""
        self._delivery.feed(event)

    def tell(self, event: SessionEvent, behind: str) -> None:
        """An event for those who follow a turn.

        Args:
            behind: The session's cursor before it.
        """
        current = self._current
        if current is not None:
            current.publish(event, behind)
        self._delivery.tell(event, behind, but=current)

    @property
    def followed(self) -> bool:
        """Whether anybody may be told of what the runtime does: only of its prompts whose senders wait for their end
        is nobody."""
        runs = self._delivery.runs
        return not runs or any(run.followed for run in runs)

    # --- admission (no await, so that what is decided on cannot change meanwhile) ---

    def admit(self, run: TurnRun, on_busy: OnBusy) -> None:
        """Take the run into the queue. It is sent once `accept` has said that it is recorded.

        Raises:
            NotFound, Draining: The session has been closed.
            SessionBusy, Conflict: It may not wait.
            Capacity: Too many wait: in the session, of the user, or of the tenant.
        """
        if self._closed_with is not None:
            raise copy.copy(self._closed_with)
        if self.busy:
            self._refuse_when_busy(on_busy)
        self._context.admission.backlog.enter(run.row)
        if not self.busy and self._residency.loaded is not None and self._context.admission.free(run.row):
            self._books.start_at_once(run)
        if on_busy is OnBusy.INTERRUPT:
            for waiting in self._queue:
                waiting.at_once = False
                # It would keep the one that comes before it now from having a place.
                self._context.admission.withdraw(waiting.row)
            self._queue.appendleft(run)
            self._passed.set()
        else:
            self._queue.append(run)
        self.last_used = self._context.clock.monotonic()
        if self._worker is None or self._worker.done():
            self._worker = self._context.tasks.start(self._work(), f"session {self._updates.row.key}")

    def withdraw(self, run: TurnRun) -> None:
        """The run could not be recorded: it never was."""
        self._queue.remove(run)
        self._context.admission.withdraw(run.row)
        self._context.admission.backlog.leave(run.row)
        run.span.end("withdrawn")
        run.recorded.set_result(False)

    def accept(self, run: TurnRun, on_busy: OnBusy) -> None:
        """An admitted run is recorded; what it is to do to the running turn is done now, not before."""
        run.recorded.set_result(True)
        if on_busy is OnBusy.INTERRUPT:
            self._stop_running()
        elif on_busy is OnBusy.STEER:
            self._joining.hand_over(run, steer=True)
        elif run.joins:
            self._progress()  # unless others wait before it

    def _refuse_when_busy(self, on_busy: OnBusy) -> None:
        if self._updates.row.kind is SessionKind.EPHEMERAL:
            raise Conflict("an ephemeral session takes one prompt")
        if on_busy is OnBusy.REJECT:
            holder = self.all[0].row
            raise SessionBusy("a turn is running in this session", turn=holder.id, author=holder.author)
        # The first of the queue does not wait for another when the worker has not come to it yet.
        waiting = len(self._queue) - (self._current is None)
        if waiting >= self._context.options.max_queued:
            chance, now = random.random(), self._context.clock.monotonic()  # noqa: S311
            raise RateLimited(
                f"{waiting} prompts wait in this session already",
                retry_after=retry_after(waiting, self._rate.per_second(now), chance),
            )

    # --- ending turns from outside ---

    def request_abort(self, run: TurnRun) -> None:
        run.stop()
        self._aborts.look()

    async def abort(self) -> bool:
        """End the running turn and wait for its end. ``False``: none was running."""
        stopped = self._stop_running() or self._stop(self._beginning)
        for run in stopped:
            await asyncio.wait({run.recorded})
            if run.recorded.result():
                await run.over()
        return bool(stopped)

    def shut(self, error: AerodromeError) -> None:
        """Take nothing more; everything that is here ends with this error, by the worker."""
        self._closed_with = self._closed_with or error
        for run in self.all:
            run.stop(error)

    async def join(self) -> None:
        """Wait for the worker's end, after `shut`."""
        if self._worker is not None:
            await asyncio.wait({self._worker})

    async def quiet(self) -> None:
        """Wait until no turn is left."""
        while self._worker is not None and not self._worker.done():
            await asyncio.wait({self._worker})

    def stop_running(self) -> bool:
        """Ask for the end of the running turn. ``False``: none was running."""
        return bool(self._stop_running() or self._stop(self._beginning))

    def _stop_running(self) -> list[TurnRun]:
        return self._stop(self._delivery.runs or ([self._current] if self._current is not None else []))

    @property
    def _beginning(self) -> list[TurnRun]:
        """The prompt that a session without turns has got a moment ago, and that is being recorded."""
        return [self._queue[0]] if self._queue and self._current is None and not self._resting else []

    def _stop(self, runs: list[TurnRun]) -> list[TurnRun]:
        """Ask for their end. Returns those that had not ended."""
        running = [run for run in runs if not run.ended]
        for run in running:
            run.stop()
        self._aborts.look()
        return running

    def _progress(self) -> None:
        """A prompt has been taken by the runtime, or has ended, or may join the running turn."""
        self._aborts.look()
        self._joining.progress()

    # --- the worker ---

    async def _work(self) -> None:
        try:
            while self._queue:
                run = self._queue[0]
                if not run.recorded.done():
                    self._passed.clear()
                    await first_of(run.recorded, self._passed.raised)
                if not self._queue or self._queue[0] is not run or not run.recorded.done():
                    continue  # withdrawn, steering, or an interrupting prompt has come in before it
                self._current = self._queue.popleft()
                about = {"session": str(run.row.key), "tenant": run.row.key.tenant, "turn": run.id}
                try:
                    with within(run.span.context), structlog.contextvars.bound_contextvars(**about):
                        await self._take(run)
                    if self._updates.row.kind is SessionKind.EPHEMERAL and not run.ended:
                        self._vanish(run)
                finally:
                    self._current = None
                    self._context.admission.withdraw(run.row)
                    self._context.admission.backlog.leave(run.row)
                await self._rest()
        except asyncio.CancelledError:
            for run in self.all:
                run.fail(Draining("this node stopped before the turn had ended; it is reported as interrupted"))
            raise

    async def _rest(self) -> None:
        """Between two turns."""
        self.last_used = self._context.clock.monotonic()
        self._rate.note(self.last_used)
        self._resting = True
        try:
            await self._residency.drop("the runtime was lost after the turn")
        finally:
            self._resting = False
        self._residency.note_state()
        if not self.busy:
            # Somebody may wait for the place it could make.
            self._context.pool.notify()

    async def _take(self, run: TurnRun) -> None:
        try:
            if run.stop_asked.done():
                raise Forestalled
            async with AsyncExitStack() as stack:
                place = self._context.admission.hold(run.row)
                if self._context.admission.free(run.row):
                    await stack.enter_async_context(place)
                else:
                    run.at_once = False  # what the ledger says of it may be another thing by then
                    with self._context.telemetry.tracer.span("turn.wait"):
                        await unless(stack.enter_async_context(place), run.stop_asked)
                run.placed_at = asyncio.get_running_loop().time()
                await self._attempts.bring_to_end(run)
        except Forestalled:
            await self._books.end(run, *outcome_as_asked(run))
        except AerodromeError as error:
            await self._books.end(run, status_of(error), error)
        except Exception as error:
            failure = failure_of(run, error)
            if self._residency.activation is not None:
                self._residency.activation.discard(failure.detail, failure)
            for other in dict.fromkeys([run, *self._delivery.take_all(), *self._books.unsettled]):
                await self._books.end(other, status_of(failure), failure)

    def _vanish(self, run: TurnRun) -> None:
        """The one turn of an ephemeral session has ended: it is told once nothing is left of it.

        In a task of its own, because a deletion waits for the worker.
        """
        self.shut(NotFound("an ephemeral session takes one prompt, and this one has ended"))

        async def erase_and_tell() -> None:
            try:
                await self._erase(self._updates.row)
            except Exception as error:
                setbacks.tell("session.not_deleted", run.row.key, error)
            finally:
                run.resolve(run.row)

        self._context.tasks.start(erase_and_tell(), "delete ephemeral")
