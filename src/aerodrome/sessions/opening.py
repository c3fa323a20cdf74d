"""How a session comes into being: opened under an id, or as a copy of another one."""

from __future__ import annotations

import uuid
from typing import Any

from aerodrome.errors import Invalid, NotFound, TooLarge
from aerodrome.model import MAX_TITLE, Principal, SessionKey, SessionRow, valid_session_id
from aerodrome.sessions.api import OpenSession
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.fork import copy_files, fork_places
from aerodrome.sessions.members import allowed
from aerodrome.sessions.registry import LiveSessions
from aerodrome.sessions.serving import Serving
from aerodrome.sessions.standing import as_it_stands

MAX_SYSTEM_MESSAGE = 100_000


class Opening:
    def __init__(self, context: SessionContext, sessions: LiveSessions, serving: Serving) -> None:
        self._context = context
        self._sessions = sessions
        self._serving = serving
        self._forks = fork_places()

    async def open(self, who: Principal, request: OpenSession) -> tuple[SessionRow, bool]:
        """See `sessions.api.Sessions.open_session`."""
        await self._serving.wait()
        self._check(who, request)
        now = self._context.clock.time()
        row = SessionRow(
            key=SessionKey(who.tenant, request.id or str(uuid.uuid4())),
            owner=who.user,
            kind=request.kind,
            isolation=self._context.options.isolation_of(who.tenant),
            model=request.model,
            title=request.title,
            options=_options(request),
            created_at=now,
            last_used_at=now,
        )
        present = await self._context.directory.insert(row)
        if present is None:
            return row, True
        if present.role_of(who) is None:
            raise NotFound("no session under this id can be opened by you; choose another id, or leave it out")
        return await as_it_stands(self._context, self._sessions, present), False

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
        row = await allowed(self._context, self._sessions, who, session_id)
        opened = OpenSession(
            model=row.model,
            title=title or row.title,
            system_message=row.options.get("system_message"),
            tools=row.options.get("tools"),
            streaming=bool(row.options.get("streaming", True)),
            native=row.options.get("native"),
        )
        async with self._forks.hold(who.tenant, who.user):
            target, _ = await self.open(who, opened)
            try:
                await copy_files(self._context, row.key, target, to_event_id)
            except BaseException:
                await self._sessions.delete(target)
                raise
        return target

    def _check(self, who: Principal, request: OpenSession) -> None:
        if request.id is not None and not valid_session_id(request.id):
            raise Invalid("a session id has 1 to 200 characters out of A-Z, a-z, 0-9, '_' and '-'")
        if request.title is not None:
            check_title(request.title)
        if request.system_message is not None and len(request.system_message) > MAX_SYSTEM_MESSAGE:
            raise TooLarge(f"the system message is over the limit of {MAX_SYSTEM_MESSAGE} characters")
        isolation = self._context.options.isolation_of(who.tenant)
        refused = self._context.options.tools.refused(isolation, request.tools or [])
        if refused:
            offered = ", ".join(sorted(self._context.options.tools.allowed(isolation))) or "none"
            raise Invalid(f"these tools are not allowed here: {', '.join(refused)}; allowed are: {offered}")


def check_title(title: str) -> None:
    """Raises `Invalid`."""
    if not title.strip() or len(title) > MAX_TITLE:
        raise Invalid(f"a title has 1 to {MAX_TITLE} characters")


def _options(request: OpenSession) -> dict[str, Any]:
    """What is stored with the session of how it was opened."""
    options: dict[str, Any] = {"streaming": request.streaming}
    if request.system_message is not None:
        options["system_message"] = request.system_message
    if request.tools is not None:
        options["tools"] = list(request.tools)
    if request.native is not None:
        options["native"] = dict(request.native)
    return options
