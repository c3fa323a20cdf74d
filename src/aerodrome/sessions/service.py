"""The sessions of one node: what the front doors call (`sessions.api.Sessions`).

A session costs memory here only while it is *live*: resident in a runtime, or with turns waiting. The directory is
read on every access, unless the session is loaded here (`LiveSessions.row_here`), and who may do what is in its row,
never something read out of an id (trap 4; see `members`).
"""

from __future__ import annotations

import asyncio
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
    Draining,
    Invalid,
    NotFound,
    StoreUnavailable,
    TooLarge,
)
from aerodrome.events import SessionEvent
from aerodrome.model import (
    MAX_TITLE,
    Isolation,
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
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions.acceptance import Acceptance
from aerodrome.sessions.api import Ask, MessagePage, OpenSession, SendMessage
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.fork import copy_files, fork_places
from aerodrome.sessions.hub import Channel
from aerodrome.sessions.live import LiveSession
from aerodrome.sessions.members import Members, allowed, check
from aerodrome.sessions.reading import Reading
from aerodrome.sessions.recovery import living_incarnations, recover
from aerodrome.sessions.registry import LiveSessions
from aerodrome.sessions.run import TurnRun
from aerodrome.telemetry.trace import carried, current

log = structlog.get_logger(__name__)

MAX_SYSTEM_MESSAGE = 100_000


class SessionService:
    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._sessions = LiveSessions(context)
        #: For front doors: `members.listen`.
        self.members_here = Members(context, self._sessions)
        self._acceptance = Acceptance(context, self._sessions, self._accepting)
        self._reading = Reading(context, self._sessions)
        self._draining = False
        self._forks = fork_places()

    @property
    def live(self) -> list[LiveSession]:
        return self._sessions.all

    @property
    def outdated(self) -> list[LiveSession]:
        """See `LiveSessions.outdated`."""
        return self._sessions.outdated

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
            await live.updates.choose_title(title)
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
        await self._serving()
        return await self._acceptance.send(who, session_id, message)

    async def send_native(self, who: Principal, session_id: str, params: Mapping[str, Any]) -> TurnRun:
        """See `Acceptance.send_native`. Raises as `send`."""
        await self._serving()
        return await self._acceptance.send_native(who, session_id, params)

    async def keep(self, run: TurnRun) -> None:
        """See `Acceptance.keep`."""
        await self._acceptance.keep(run)

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

    # --- clients with a connection of their own ---

    async def live_session(
        self, who: Principal, session_id: str, least: Role = Role.READER, *, leaving: bool = False
    ) -> LiveSession:
        """The session, for a native client: to attach to it, or to ask something of its runtime.

        Args:
            leaving: Also while this node drains, as long as it has the session loaded for a turn.

        Raises:
            NotFound: There is no such session that the principal may read.
            Forbidden: The principal's role is less than `least`.
            Quarantined: The session is loaded no more.
            Draining, StoreUnavailable: This node takes no work now.
        """
        key = SessionKey(who.tenant, session_id)
        leaving = leaving and self._draining
        if leaving:
            self._still_here(key)
        else:
            await self._serving()
        row = await self._allowed(who, session_id, least)
        self._context.suspicions.check(row)
        if leaving:
            self._still_here(key)
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
        return await self._reading.history(who, session_id, cursor=cursor, limit=limit)

    async def events(self, who: Principal, session_id: str, *, after: str | None = None) -> Channel:
        if self._draining:
            raise Draining("this node is shutting down; try again", retry_after=1.0)
        return await self._reading.events(who, session_id, after=after)

    async def events_elsewhere(self, who: Principal, session_id: str, *, after: str | None = None) -> Channel:
        """As `events`, for a reader at another node, who goes where the session goes: also while this one drains, as
        long as it has the session loaded for a turn."""
        if not self._draining:
            return await self._reading.events(who, session_id, after=after)
        key = SessionKey(who.tenant, session_id)
        self._still_here(key)
        channel = await self._reading.events(who, session_id, after=after)
        try:
            self._still_here(key)
        except BaseException:
            channel.close()
            raise
        return channel

    async def turn_events(
        self, who: Principal, session_id: str, turn_id: str, *, after: str | None = None
    ) -> tuple[TurnRun, Channel] | None:
        """See `Reading.turn_events`."""
        return await self._reading.turn_events(who, session_id, turn_id, after=after)

    async def rest_of_turn(
        self, who: Principal, session_id: str, turn: TurnRow, *, after: str | None = None
    ) -> Sequence[SessionEvent]:
        """See `Reading.rest_of_turn`."""
        return await self._reading.rest_of_turn(who, session_id, turn, after=after)

    async def position(self, who: Principal, session_id: str) -> str:
        """See `Reading.position`."""
        return await self._reading.position(who, session_id)

    async def events_behind(self, who: Principal, session_id: str, known: Sequence[str]) -> Sequence[SessionEvent]:
        """See `Reading.events_behind`."""
        return await self._reading.events_behind(who, session_id, known)

    async def stored_events(self, who: Principal, session_id: str) -> Sequence[SessionEvent]:
        """See `Reading.stored_events`."""
        return await self._reading.stored_events(who, session_id)

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

    # --- the node's own work ---

    async def make_room(self, key: RuntimeKey) -> bool:
        """See `runtime.ports.MakeRoom`."""
        return await self._sessions.make_room(key)

    async def empty_runtime(self, tenant: str | None = None) -> bool:
        """See `runtime.ports.EmptyRuntime`."""
        return await self._sessions.empty_runtime(tenant)

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

    def _still_here(self, key: SessionKey) -> None:
        """Raises `Draining`: the session has left this node, which does."""
        if not self.is_loaded(key):
            raise Draining("this node is shutting down; try again", retry_after=1.0)

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


def _abandon_result(asking: asyncio.Task[TurnRun]) -> None:
    if not asking.cancelled() and asking.exception() is None:
        asking.result().abandon()
