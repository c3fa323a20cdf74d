"""Who may do what in a session, and what becomes of those who may no more.

Each call asks the directory (`allowed`). What lasts longer than a call, such as a stream of events or the part that a
native client takes, began when it was allowed; `Members` ends or changes it at once when a role is changed here, and
`recheck` when that was done elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from aerodrome.errors import AerodromeError, Forbidden, Invalid, NotFound
from aerodrome.model import Principal, Role, SessionKey, SessionKind, SessionRow, valid_name, valid_session_id
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.hints import MEMBERS
from aerodrome.sessions.registry import LiveSessions

log = structlog.get_logger(__name__)

#: Each listing of sessions names all members of each.
MAX_MEMBERS = 200

#: Told of the row as it is now, of a user in it, and of the roles that the user had before and has now.
RoleListener = Callable[[SessionRow, str, Role | None, Role | None], None]

_NEEDED = {
    Role.OWNER: "only the owner of this session may do that",
    Role.WRITER: "you may read this session, not write to it; its owner can make you a writer",
}


def no_such_session() -> NotFound:
    return NotFound("there is no such session")


def check(who: Principal, row: SessionRow | None, least: Role) -> SessionRow:
    """The row, if the principal has at least this role in it.

    Raises:
        NotFound: It has none, or there is no row: whether there is one is told to nobody else.
        Forbidden: Its role is not enough.
    """
    role = row.role_of(who) if row is not None else None
    if row is None or role is None:
        raise no_such_session()
    if not role.covers(least):
        raise Forbidden(_NEEDED[least])
    return row


async def allowed(
    context: SessionContext, sessions: LiveSessions, who: Principal, session_id: str, least: Role = Role.READER
) -> SessionRow:
    """The session's row, as it is here if the session is loaded here, else in the directory. Raises as `check`."""
    row = None
    if valid_session_id(session_id):
        key = SessionKey(who.tenant, session_id)
        row = sessions.row_here(key) or await context.directory.get(key)
    return check(who, row, least)


def tag(who: Principal, row: SessionRow) -> str | None:
    """Whose a subscription is; ``None`` for the owner, from whom nothing is ever taken."""
    return None if who.user == row.owner else who.user


class Members:
    def __init__(self, context: SessionContext, sessions: LiveSessions) -> None:
        self._context = context
        self._sessions = sessions
        self._listeners: list[RoleListener] = []
        #: One change after the other, so that what holds here is what the directory was told last.
        self._changing = asyncio.Lock()

    def listen(self, listener: RoleListener) -> None:
        """Have a front door told of changes, to end or change what it has made of a role."""
        self._listeners.append(listener)

    async def set(self, who: Principal, session_id: str, user: str, role: Role) -> SessionRow:
        """Raises as `SessionService.set_member`."""
        row = await allowed(self._context, self._sessions, who, session_id, Role.OWNER)
        if not valid_name(user):
            raise Invalid("a user's name has 1 to 100 characters out of A-Z, a-z, 0-9, '.', '_', '@' and '-'")
        if user == row.owner:
            raise Invalid(f"{user} is the owner of this session, and stays it")
        if role is Role.OWNER:
            raise Invalid("a session has one owner; a member is a `writer` or a `reader`")
        if row.kind is SessionKind.EPHEMERAL:
            raise Invalid("an ephemeral session ends with its one turn and is not shared")
        if user not in row.members and len(row.members) >= MAX_MEMBERS:
            raise Invalid(f"a session has at most {MAX_MEMBERS} members")
        return await self._change(row, user, role)

    async def remove(self, who: Principal, session_id: str, user: str) -> SessionRow:
        """Raises as `SessionService.remove_member`."""
        least = Role.READER if user == who.user else Role.OWNER
        row = await allowed(self._context, self._sessions, who, session_id, least)
        if user == row.owner:
            raise Invalid("the owner stays the owner; delete the session instead")
        if user not in row.members:
            raise NotFound(f"{user[:100]} is no member of this session")
        return await self._change(row, user, None)

    async def _change(self, row: SessionRow, user: str, role: Role | None) -> SessionRow:
        # In a task of its own: a change that is stored takes effect, whatever becomes of the caller.
        change = self._context.tasks.start(
            self._store(row, user, role), f"member of {row.key}", expected=AerodromeError
        )
        return await asyncio.shield(change)

    async def _store(self, row: SessionRow, user: str, role: Role | None) -> SessionRow:
        async with self._changing:
            changed = await self._context.directory.set_member(row.key, user, role)
            if changed is None:
                raise no_such_session()
            log.info("session.shared", session=str(row.key), user=user, role=role.value if role else None)
            self._apply(changed, user, row.members.get(user))
        self._context.announce(MEMBERS, row.key)
        return changed

    # --- what was done elsewhere ---

    async def refresh(self, key: SessionKey) -> None:
        """Let roles that were changed by another node or command take effect here."""
        live, hub = self._sessions.find(key), self._sessions.find_hub(key)
        if live is None and hub is None:
            return
        async with self._changing:
            row = await self._context.directory.get(key)
            if row is None:
                return
            known = dict(live.row.members) if live is not None else {}
            reading = hub.readers if hub is not None else set()
            for user in sorted({*known, *row.members, *reading}):
                before, now = known.get(user), row.members.get(user)
                if before is not now or (now is None and user in reading):
                    self._apply(row, user, before)

    async def recheck(self) -> None:
        """Look at every session that is shared or read by others here: a hint may have been lost."""
        for key in self._sessions.shared:
            await self.refresh(key)

    def _apply(self, row: SessionRow, user: str, before: Role | None) -> None:
        """What holds in the directory holds here. No await: nobody meets a half of it."""
        live = self._sessions.find(row.key)
        if live is not None:
            live.updates.row = replace(live.updates.row, members=row.members)
        now = row.members.get(user)
        if now is None:
            if (hub := self._sessions.find_hub(row.key)) is not None:
                hub.expel(user, no_such_session())
            for run in live.turns.all if live is not None else []:
                run.expel(user, no_such_session())
        for listener in self._listeners:
            listener(row, user, before, now)
