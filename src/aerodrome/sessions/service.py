"""The sessions of one node: what the front doors call (`sessions.api.Sessions`).

A session costs memory here only while it is *live*: resident in a runtime, or with turns waiting. The directory is
read on every access, unless the session is loaded here (`LiveSessions.row_here`), and who may do what is in its row,
never something read out of an id (trap 4; see `members`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from aerodrome.coordination.ports import Page
from aerodrome.errors import (
    AerodromeError,
    Conflict,
    Draining,
    Invalid,
    NotFound,
    SessionBusy,
    SessionElsewhere,
    StoreUnavailable,
    TooLarge,
)
from aerodrome.events import SessionEvent
from aerodrome.model import (
    MAX_TITLE,
    Isolation,
    OnBusy,
    Principal,
    Role,
    RuntimeKey,
    SessionKey,
    SessionKind,
    SessionRow,
    SessionState,
    TurnRow,
    TurnStatus,
    valid_session_id,
)
from aerodrome.policy.attachments import refusal
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions.api import Ask, MessagePage, OpenSession, SendMessage
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.fork import copy_files, fork_places
from aerodrome.sessions.history import history_page
from aerodrome.sessions.hub import Channel, EventHub
from aerodrome.sessions.live import LiveSession
from aerodrome.sessions.members import Members, allowed, check, tag
from aerodrome.sessions.parsing import parse
from aerodrome.sessions.patience import accept
from aerodrome.sessions.recovery import living_incarnations, recover
from aerodrome.sessions.registry import LiveSessions
from aerodrome.sessions.replay import BEGINNING, behind, behind_latest, last_id, missed
from aerodrome.sessions.run import TurnRun, error_of
from aerodrome.sessions.wake import read_history
from aerodrome.statestore.history import stored_events
from aerodrome.telemetry.trace import TraceContext, carried, current
from aerodrome.wire.envelope import size_of

log = structlog.get_logger(__name__)

MAX_SYSTEM_MESSAGE = 100_000


class SessionService:
    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._sessions = LiveSessions(context)
        #: For front doors: `members.listen`.
        self.members_here = Members(context, self._sessions)
        self._draining = False
        self._forks = fork_places()

    @property
    def live(self) -> list[LiveSession]:
        return self._sessions.all

    def find_live(self, key: SessionKey) -> LiveSession | None:
        return self._sessions.find(key)

    def holds(self, key: SessionKey) -> bool:
        """Whether this node runs the session: it has its lease, were it only to change what is attached."""
        live = self._sessions.find(key)
        activation = live.activation if live is not None else None
        return activation is not None and not activation.lost.done() and self._context.may_serve()

    def is_loaded(self, key: SessionKey) -> bool:
        """Whether the session is loaded here, under a lease that holds."""
        live = self._sessions.find(key)
        return live is not None and live.loaded is not None and self._context.may_serve()

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def waiting(self) -> dict[str, int]:
        """Prompts that were accepted here and have not begun, by tenant."""
        return self._context.admission.backlog.tenants

    @property
    def wait(self) -> float:
        """Seconds that turns have lately waited for a place among those that run."""
        return self._context.admission.gate.recent_wait

    @property
    def tenants(self) -> dict[str, dict[str, int]]:
        """Of each tenant that is busy here: `sessions` that are loaded, `turns` that run, `waiting` prompts."""
        loaded = Counter(live.row.key.tenant for live in self.live if live.activation is not None)
        running = {tenant: held for tenant, (_, held) in self._context.admission.gate.line.tenants.items()}
        waiting = self.waiting
        return {
            tenant: {"sessions": loaded[tenant], "turns": running.get(tenant, 0), "waiting": waiting.get(tenant, 0)}
            for tenant in {*loaded, *running, *waiting}
        }

    # --- sessions ---

    async def open_session(self, who: Principal, request: OpenSession) -> tuple[SessionRow, bool]:
        await self._serving()
        self._check(who, request)
        options = self._context.options
        now = self._context.clock.time()
        stored_options: dict[str, Any] = {"streaming": request.streaming}
        if request.system_message is not None:
            stored_options["system_message"] = request.system_message
        if request.tools is not None:
            stored_options["tools"] = list(request.tools)
        if request.native is not None:
            stored_options["native"] = dict(request.native)
        row = SessionRow(
            key=SessionKey(who.tenant, request.id or str(uuid.uuid4())),
            owner=who.user,
            kind=request.kind,
            isolation=options.isolation_of(who.tenant),
            model=request.model,
            title=request.title,
            options=stored_options,
            created_at=now,
            last_used_at=now,
        )
        present = await self._context.directory.insert(row)
        if present is None:
            return row, True
        if present.role_of(who) is None:
            raise NotFound("no session under this id can be opened by you; choose another id, or leave it out")
        return await self._as_it_stands(present), False

    async def get(self, who: Principal, session_id: str) -> SessionRow:
        return await self._as_it_stands(await self._allowed(who, session_id))

    async def list(self, who: Principal, *, cursor: str | None = None, limit: int = 50) -> Page:
        page = await self._context.directory.list(who.tenant, user=who.user, cursor=cursor, limit=limit)
        rows = [await self._as_it_stands(row) for row in page.rows]
        return Page([row for row in rows if row.kind is not SessionKind.EPHEMERAL], page.next)

    async def retitle(self, who: Principal, session_id: str, title: str) -> SessionRow:
        row = await self._allowed(who, session_id, Role.WRITER)
        _check_title(title)
        if (live := self._sessions.find(row.key)) is not None:
            live.updates.row = replace(live.updates.row, title=title)
        await self._context.state_patience(lambda: self._context.directory.update(row.key, title=title))
        return await self.get(who, session_id)

    async def delete(self, who: Principal, session_id: str) -> None:
        await self._sessions.delete(await self._allowed(who, session_id, Role.OWNER))

    # --- members ---

    async def members(self, who: Principal, session_id: str) -> Sequence[tuple[str, Role]]:
        """Everybody who has a role, the owner first."""
        return (await self._allowed(who, session_id)).people

    async def set_member(self, who: Principal, session_id: str, user: str, role: Role) -> SessionRow:
        return await self._as_it_stands(await self.members_here.set(who, session_id, user, role))

    async def remove_member(self, who: Principal, session_id: str, user: str) -> None:
        await self.members_here.remove(who, session_id, user)

    # --- turns ---

    async def send(self, who: Principal, session_id: str, message: SendMessage) -> TurnRun:
        if (refused := refusal(message.attachments)) is not None:
            raise Invalid(refused)
        return await self._send(who, session_id, message)

    async def send_native(self, who: Principal, session_id: str, params: Mapping[str, Any]) -> TurnRun:
        """As `send`, with the parameters of `session.send`, which policy has allowed already. As in the runtime, the
        prompt joins its queue, or steers (`mode: "immediate"`), when a turn is running. Raises as `send`."""
        attachments = params.get("attachments")
        message = SendMessage(
            prompt=str(params.get("prompt") or ""),
            attachments=attachments if isinstance(attachments, list) else [],
            on_busy=OnBusy.STEER if params.get("mode") == "immediate" else OnBusy.ENQUEUE,
        )
        return await self._send(who, session_id, message, params)

    async def _send(
        self, who: Principal, session_id: str, message: SendMessage, params: Mapping[str, Any] | None = None
    ) -> TurnRun:
        await self._serving()
        if size_of(params if params is not None else [message.prompt, message.attachments]) > (
            most := self._context.options.max_prompt
        ):
            raise TooLarge(f"the prompt and its attachments are over the limit of {most} bytes, written as JSON")
        row = await self._allowed(who, session_id, Role.WRITER)
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
        )
        self._trace(run, params or {})
        return await self._submit(row, run, message.on_busy or self._context.options.on_busy)

    def _trace(self, run: TurnRun, params: Mapping[str, Any]) -> None:
        """Its span, as part of what is traced now, or of what a native client has named."""
        key = run.row.key
        run.span = self._context.telemetry.tracer.span(
            "turn",
            parent=current() or TraceContext.parse(params.get("traceparent"), params.get("tracestate")),
            attributes={"gen_ai.conversation.id": key.id, "aerodrome.tenant": key.tenant, "aerodrome.turn.id": run.id},
        )

    async def _claim(self, row: SessionRow) -> None:
        """Where there are other nodes, load the session before it gets a prompt: they may be about to do the same, and
        whoever has the lease has the queue.

        Raises:
            SessionElsewhere: That is another node.
        """
        if self._context.alone() or row.kind is SessionKind.EPHEMERAL:
            return
        live = self._sessions.ensure(row)
        if live.loaded is not None:
            return
        live.hold()
        try:
            await live.awake()
        except SessionElsewhere:
            raise
        except AerodromeError as error:
            log.info("session.not_claimed", session=str(row.key), reason=error.detail)  # the turn will say so
        finally:
            live.release()
            self._sessions.forget(live)

    async def _submit(self, row: SessionRow, run: TurnRun, on_busy: OnBusy) -> TurnRun:
        await self._claim(row)
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
        work = carried(partial(self._record, live, run, on_busy), run.span.context)
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

    async def _record(self, live: LiveSession, run: TurnRun, on_busy: OnBusy) -> TurnRun:
        try:
            present = await accept(self._context.ledger, run.row, self._context.state_patience)
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

    async def ask(self, who: Principal, request: Ask) -> TurnRun:
        opened = OpenSession(
            model=request.model,
            system_message=request.system_message,
            kind=SessionKind.EPHEMERAL,
            streaming=request.streaming,
        )
        # A task of its own: cut short between the two steps, it would leave the session behind.
        work = carried(partial(self._ask, who, opened, request), current())
        asking = self._context.tasks.start(work, "ask", expected=AerodromeError)
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(_abandon_result)
            raise

    async def _ask(self, who: Principal, opened: OpenSession, request: Ask) -> TurnRun:
        row, _ = await self.open_session(who, opened)
        try:
            return await self.send(who, row.key.id, SendMessage(request.prompt, request.attachments))
        except BaseException:
            await self._sessions.delete_ephemeral(row)
            raise

    async def abort(self, who: Principal, session_id: str) -> bool:
        row = await self._allowed(who, session_id, Role.WRITER)
        live = self._sessions.find(row.key)
        return live is not None and await live.turns.abort()

    async def answer(self, who: Principal, session_id: str, request_id: str, answer: dict[str, Any]) -> None:
        row = await self._allowed(who, session_id, Role.WRITER)
        live = self._sessions.find(row.key)
        if live is None or live.activation is None:
            raise NotFound("no such request is open")
        await live.activation.answer(request_id, answer)

    def _abandoned(self, run: TurnRun) -> None:
        if self._context.options.cancel_on_disconnect and (live := self._sessions.find(run.row.key)) is not None:
            live.turns.request_abort(run)

    # --- clients with a connection of their own ---

    async def live_session(self, who: Principal, session_id: str, least: Role = Role.READER) -> LiveSession:
        """The session, for a native client: to attach to it, or to ask something of its runtime.

        Raises:
            NotFound: There is no such session that the principal may read.
            Forbidden: The principal's role is less than `least`.
            Quarantined: The session is loaded no more.
            Draining, StoreUnavailable: This node takes no work now.
        """
        await self._serving()
        row = await self._allowed(who, session_id, least)
        self._context.suspicions.check(row)
        return self._sessions.ensure(row)

    def still_allowed(self, who: Principal, live: LiveSession, least: Role = Role.READER) -> None:
        """Look again, without asking the directory, after having waited. Raises as `live_session`."""
        check(who, live.row, least)

    async def role(self, who: Principal, session_id: str) -> Role | None:
        """The principal's role as it is in the directory now; ``None``: there is no such session for it."""
        row = await self._context.directory.get(SessionKey(who.tenant, session_id))
        return None if row is None else row.role_of(who)

    def is_own(self, who: Principal, session_id: str) -> bool:
        """Whether a session that is loaded here is the principal's, or shared with it."""
        live = self._sessions.find(SessionKey(who.tenant, session_id))
        return live is not None and live.row.role_of(who) is not None

    async def borrow(self, who: Principal) -> Runtime:
        """Any runtime that serves the principal, for a question that concerns no session; `give_back` it.

        Raises as `Runtimes.reserve`.
        """
        await self._serving()
        user = self._context.options.isolation_of(who.tenant) is Isolation.USER
        return await self._context.pool.reserve(RuntimeKey(who.tenant, who.user if user else None))

    def give_back(self, runtime: Runtime) -> None:
        self._context.pool.release(runtime)

    async def turn_slot(self, who: Principal) -> Callable[[], None]:
        """A place among the turns that run at the same time, for work of a runtime that is a turn in all but name. Call
        what is returned to give it back. Raises `Capacity`."""
        stack = AsyncExitStack()
        key = SessionKey(who.tenant, "")
        turn = TurnRow(key, f"query_{uuid.uuid4().hex}", who.user, TurnStatus.RUNNING, "")
        await stack.enter_async_context(self._context.admission.hold(turn))

        def give_back() -> None:
            self._context.later(stack.aclose(), "give back a turn's place")

        return give_back

    def let_go(self, live: LiveSession) -> None:
        """A native client needs the session no more: forget what is of no use now."""
        self._sessions.forget(live)

    async def fork(
        self, who: Principal, session_id: str, *, to_event_id: str | None = None, title: str | None = None
    ) -> SessionRow:
        """A new session of the caller's with the history of another one, up to before an event if one is named.

        It may be made by whoever may read the other: there is nothing in it but what can be read there.

        Raises:
            NotFound: There is no such session.
            Invalid: No such event, or no title.
            Capacity: Too many copies are being made.
        """
        row = await self._allowed(who, session_id)
        opened = OpenSession(
            model=row.model,
            title=title or row.title,
            system_message=row.options.get("system_message"),
            tools=row.options.get("tools"),
            streaming=bool(row.options.get("streaming", True)),
            native=row.options.get("native"),
        )
        async with self._forks.hold(who.tenant, who.user):
            target, _ = await self.open_session(who, opened)
            try:
                await copy_files(self._context, row.key, target, to_event_id)
            except BaseException:
                await self._sessions.delete(target)
                raise
        return target

    # --- history and events ---

    async def history(
        self, who: Principal, session_id: str, *, cursor: str | None = None, limit: int = 200
    ) -> MessagePage:
        row = await self._allowed(who, session_id)
        text = await read_history(self._context, row.key)
        # Which message is whose the ledger may learn only when the turn ends.
        live = self._sessions.find(row.key)
        here = {run.id: run for run in live.turns.all} if live is not None else {}
        turns = [here[turn.id].row if turn.id in here else turn for turn in await self._context.ledger.turns(row.key)]
        return await parse(partial(history_page, turns=turns, cursor=cursor, limit=limit), text)

    async def events(self, who: Principal, session_id: str, *, after: str | None = None) -> Channel:
        if self._draining:
            raise Draining("this node is shutting down; try again", retry_after=1.0)
        row = await self._allowed(who, session_id)
        hub = self._sessions.hub(row.key)
        # From here on nothing is missed; what is published while we look waits in the channel.
        channel, kept = hub.subscribe(tag(who, row)), hub.kept()
        try:
            # Deleted meanwhile, or shared no more, it would have told a reader that was not there yet.
            await self._allowed(who, session_id)
            if after is not None:
                channel.preload(await self._missed(row, hub, channel, kept, after))
        except BaseException:
            channel.close()
            raise
        return channel

    async def position(self, who: Principal, session_id: str) -> str:
        """The cursor at which the session's events stand now."""
        row = await self._allowed(who, session_id)
        live = self._sessions.find(row.key)
        if live is not None and live.loaded is not None and live.hub.position:
            return live.hub.position
        return await parse(last_id, await read_history(self._context, row.key)) or BEGINNING

    async def events_behind(self, who: Principal, session_id: str, known: Sequence[str]) -> Sequence[SessionEvent]:
        """What was told, here or elsewhere, behind the latest of these events (`known`: their ids, the latest first).
        None when none of them is found. Raises `NotFound`."""
        row = await self._allowed(who, session_id)
        # Before the history is read: what comes after this the caller hears by itself.
        hub = self._sessions.find_hub(row.key)
        kept, position = (hub.kept(), hub.position) if hub is not None else ([], "")
        text = await read_history(self._context, row.key)
        return await parse(partial(behind_latest, known=known, kept=kept, position=position), text)

    async def stored_events(self, who: Principal, session_id: str) -> Sequence[SessionEvent]:
        """The events of the session's history. Raises `NotFound`."""
        row = await self._allowed(who, session_id)
        return await parse(stored_events, await read_history(self._context, row.key))

    async def authors_at_work(self, who: Principal, session_id: str) -> set[str]:
        """Whose turns of the session a living node has in hand; not asked before it is certain who has gone. "" is the
        runtime itself, which is at work without a turn of ours.

        Raises:
            NotFound: There is no such session.
            StoreUnavailable: That cannot be found out.
        """
        while not self._context.settled():  # noqa: ASYNC110 - time does it
            await asyncio.sleep(0.1)
        row = await self._allowed(who, session_id)
        authors = set()
        if (live := self._sessions.find(row.key)) is not None:
            authors = {run.row.author for run in live.turns.all}
            if not authors and live.working:
                authors = {""}
        living = await living_incarnations(self._context)
        turns = await self._context.ledger.unfinished(row.key)
        return authors | {turn.author for turn in turns if turn.incarnation in living}

    def end_events(
        self, error: AerodromeError, messages: Sequence[str] = (), *, idle: bool = True
    ) -> Sequence[SessionEvent]:
        """What is said in a runtime's place of a turn that was lost with it.

        Args:
            messages: Ids of the prompts that it is about, if they are known.
            idle: Nothing else is worked on.
        """
        said: list[dict[str, Any]] = [{"originatingMessageId": message} for message in messages] or [{}]
        data = {"errorType": error.code, "message": error.detail}
        events = [self._context.host_event("session.error", {**data, **more}) for more in said]
        return [*events, self._context.host_event("session.idle", {})] if idle else events

    async def _missed(
        self, row: SessionRow, hub: EventHub, channel: Channel, kept: Sequence[SessionEvent], after: str
    ) -> Sequence[SessionEvent]:
        """What happened behind a cursor until the subscription."""
        if (found := behind(kept, after)) is not None:
            return found
        text = await read_history(self._context, row.key)
        look = partial(
            missed,
            after=after,
            kept=kept,
            late=channel.backlog,
            position=hub.position,
            max_bytes=self._context.options.reader_bytes,
        )
        found = await parse(look, text)
        hub.position = hub.position or last_id(text)
        if found is None:
            return [self._context.host_event("aerodrome.gap", {"after": after})]
        return found

    # --- the node's own work ---

    async def make_room(self, key: RuntimeKey | None) -> bool:
        """See `runtime.ports.MakeRoom`."""
        return await self._sessions.make_room(key)

    async def hibernate(self, live: LiveSession) -> bool:
        """Put a session to sleep and forget it. ``False``: it is not idle (any more)."""
        return await self._sessions.hibernate(live)

    async def expire(self, row: SessionRow, before: float) -> bool:
        """Delete the session unless it has been used since `before`. Raises what `delete` does."""
        present = await self._context.directory.get(row.key)
        live = self._sessions.find(row.key)
        # No await from here until the deletion has begun and the session takes no prompt any more.
        if present is None or present.last_used_at >= before or (live is not None and live.engaged):
            return False
        return await self._sessions.delete(present, unused_since=before)

    async def tidy(self) -> None:
        """Do what was put off: forget what is of no use any more, and what a store has refused."""
        await self._sessions.tidy()

    async def recover(self) -> int:
        """Report turns that nobody works on any more as interrupted (see `recovery`)."""
        return await recover(self._context, self._sessions)

    def deleted_elsewhere(self, key: SessionKey) -> None:
        """Another node has deleted the session: what is here of it is of no use any more."""
        live = self._sessions.find(key)
        if live is None:
            self._sessions.end_hub(key)
        elif live.loaded is None:  # what is loaded under our lease nobody else deletes
            self._context.tasks.start(self._sessions.drop_deleted(live), "drop deleted")

    def give_up_all(self, reason: str, within: float = 0.0) -> None:
        """Our leases are void, or will be in `within` seconds (see `LiveSessions.give_up_all`)."""
        self._sessions.give_up_all(reason, within)

    async def drain(self, timeout: float) -> None:
        """Take nothing new, let running turns end for up to `timeout` seconds, put everything to sleep."""
        self._draining = True
        await self._sessions.drain(timeout)

    # --- inside ---

    async def _serving(self) -> None:
        """Wait for the coordination store as long as may be. Raises as `_accepting`."""
        if not self._draining:
            await self._context.serving()
        self._accepting()

    def _accepting(self) -> None:
        if self._draining:
            raise Draining("this node is shutting down; try again", retry_after=1.0)
        if not self._context.may_serve():
            raise StoreUnavailable("this node cannot reach its coordination store", retry_after=1.0)

    def _check(self, who: Principal, request: OpenSession) -> None:
        if request.id is not None and not valid_session_id(request.id):
            raise Invalid("a session id has 1 to 200 characters out of A-Z, a-z, 0-9, '_' and '-'")
        if request.title is not None:
            _check_title(request.title)
        if request.system_message is not None and len(request.system_message) > MAX_SYSTEM_MESSAGE:
            raise TooLarge(f"the system message is over the limit of {MAX_SYSTEM_MESSAGE} characters")
        isolation = self._context.options.isolation_of(who.tenant)
        refused = self._context.options.tools.refused(isolation, request.tools or [])
        if refused:
            allowed = ", ".join(sorted(self._context.options.tools.allowed(isolation))) or "none"
            raise Invalid(f"these tools are not allowed here: {', '.join(refused)}; allowed are: {allowed}")

    async def _allowed(self, who: Principal, session_id: str, least: Role = Role.READER) -> SessionRow:
        return await allowed(self._context, self._sessions, who, session_id, least)

    async def _as_it_stands(self, row: SessionRow) -> SessionRow:
        """The row with the state of this moment: a crashed node leaves `running` behind."""
        live = self._sessions.find(row.key)
        if live is not None and live.activation is not None:
            return replace(
                row,
                state=live.listed_state,
                last_turn=live.row.last_turn or row.last_turn,
                last_used_at=max(row.last_used_at, live.row.last_used_at),
                title=live.row.title or row.title,
            )
        if row.state is SessionState.HIBERNATED:
            return row
        try:
            held = await self._context.leases.holder(row.key) is not None
        except StoreUnavailable:
            return row  # what was last said of it; a list does not wait for what it only polishes
        return row if held else replace(row, state=SessionState.HIBERNATED)


def _check_title(title: str) -> None:
    if not title.strip() or len(title) > MAX_TITLE:
        raise Invalid(f"a title has 1 to {MAX_TITLE} characters")


def _digest(message: SendMessage) -> str:
    canonical = json.dumps([message.prompt, message.attachments], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _abandon_result(asking: asyncio.Task[TurnRun]) -> None:
    if not asking.cancelled() and asking.exception() is None:
        asking.result().abandon()
