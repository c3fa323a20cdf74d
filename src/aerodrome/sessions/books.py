"""What the stores are told of a session's turns: their start, what happens in them, their end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from aerodrome.errors import AerodromeError, NotFound, TurnFailed
from aerodrome.events import SessionEvent
from aerodrome.model import LastTurn, SessionKind, TurnStatus
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.ends import TurnEnds
from aerodrome.sessions.machine import State
from aerodrome.sessions.residency import Residency
from aerodrome.sessions.row_updates import RowUpdates
from aerodrome.sessions.run import TurnRun, error_of
from aerodrome.telemetry.meter import EndedTurn

log = structlog.get_logger(__name__)

#: Seconds after which the id of a prompt's message is recorded by itself. Most turns are shorter, and it is recorded
#: with their end: one write to the disk less for each.
NAMED_AFTER = 1.0


class TurnBooks:
    """Args:
    publish: Tells the session's readers of an event.
    """

    def __init__(
        self,
        context: SessionContext,
        updates: RowUpdates,
        residency: Residency,
        ends: TurnEnds,
        publish: Callable[[SessionEvent], None],
    ) -> None:
        self._context = context
        self._updates = updates
        self._residency = residency
        self._ends = ends
        self._publish = publish
        #: Those whose end is being found out or recorded: neither with the runtime nor in the queue any more.
        self.unsettled: set[TurnRun] = set()

    def start_at_once(self, run: TurnRun) -> None:
        """Its acceptance, which is about to be recorded, shall say that it is worked on."""
        run.at_once = True
        run.row = replace(run.row, status=TurnStatus.RUNNING, started_at=self._context.clock.time())

    async def start(self, run: TurnRun) -> bool:
        """Record that it is worked on. ``False``: it has ended meanwhile; the ledger says how.

        Raises:
            NotFound: The session was deleted.
            StoreUnavailable: It is not recorded.
        """
        if run.at_once:
            run.at_once = False
            return True
        started = run.row.started_at or self._context.clock.time()
        if await self._context.ledger.start(run.row.key, run.id, started):
            run.row = replace(run.row, status=TurnStatus.RUNNING, started_at=started)
            return True
        row = await self._context.ledger.get(run.row.key, run.id)
        if row is None or not row.status.is_final:
            raise NotFound("the session was deleted before the turn began")
        if run.first_message_id is not None:
            # Another node took this one for dead, and has ended it in the ledger only; clients wait for its events.
            going_on = self._residency.state is State.RUNNING
            self._tell_end(run, row.status, row.error, idle=not going_on)
            self._residency.attachments.assured([run.first_message_id])
        run.resolve(row)
        return False

    def note(self, run: TurnRun, **changes: Any) -> None:
        """Record something that happened in the turn (`Ledger.note`), in the background."""
        task = self._context.later(self._context.ledger.note(run.row.key, run.id, **changes), "note turn")
        if task is not None:
            run.notes.append(task)

    def _tell_end(self, run: TurnRun, status: TurnStatus, error: dict[str, Any] | None, *, idle: bool) -> None:
        """Say in the runtime's place what it did not live to say, for whoever waits for its events."""
        if status is TurnStatus.INTERRUPTED:
            self._publish(self._context.host_event("aerodrome.turn_interrupted", {"turn": run.id}))
        if error is not None:
            data: dict[str, Any] = {"errorType": error.get("code"), "message": error.get("detail")}
            if run.first_message_id is not None:
                data["originatingMessageId"] = run.first_message_id
            self._publish(self._context.host_event("session.error", data))
        if idle:
            if run.first_message_id is not None:
                self._residency.attachments.assured([run.first_message_id])  # else they would not believe it
            aborted = {"aborted": True} if status is TurnStatus.ABORTED else {}
            self._publish(self._context.host_event("session.idle", aborted))

    def sent(self, run: TurnRun) -> None:
        """The runtime has taken the prompt, under the id that is in its row."""
        run.forget_naming()
        run.naming = asyncio.get_running_loop().call_later(NAMED_AFTER, self._name, run)

    def _name(self, run: TurnRun) -> None:
        if run.row.message_id is not None:
            self.note(run, message_id=run.row.message_id)

    def _measure(self, run: TurnRun, status: TurnStatus, error: AerodromeError | None) -> None:
        def since(moment: float | None) -> float | None:
            return None if moment is None else moment - run.accepted_at

        code = error.code if error is not None else ""
        ended = EndedTurn(
            tenant=run.row.key.tenant,
            status=status.value,
            code=code,
            seconds=since(asyncio.get_running_loop().time()),
            waited=since(run.placed_at),
            answered=since(run.answered_at),
        )
        self._context.telemetry.meter.turn_ended(ended)
        run.span.set({"aerodrome.turn.status": status.value, "aerodrome.turn.attempts": run.attempts})
        run.span.end(code or None)

    async def end(
        self, run: TurnRun, status: TurnStatus, error: AerodromeError | None = None, *, idle: bool = True
    ) -> None:
        """Record the end, then tell it: what a caller has been told is stored.

        Args:
            idle: Nothing else of what was with the runtime is undone.

        The end of an ephemeral session's turn is told when nothing is left of it, by whoever deletes it. Until then
        the ledger has the turn as unfinished, so that a crash before the deletion is one that `recover` sees.
        """
        if run.ended:
            return  # by the ledger's word
        run.forget_naming()
        now = self._context.clock.time()
        row = replace(
            run.row,
            status=status,
            ended_at=now,
            answer=run.tracker.answer,
            usage=run.tracker.usage or None,
            error=error_of(error) if error else None,
            tool_ran=run.tracker.tool_ran,
            # A prompt that never reached a runtime may be tried again under its key.
            idempotency_key=None if run.attempts == 0 and error is not None else run.row.idempotency_key,
        )
        log.info("turn.ended", session=str(row.key), turn=run.id, status=status.value, retried=row.retried)
        self._measure(run, status, error)
        if run.attempts and not run.tracker.ended:
            self._tell_end(run, status, row.error, idle=idle)
        elif status is TurnStatus.INTERRUPTED:
            self._publish(self._context.host_event("aerodrome.turn_interrupted", {"turn": run.id}))
        if self._updates.row.kind is SessionKind.EPHEMERAL:
            run.row = row
            return
        self._updates.note(state=self._residency.listed_state, last_used_at=now)
        self.unsettled.add(run)
        try:
            if run.notes:
                await asyncio.wait(run.notes)
            row = await self._ends.record(row)
        except AerodromeError as failure:
            run.fail(error or failure)
        except Exception as failure:
            log.exception("turn.end_not_recorded", session=str(row.key), turn=run.id)
            run.fail(TurnFailed(f"internal error: {type(failure).__name__}"))
        else:
            self._updates.note(last_turn=LastTurn(row.id, row.status))
            run.resolve(row)
        finally:
            self.unsettled.discard(run)
