"""How a prompt gets into its session: allowed, admitted, recorded, and then worked on.

It is recorded before it is sent (`ports`), and is in the session's queue before that, so that whoever comes meanwhile
finds it: with the same idempotency key, or with another prompt.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from aerodrome._util.tasks import Forestalled, unless
from aerodrome.errors import (
    AerodromeError,
    Conflict,
    Invalid,
    SessionBusy,
    SessionElsewhere,
    StoreUnavailable,
    TooLarge,
)
from aerodrome.model import OnBusy, Principal, Role, SessionKey, SessionKind, SessionRow, TurnRow, TurnStatus
from aerodrome.policy.attachments import refusal
from aerodrome.sessions.api import SendMessage
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.live import LiveSession
from aerodrome.sessions.members import allowed
from aerodrome.sessions.patience import accept
from aerodrome.sessions.registry import LiveSessions
from aerodrome.sessions.run import TurnRun, error_of
from aerodrome.telemetry.trace import TraceContext, carried, current
from aerodrome.wire.envelope import size_of

log = structlog.get_logger(__name__)


class Acceptance:
    """Args:
    accepting: Raises while this node takes no prompts.
    """

    def __init__(self, context: SessionContext, sessions: LiveSessions, accepting: Callable[[], None]) -> None:
        self._context = context
        self._sessions = sessions
        self._accepting = accepting
        #: Prompts that are on their way into the queues of their sessions, the one that came first at the beginning,
        #: and what is done once they are there, or refused.
        self._coming: dict[SessionKey, dict[TurnRun, asyncio.Future[None]]] = {}

    async def send(self, who: Principal, session_id: str, message: SendMessage) -> TurnRun:
        if (refused := refusal(message.attachments)) is not None:
            raise Invalid(refused)
        return await self._send(who, session_id, message)

    async def send_native(self, who: Principal, session_id: str, params: Mapping[str, Any]) -> TurnRun:
        """As `send`, with the parameters of `session.send`, which policy has allowed already. As in the runtime, the
        prompt joins its queue, or steers (`mode: "immediate"`), when a turn is running. Before the caller acknowledges
        it, it is to be kept (`keep`)."""
        attachments = params.get("attachments")
        message = SendMessage(
            prompt=str(params.get("prompt") or ""),
            attachments=attachments if isinstance(attachments, list) else [],
            on_busy=OnBusy.STEER if params.get("mode") == "immediate" else OnBusy.ENQUEUE,
            told_at_end=True,  # or by `keep`
        )
        return await self._send(who, session_id, message, params)

    async def keep(self, run: TurnRun) -> None:
        """Returns when the prompt, and the id under which a runtime has taken it, survive a power failure. Its turn
        goes on meanwhile.

        Raises:
            StoreUnavailable: They may not.
        """
        row = run.row  # without the id when it is being sent again at this moment
        noted = partial(
            self._context.ledger.note, row.key, row.id, message_id=row.message_id, retried=row.retried or None
        )
        await self._context.state_patience(noted)
        run.forget_naming()

    def stop(self, key: SessionKey) -> TurnRun | None:
        """Ask for the end of the first prompt that is about to come into the session; others come all the same.

        It may wait for the session to be loaded, and whoever wants its end does not know that its turn has not begun.
        ``None``: none is about to come, or turns are before it.
        """
        live = self._sessions.find(key)
        if live is not None and live.busy:
            return None
        run = next((run for run in self._coming.get(key, ()) if not run.stop_asked.done()), None)
        if run is not None:
            run.stop()
        return run

    async def stopped(self, run: TurnRun) -> None:
        """Returns when the prompt has ended, or was refused."""
        if (arriving := self._coming.get(run.row.key, {}).get(run)) is not None:
            await asyncio.wait({arriving})
        if run.recorded.done() and run.recorded.result():
            await run.over()

    @contextmanager
    def _on_its_way(self, run: TurnRun) -> Iterator[None]:
        coming = self._coming.setdefault(run.row.key, {})
        arriving = coming[run] = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            arriving.set_result(None)
            del coming[run]
            if not coming:
                self._coming.pop(run.row.key, None)

    async def _send(
        self, who: Principal, session_id: str, message: SendMessage, params: Mapping[str, Any] | None = None
    ) -> TurnRun:
        if size_of(params if params is not None else [message.prompt, message.attachments]) > (
            most := self._context.options.max_prompt
        ):
            raise TooLarge(f"the prompt and its attachments are over the limit of {most} bytes, written as JSON")
        row = await allowed(self._context, self._sessions, who, session_id, Role.WRITER)
        self._context.suspicions.check(row)
        turn = TurnRow(
            key=row.key,
            id=f"turn_{uuid.uuid4().hex}",
            author=who.user,
            status=TurnStatus.QUEUED,
            prompt=message.prompt,
            incarnation=self._context.incarnation(),
            attachments=message.attachments,
            idempotency_key=message.idempotency_key,
            digest=_digest(message) if message.idempotency_key is not None else "",
            created_at=self._context.clock.time(),
        )
        run = TurnRun(
            turn,
            reader_bytes=self._context.options.reader_bytes,
            on_abandon=self._abandoned,
            message=params,
            joins=params is not None,
            told_at_end=message.told_at_end,
        )
        self._trace(run, params or {})
        with self._on_its_way(run):
            return await self._submit(row, run, message)

    def _trace(self, run: TurnRun, params: Mapping[str, Any]) -> None:
        """Its span, as part of what is traced now, or of what a native client has named."""
        key = run.row.key
        run.span = self._context.telemetry.tracer.span(
            "turn",
            parent=current() or TraceContext.parse(params.get("traceparent"), params.get("tracestate")),
            attributes={"gen_ai.conversation.id": key.id, "aerodrome.tenant": key.tenant, "aerodrome.turn.id": run.id},
        )

    @asynccontextmanager
    async def _claimed(self, row: SessionRow, run: TurnRun) -> AsyncIterator[None]:
        """Where there are other nodes, load the session before it gets a prompt, and keep it until it has: they may be
        about to do the same, and whoever has the lease has the queue. For one that is to end nothing is loaded.

        Raises:
            SessionElsewhere: That is another node.
        """
        if self._context.alone() or row.kind is SessionKind.EPHEMERAL:
            yield
            return
        live = self._sessions.ensure(row)
        live.hold()
        try:
            if live.loaded is None:
                try:
                    await unless(live.awake(), run.stop_asked)
                except SessionElsewhere:
                    raise
                except Forestalled:
                    pass
                except AerodromeError as error:
                    # The turn will say so.
                    log.info("session.not_claimed", session=str(row.key), reason=error.detail)
            yield
        finally:
            live.release()
            self._sessions.forget(live)

    async def _submit(self, row: SessionRow, run: TurnRun, message: SendMessage) -> TurnRun:
        on_busy = message.on_busy or self._context.options.on_busy
        async with self._claimed(row, run):
            if run.row.idempotency_key is not None and (earlier := await self._earlier(row, run)) is not None:
                return earlier
            if (earlier := await self._admit(row, run)) is not None:
                return earlier
            # No await from the last look at what is there until the run is in its queue.
            try:
                self._accepting()
                live = self._sessions.ensure(row)
                if live.busy:
                    # Somebody was faster. Its place, if it got one, may be what the one before it waits for.
                    self._context.admission.withdraw(run.row)
                live.turns.admit(run, on_busy)
            except BaseException:
                self._context.admission.withdraw(run.row)
                raise
        # A task of its own: others may have joined the turn by its key, whatever becomes of this caller.
        work = carried(partial(self._record, live, run, on_busy, durable=not message.told_at_end), run.span.context)
        recording = self._context.tasks.start(work, "record", expected=AerodromeError)
        try:
            return await asyncio.shield(recording)
        except asyncio.CancelledError:
            run.abandon()
            raise

    async def _admit(self, row: SessionRow, run: TurnRun) -> TurnRun | None:
        """Ask the limits. Returns the turn under the same key, if one has come in meanwhile.

        Raises:
            RateLimited: It is one too many.
        """
        live = self._sessions.find(row.key)
        asked = await self._context.admission.accept(run.row, idle=live is None or not live.busy)
        if not asked or run.row.idempotency_key is None:
            return None
        try:
            earlier = await self._earlier(row, run)
        except BaseException:
            self._context.admission.withdraw(run.row)
            raise
        if earlier is not None:
            self._context.admission.withdraw(run.row)
        return earlier

    async def _record(self, live: LiveSession, run: TurnRun, on_busy: OnBusy, *, durable: bool) -> TurnRun:
        try:
            present = await accept(self._context.ledger, run.row, self._context.state_patience, durable=durable)
        except BaseException as error:
            live.turns.withdraw(run)
            if isinstance(error, StoreUnavailable):
                # Perhaps it was recorded all the same; nobody would ever end it.
                ended = replace(run.row, status=TurnStatus.FAILED, ended_at=run.row.created_at, error=error_of(error))
                self._sessions.ends.later(replace(ended, idempotency_key=None))
            raise
        if present is not None:
            live.turns.withdraw(run)
            return self._join(run, present)
        live.turns.accept(run, on_busy)
        return run

    async def _earlier(self, row: SessionRow, run: TurnRun) -> TurnRun | None:
        """The turn that was accepted under the same idempotency key, if there is one.

        Asked before admission, so that a repeated prompt is neither refused as busy because of itself nor interrupts
        itself. When this returns ``None``, there was none a moment ago without an await in between.
        """
        assert run.row.idempotency_key is not None
        asked = False
        while True:
            live = self._sessions.find(row.key)
            first = live.find_by_key(run.row.idempotency_key) if live is not None else None
            if first is not None:
                await asyncio.wait({first.recorded})
                if first.recorded.result():
                    return self._join(run, first.row)
            elif asked:
                return None
            else:
                asked = True
                present = await self._context.ledger.by_idempotency_key(row.key, run.row.idempotency_key)
                if present is not None:
                    return self._join(run, present)

    def _join(self, run: TurnRun, present: TurnRow) -> TurnRun:
        if present.digest != run.row.digest:
            raise Conflict("this idempotency key was used for another prompt in this session")
        live = self._sessions.find(present.key)
        if live is not None and (running := live.find(present.id)) is not None:
            return running.join()
        row = self._sessions.ends.find(present.key, present.id) or present
        if not row.status.is_final:
            said = "the prompt with this idempotency key is still being worked on"
            raise SessionBusy(said, retry_after=1.0, turn=row.id, author=row.author)
        run.resolve(row)
        return run

    def _abandoned(self, run: TurnRun) -> None:
        if self._context.options.cancel_on_disconnect and (live := self._sessions.find(run.row.key)) is not None:
            live.turns.request_abort(run)


def _digest(message: SendMessage) -> str:
    canonical = json.dumps([message.prompt, message.attachments], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
