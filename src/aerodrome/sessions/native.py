"""What clients with a connection of their own to runtimes need of the sessions, beside what all callers do."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from aerodrome.errors import AerodromeError
from aerodrome.events import SessionEvent
from aerodrome.model import Isolation, Principal, Role, RuntimeKey, SessionKey, TurnRow, TurnStatus
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions.acceptance import Acceptance
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.live import LiveSession
from aerodrome.sessions.members import allowed, check
from aerodrome.sessions.recovery import living_incarnations
from aerodrome.sessions.registry import LiveSessions
from aerodrome.sessions.run import TurnRun
from aerodrome.sessions.serving import Serving


class NativeSessions:
    def __init__(
        self, context: SessionContext, sessions: LiveSessions, serving: Serving, acceptance: Acceptance
    ) -> None:
        self._context = context
        self._sessions = sessions
        self._serving = serving
        self._acceptance = acceptance

    # --- prompts ---

    async def send(self, who: Principal, session_id: str, params: Mapping[str, Any]) -> TurnRun:
        """See `Acceptance.send_native`. Raises as `sessions.api.Sessions.send`."""
        await self._serving.wait()
        return await self._acceptance.send_native(who, session_id, params)

    def stop(self, live: LiveSession) -> bool:
        """Ask for the end of the running turn, or of the one that is about to begin. ``False``: there is none."""
        return live.turns.stop_running() or self._acceptance.stop(live.row.key) is not None

    async def keep(self, run: TurnRun) -> None:
        """See `Acceptance.keep`."""
        await self._acceptance.keep(run)

    # --- taking part in a session ---

    async def session(
        self, who: Principal, session_id: str, least: Role = Role.READER, *, leaving: bool = False
    ) -> LiveSession:
        """The session, to attach a client to it or to ask something of its runtime. `let_go` of it.

        Args:
            leaving: Also while this node drains, as long as it has the session loaded for a turn.

        Raises:
            NotFound: There is no such session that the principal may read.
            Forbidden: The principal's role is less than `least`.
            Quarantined: The session is loaded no more.
            Draining, StoreUnavailable: This node takes no work now.
        """
        key = SessionKey(who.tenant, session_id)
        leaving = leaving and self._serving.draining
        if leaving:
            self._serving.still_here(key)
        else:
            await self._serving.wait()
        row = await allowed(self._context, self._sessions, who, session_id, least)
        self._context.suspicions.check(row)
        if leaving:
            self._serving.still_here(key)
        return self._sessions.ensure(row)

    def let_go(self, live: LiveSession) -> None:
        """The client needs the session no more: forget what is of no use now."""
        self._sessions.forget(live)

    def still_allowed(self, who: Principal, live: LiveSession, least: Role = Role.READER) -> None:
        """Look again, without asking the directory, after having waited. Raises as `session`."""
        check(who, live.row, least)

    async def role(self, who: Principal, session_id: str) -> Role | None:
        """The principal's role as it is in the directory now; ``None``: there is no such session for it."""
        row = await self._context.directory.get(SessionKey(who.tenant, session_id))
        return None if row is None else row.role_of(who)

    def is_own(self, who: Principal, session_id: str) -> bool:
        """Whether a session that is loaded here is the principal's, or shared with it."""
        live = self._sessions.find(SessionKey(who.tenant, session_id))
        return live is not None and live.row.role_of(who) is not None

    # --- runtimes ---

    async def borrow(self, who: Principal) -> Runtime:
        """Any runtime that serves the principal, for a question that concerns no session; `give_back` it.

        Raises as `Runtimes.reserve`.
        """
        await self._serving.wait()
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

    # --- turns that were lost ---

    async def authors_at_work(self, who: Principal, session_id: str) -> set[str]:
        """Whose turns of the session a living node has in hand; not asked before it is certain who has gone. "" is the
        runtime itself, which is at work without a turn of ours.

        Raises:
            NotFound: There is no such session.
            StoreUnavailable: That cannot be found out.
        """
        while not self._context.settled():  # noqa: ASYNC110 - time does it
            await asyncio.sleep(0.1)
        row = await allowed(self._context, self._sessions, who, session_id)
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
