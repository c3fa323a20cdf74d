"""A session that this node is concerned with: its queue of turns, its activation, its way to sleep.

One worker task a session takes the turns one after the other and exists only while there are any. Waking,
hibernating and closing exclude each other by one lock; between turns the state machine says what may happen.

Losing the runtime is no special case: the turn's attempt ends with a `Loss`, and the next attempt, or the next turn,
finds the session asleep and wakes it, wherever there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import structlog

from aerodrome._util.tasks import first_of
from aerodrome.errors import (
    AerodromeError,
    Capacity,
    Draining,
    NotFound,
    RuntimeUnavailable,
    SessionBusy,
    StoreUnavailable,
    TurnFailed,
    TurnInterrupted,
)
from aerodrome.events import SessionEvent
from aerodrome.model import LastTurn, OnBusy, SessionKind, SessionRow, SessionState, TurnStatus
from aerodrome.sessions.activation import Activation, ActivationRefused, Loss
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.hub import EventHub
from aerodrome.sessions.machine import SessionMachine, State, Stimulus
from aerodrome.sessions.run import TurnRun, error_of
from aerodrome.sessions.wake import read_history, wake
from aerodrome.statestore.history import tail

log = structlog.get_logger(__name__)

#: How often a prompt is sent to a runtime: once, and once more when the runtime died before a tool had run.
ATTEMPTS = 2

_LISTED_AS = {State.IDLE: SessionState.RESIDENT, State.RUNNING: SessionState.RUNNING}


class LiveSession:
    """Args:
    erase: Deletes everything of the session, for an ephemeral one whose turn has ended.
    """

    def __init__(
        self, context: SessionContext, row: SessionRow, hub: EventHub, erase: Callable[[SessionRow], Awaitable[None]]
    ) -> None:
        self.row = row
        self.hub = hub
        self.activation: Activation | None = None
        #: Monotonic time of the last use, for the choice of whom to hibernate.
        self.last_used = context.clock.monotonic()
        self._context = context
        self._erase = erase
        self._machine = SessionMachine()
        self._queue: deque[TurnRun] = deque()
        self._current: TurnRun | None = None
        #: Prompts that steer the current turn; they end with it.
        self._riders: list[TurnRun] = []
        self._settled = asyncio.Event()
        self._transition = asyncio.Lock()
        self._worker: asyncio.Task[None] | None = None

    # --- what it is ---

    @property
    def state(self) -> State:
        return self._machine.state

    @property
    def listed_state(self) -> SessionState:
        return _LISTED_AS.get(self.state, SessionState.HIBERNATED)

    @property
    def current(self) -> TurnRun | None:
        """The turn that is being worked on, or else the next one."""
        return self._current or (self._queue[0] if self._queue else None)

    @property
    def busy(self) -> bool:
        """A turn is running, waiting, or on its way in."""
        return self._current is not None or bool(self._queue)

    @property
    def evictable(self) -> bool:
        return self.state is State.IDLE and not self.busy

    def find(self, turn_id: str) -> TurnRun | None:
        runs = [*self._queue, *self._riders, *([self._current] if self._current else [])]
        return next((run for run in runs if run.id == turn_id), None)

    # --- turns: admission (no await, so that what is decided on cannot change meanwhile) ---

    def admit(self, run: TurnRun, on_busy: OnBusy) -> None:
        """Take the run into the queue. It is sent once `run.recorded` says so.

        Raises:
            NotFound: The session has been deleted.
            SessionBusy, Capacity: It may not or cannot wait.
        """
        if self.state is State.CLOSED:
            raise NotFound("the session has been deleted")
        if on_busy is OnBusy.REJECT and self.busy:
            running = self._current or self._queue[0]
            raise SessionBusy("a turn is running in this session", turn=running.id)
        if len(self._queue) >= self._context.options.max_queued:
            raise Capacity(f"{len(self._queue)} prompts wait in this session already", retry_after=1.0)
        if on_busy is OnBusy.INTERRUPT:
            self._queue.appendleft(run)
            if self._current is not None:
                self.request_abort(self._current)
        else:
            self._queue.append(run)
        self.last_used = self._context.clock.monotonic()
        if self._worker is None or self._worker.done():
            self._worker = self._context.tasks.start(self._work(), f"session {self.row.key}")

    def withdraw(self, run: TurnRun) -> None:
        """The run could not be recorded: it never was."""
        if not run.recorded.done():
            run.recorded.set_result(False)
        if run in self._queue:
            self._queue.remove(run)

    async def steer(self, run: TurnRun) -> bool:
        """Hand a recorded prompt into the running turn. ``False``: none is running; queue it."""
        activation, current = self.activation, self._current
        if activation is None or current is None or self.state is not State.RUNNING:
            return False
        self._riders.append(run)
        try:
            run.tracker.sent_as(await activation.send(run.row.prompt, run.row.attachments, steer=True))
        except RuntimeUnavailable:
            if run in self._riders:
                self._riders.remove(run)
                return False
        # Else the turn's end has dealt with its riders already.
        return True

    def request_abort(self, run: TurnRun) -> None:
        run.abort_requested = True
        if run is self._current and self.activation is not None and self.state is State.RUNNING:
            self._context.tasks.start(self._abort(self.activation), "abort", expected=AerodromeError)

    async def abort(self) -> bool:
        """End the running turn and wait for its end. ``False``: none was running."""
        current = self._current
        if current is None:
            return False
        self.request_abort(current)
        await asyncio.wait({asyncio.ensure_future(current.wait())})
        return True

    async def _abort(self, activation: Activation) -> None:
        await activation.abort()

    # --- turns: the worker ---

    async def _work(self) -> None:
        while self._queue:
            run = self._queue[0]
            recorded = await asyncio.shield(run.recorded)
            if self._queue and self._queue[0] is run:
                self._queue.popleft()
            elif run in self._queue:
                continue  # an interrupting prompt has come in before it
            if not recorded:
                continue
            self._current = run
            try:
                await self._take(run)
            finally:
                self._current = None
                self.last_used = self._context.clock.monotonic()
                if self.evictable:
                    # Somebody may wait for the place it could make.
                    self._context.pool.notify()

    async def _take(self, run: TurnRun) -> None:
        try:
            async with self._context.slots.hold(self.row.key.tenant):
                await self._turn(run)
        except AerodromeError as error:
            await self._end(run, _status_of(error), error)
        except asyncio.CancelledError:
            run.fail(Draining("this node stopped before the turn had ended; it is reported as interrupted"))
            raise
        except Exception as error:
            log.exception("turn.crashed", session=str(self.row.key), turn=run.id)
            await self._end(run, TurnStatus.FAILED, TurnFailed(f"internal error: {type(error).__name__}"))

    async def _turn(self, run: TurnRun) -> None:
        if run.abort_requested:
            await self._end(run, TurnStatus.ABORTED)
            return
        started = self._context.clock.time()
        if not await self._context.ledger.start(self.row.key, run.id, started):
            await self._resolve_from_ledger(run)
            return
        run.row = replace(run.row, status=TurnStatus.RUNNING, started_at=started)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                activation = await self._awake()
            except ActivationRefused:
                if attempt == ATTEMPTS:
                    raise
                continue  # the runtime went while the session was being loaded: nothing has been sent
            loss = await self._attempt(run, activation)
            if loss is None:
                await self._end_as_tracked(run)
                return
            await self._forget_activation(loss.reason)
            if loss.error is not None:
                raise loss.error
            if await self._answered_before_loss(run):
                return
            await self._interrupt_riders()
            if run.tracker.tool_ran or attempt == ATTEMPTS:
                raise TurnInterrupted(f"the runtime was lost in mid-turn: {loss.reason}", tool_ran=run.tracker.tool_ran)
            await self._announce_retry(run, loss)

    async def _attempt(self, run: TurnRun, activation: Activation) -> Loss | None:
        """Send the prompt and wait for the turn's end. A `Loss` when the activation was lost before."""
        self._machine.apply(Stimulus.SEND)
        self._note_state(SessionState.RUNNING)
        self._settled.clear()
        activation.runtime.turns += 1
        run.tracker = type(run.tracker)()
        settled = asyncio.ensure_future(self._settled.wait())
        try:
            async with asyncio.timeout(self._context.options.turn_timeout):
                sending = asyncio.ensure_future(activation.send(run.row.prompt, run.row.attachments))
                await first_of(sending, activation.lost)
                if activation.lost.done():
                    sending.cancel()
                    return activation.lost.result()
                self._sent(run, await sending)
                await first_of(settled, activation.lost)
        except RuntimeUnavailable as error:
            return activation.lost.result() if activation.lost.done() else Loss(error.detail)
        except TimeoutError:
            return await self._overdue(activation)
        finally:
            settled.cancel()
        # An end and a loss at once: the events were stored before the end was told.
        return None if run.tracker.ended else activation.lost.result()

    def _sent(self, run: TurnRun, message_id: str) -> None:
        run.tracker.sent_as(message_id)
        run.row = replace(run.row, message_id=message_id)
        self._later(self._context.ledger.note(self.row.key, run.id, message_id=message_id), "note message")
        if run.abort_requested:
            self.request_abort(run)
        self._look_for_end()

    async def _overdue(self, activation: Activation) -> Loss:
        reason = f"the turn took longer than {self._context.options.turn_timeout:g} s"
        with contextlib.suppress(RuntimeUnavailable):
            await activation.abort()
        activation.discard(reason, TurnFailed(reason))
        return activation.lost.result()

    async def _answered_before_loss(self, run: TurnRun) -> bool:
        """The answer may have been stored just before the runtime went: then nothing is asked again."""
        if run.row.message_id is None:
            return False
        end = tail(await read_history(self._context, self.row))
        if end.message_id != run.row.message_id or end.answer is None:
            return False
        run.tracker.answer = end.answer
        await self._end(run, TurnStatus.COMPLETED)
        return True

    async def _announce_retry(self, run: TurnRun, loss: Loss) -> None:
        log.info("turn.retried", session=str(self.row.key), turn=run.id, reason=loss.reason)
        run.row = replace(run.row, retried=True, message_id=None)
        await self._context.ledger.note(self.row.key, run.id, retried=True)
        self._publish(self._context.host_event("aerodrome.turn_retried", {"turn": run.id, "reason": loss.reason}))

    # --- turns: the end ---

    async def _end_as_tracked(self, run: TurnRun) -> None:
        tracker = run.tracker
        self._machine.apply(Stimulus.SETTLED)
        status, error = _outcome(run)
        await self._end(run, status, error)
        while self._riders:
            # A prompt that came too late to steer became a turn of its own.
            rider = self._riders.pop(0)
            if rider.tracker.begun or tracker.aborted:
                rider.tracker.answer = rider.tracker.answer or tracker.answer
                await self._end(rider, *_outcome(rider))
            else:
                rider.row = replace(rider.row, status=TurnStatus.RUNNING)
                await self._follow(rider)

    async def _follow(self, rider: TurnRun) -> None:
        """See a late rider to its end, as the current turn."""
        activation = self.activation
        self._current = rider
        if activation is None or self.state is not State.IDLE:
            raise TurnInterrupted("the runtime was lost before the prompt was taken up")
        self._machine.apply(Stimulus.SEND)
        self._settled.clear()
        settled = asyncio.ensure_future(self._settled.wait())
        self._look_for_end()
        await first_of(settled, activation.lost)
        settled.cancel()
        if rider.tracker.ended:
            self._machine.apply(Stimulus.SETTLED)
            await self._end(rider, *_outcome(rider))
        else:
            await self._forget_activation(activation.lost.result().reason)
            await self._end(rider, TurnStatus.INTERRUPTED, TurnInterrupted("the runtime was lost in mid-turn"))

    async def _interrupt_riders(self) -> None:
        while self._riders:
            rider = self._riders.pop(0)
            await self._end(rider, TurnStatus.INTERRUPTED, TurnInterrupted("the turn it steered lost its runtime"))

    async def _end(self, run: TurnRun, status: TurnStatus, error: AerodromeError | None = None) -> None:
        """Record the end, then tell it: what a caller has been told is stored."""
        now = self._context.clock.time()
        row = replace(
            run.row,
            status=status,
            ended_at=now,
            answer=run.tracker.answer,
            usage=run.tracker.usage or None,
            error=error_of(error) if error else None,
            tool_ran=run.tracker.tool_ran,
        )
        log.info("turn.ended", session=str(self.row.key), turn=run.id, status=status.value, retried=row.retried)
        if status is TurnStatus.INTERRUPTED:
            self._publish(self._context.host_event("aerodrome.turn_interrupted", {"turn": run.id}))
        try:
            await self._context.ledger.finish(
                self.row.key, run.id, status, now, answer=row.answer, usage=row.usage, error=row.error
            )
            if self.row.kind is SessionKind.EPHEMERAL:
                await self._erase(self.row)
        except StoreUnavailable as failure:
            run.fail(error or failure)
            return
        self._note_state(self.listed_state, LastTurn(run.id, status))
        run.resolve(row)

    async def _resolve_from_ledger(self, run: TurnRun) -> None:
        row = await self._context.ledger.get(self.row.key, run.id)
        if row is None or not row.status.is_final:
            raise NotFound("the session was deleted before the turn began")
        run.resolve(row)

    # --- residency ---

    async def _awake(self) -> Activation:
        async with self._transition:
            if self.state is State.CLOSED:
                raise NotFound("the session has been deleted")
            if self.activation is not None and not self.activation.lost.done():
                return self.activation
            await self._drop_activation()
            self._machine.apply(Stimulus.WAKE)
            try:
                self.activation = await wake(
                    self._context, self.row, on_event=self._on_event, on_request_open=self._on_request_open
                )
            except BaseException:
                self._machine.apply(Stimulus.LOST)
                raise
            self._machine.apply(Stimulus.AWAKE)
            return self.activation

    async def hibernate(self) -> bool:
        """Put an idle session to sleep. ``False``: it is not idle (any more)."""
        async with self._transition:
            activation = self.activation
            if not self.evictable or activation is None:
                return False
            self._machine.apply(Stimulus.HIBERNATE)
            asleep = await activation.close()
            self._release(activation)
            self._machine.apply(Stimulus.HIBERNATED if asleep else Stimulus.LOST)
            self._note_state(SessionState.HIBERNATED)
            log.info("session.hibernated", session=str(self.row.key), clean=asleep)
            return True

    async def close(self, error: AerodromeError) -> None:
        """Give the session up for good: waiting turns get the error, a running one is ended."""
        self._machine.apply(Stimulus.CLOSE)
        if self.activation is not None:
            self.activation.discard(error.detail, error)
        while self._queue:
            run = self._queue.popleft()
            if not run.recorded.done():
                run.recorded.set_result(False)
            run.fail(error)
        if self._worker is not None:
            await asyncio.wait({self._worker})
        async with self._transition:
            await self._drop_activation()
        self.hub.finish()

    def end_ephemeral(self) -> None:
        """Its one turn has ended, and all that is stored of it is about to go."""
        self._machine.apply(Stimulus.CLOSE)
        if (activation := self.activation) is not None:
            activation.discard("its turn has ended")
            self._release(activation)
            self._later(activation.unload_void(), "unload ephemeral")

    async def runtime_lost(self) -> None:
        """The pool says that the runtime has gone. A running turn's attempt ends by itself."""
        if self.activation is not None:
            self.activation.discard(self.activation.runtime.lost_reason or "the runtime was lost")
        if not self.busy:
            await self._forget_activation("the runtime was lost between turns")

    async def _forget_activation(self, reason: str) -> None:
        async with self._transition:
            if self.activation is not None and self.activation.lost.done():
                log.info("session.lost_runtime", session=str(self.row.key), reason=reason)
            await self._drop_activation()

    async def _drop_activation(self) -> None:
        """The activation, if any, is void: give its place back."""
        activation = self.activation
        if activation is None:
            return
        activation.discard("given up")
        self._release(activation)
        if self.state is not State.CLOSED:
            self._machine.apply(Stimulus.LOST)
            self._note_state(SessionState.HIBERNATED)
        if not activation.runtime.lost.is_set():
            await activation.unload_void()

    def _release(self, activation: Activation) -> None:
        """Give place and lease back. A release that comes late, behind a new lease of our own, changes nothing."""
        self.activation = None
        self._context.pool.release(activation.runtime)
        self._later(self._context.leases.release(activation.lease), "release lease")

    # --- events and requests ---

    def _on_event(self, event: SessionEvent) -> None:
        run = self._current
        if run is not None:
            had_run = run.tracker.tool_ran
            run.tracker.feed(event)
            if run.tracker.tool_ran and not had_run:
                self._later(self._context.ledger.note(self.row.key, run.id, tool_ran=True), "note tool")
        for rider in self._riders:
            rider.tracker.feed(event)
        self._publish(event)
        self._look_for_end()

    def _look_for_end(self) -> None:
        if self._current is not None and self._current.tracker.ended:
            self._settled.set()

    def _publish(self, event: SessionEvent) -> None:
        event = self.hub.publish(event)
        if self._current is not None:
            self._current.publish(event)
        for rider in self._riders:
            rider.publish(event)

    def _on_request_open(self, request_id: str, kind: str) -> None:
        self._later(self._expire_request(request_id, kind), f"request {request_id}")

    async def _expire_request(self, request_id: str, kind: str) -> None:
        activation = self.activation
        timeout = self._context.options.request_timeout
        if activation is None:
            return
        await asyncio.wait({activation.lost}, timeout=timeout)
        if activation.lost.done() or activation.kind_of_request(request_id) is None:
            return
        said = f"Nobody answered within {timeout:g} seconds."
        log.info("request.expired", session=str(self.row.key), request=request_id, kind=kind)
        self._publish(self._context.host_event("aerodrome.request_expired", {"requestId": request_id, "kind": kind}))
        answer: dict[str, Any] = {"decision": "deny", "feedback": said} if kind == "permission" else {"answer": said}
        await activation.answer(request_id, answer)

    # --- small things ---

    def _note_state(self, state: SessionState, last_turn: LastTurn | None = None) -> None:
        """Keep the directory's row up to date for listings. Not awaited: nothing is decided on it."""
        used = self._context.clock.time() if state is SessionState.RUNNING or last_turn else None
        self.row = replace(self.row, state=state, last_turn=last_turn or self.row.last_turn)
        if used is not None:
            self.row = replace(self.row, last_used_at=used)
        update = self._context.directory.update(self.row.key, state=state, last_used_at=used, last_turn=last_turn)
        self._later(update, "note state")

    def _later(self, work: Any, name: str) -> None:
        self._context.tasks.start(work, name, expected=AerodromeError)


def _outcome(run: TurnRun) -> tuple[TurnStatus, AerodromeError | None]:
    tracker = run.tracker
    if tracker.aborted or run.abort_requested:
        return TurnStatus.ABORTED, None
    if tracker.error is not None:
        return TurnStatus.FAILED, TurnFailed(tracker.error)
    return TurnStatus.COMPLETED, None


def _status_of(error: AerodromeError) -> TurnStatus:
    if isinstance(error, TurnInterrupted):
        return TurnStatus.INTERRUPTED
    return TurnStatus.FAILED
