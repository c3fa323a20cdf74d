"""The sessions of one node: what the front doors call (`sessions.api.Sessions`).

A session costs memory here only while it is *live*: resident in a runtime, or with turns waiting. The directory is
read on every access, unless the session is loaded here (`LiveSessions.row_here`), and who may do what is in its row,
never something read out of an id (trap 4; see `members`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from aerodrome.coordination.ports import Page
from aerodrome.errors import AerodromeError, NotFound
from aerodrome.model import Principal, Role, SessionKey, SessionKind, SessionRow
from aerodrome.sessions.acceptance import Acceptance
from aerodrome.sessions.api import Ask, MessagePage, OpenSession, SendMessage
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.hub import Channel
from aerodrome.sessions.live import LiveSession
from aerodrome.sessions.members import Members, allowed
from aerodrome.sessions.native import NativeSessions
from aerodrome.sessions.opening import Opening, check_title
from aerodrome.sessions.reading import Reading
from aerodrome.sessions.recovery import recover
from aerodrome.sessions.registry import LiveSessions
from aerodrome.sessions.run import TurnRun
from aerodrome.sessions.serving import Serving
from aerodrome.sessions.standing import as_it_stands, as_they_stand
from aerodrome.telemetry.trace import carried, current


class SessionService:
    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._sessions = LiveSessions(context)
        self._serving = Serving(context, self._sessions)
        self._opening = Opening(context, self._sessions, self._serving)
        self._acceptance = Acceptance(context, self._sessions, self._serving.check)
        #: For front doors: `members.listen`.
        self.members_here = Members(context, self._sessions)
        #: For the native gateway.
        self.native = NativeSessions(context, self._sessions, self._serving, self._acceptance)
        #: What has happened in sessions, wherever they run. `history` and `events` are for all callers.
        self.reading = Reading(context, self._sessions)

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
        """See `Serving.is_loaded`."""
        return self._serving.is_loaded(key)

    @property
    def draining(self) -> bool:
        return self._serving.draining

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
        return await self._opening.open(who, request)

    async def fork(
        self, who: Principal, session_id: str, *, to_event_id: str | None = None, title: str | None = None
    ) -> SessionRow:
        """See `Opening.fork`."""
        return await self._opening.fork(who, session_id, to_event_id=to_event_id, title=title)

    async def get(self, who: Principal, session_id: str) -> SessionRow:
        return await self._as_it_stands(await self._allowed(who, session_id))

    async def list(self, who: Principal, *, cursor: str | None = None, limit: int = 50) -> Page:
        page = await self._context.directory.list(who.tenant, user=who.user, cursor=cursor, limit=limit)
        kept = [row for row in page.rows if row.kind is not SessionKind.EPHEMERAL]
        return Page(await as_they_stand(self._context, self._sessions, kept), page.next)

    async def retitle(self, who: Principal, session_id: str, title: str) -> SessionRow:
        row = await self._allowed(who, session_id, Role.WRITER)
        check_title(title)
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
        await self._serving.wait()
        return await self._acceptance.send(who, session_id, message)

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
        if live is not None and await live.turns.abort():
            return True
        run = self._acceptance.stop(row.key)
        if run is not None:
            await self._acceptance.stopped(run)
        return run is not None

    async def answer(self, who: Principal, session_id: str, request_id: str, answer: dict[str, Any]) -> None:
        row = await self._allowed(who, session_id, Role.WRITER)
        live = self._sessions.find(row.key)
        if live is None or live.activation is None:
            raise NotFound("no such request is open")
        await live.activation.answer(request_id, answer)

    # --- history and events ---

    async def history(
        self, who: Principal, session_id: str, *, cursor: str | None = None, limit: int = 200
    ) -> MessagePage:
        return await self.reading.history(who, session_id, cursor=cursor, limit=limit)

    async def events(self, who: Principal, session_id: str, *, after: str | None = None) -> Channel:
        self._serving.check_draining()
        return await self.reading.events(who, session_id, after=after)

    async def events_elsewhere(self, who: Principal, session_id: str, *, after: str | None = None) -> Channel:
        """As `events`, for a reader at another node, who goes where the session goes: also while this one drains, as
        long as it has the session loaded for a turn."""
        if not self._serving.draining:
            return await self.reading.events(who, session_id, after=after)
        key = SessionKey(who.tenant, session_id)
        self._serving.still_here(key)
        channel = await self.reading.events(who, session_id, after=after)
        try:
            self._serving.still_here(key)
        except BaseException:
            channel.close()
            raise
        return channel

    # --- the node's own work ---

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
            self._context.later(self._sessions.drop_deleted(live), "drop deleted")

    def give_up_all(self, reason: str, within: float = 0.0) -> None:
        """Our leases are void, or will be in `within` seconds (see `LiveSessions.give_up_all`)."""
        self._sessions.give_up_all(reason, within)

    async def drain(self, timeout: float) -> None:
        """Take nothing new, let running turns end for up to `timeout` seconds, put everything to sleep."""
        self._serving.draining = True
        await self._sessions.drain(timeout)

    # --- inside ---

    async def _allowed(self, who: Principal, session_id: str, least: Role = Role.READER) -> SessionRow:
        return await allowed(self._context, self._sessions, who, session_id, least)

    async def _as_it_stands(self, row: SessionRow) -> SessionRow:
        return await as_it_stands(self._context, self._sessions, row)


def _abandon_result(asking: asyncio.Task[TurnRun]) -> None:
    if not asking.cancelled() and asking.exception() is None:
        asking.result().abandon()
