"""What the front doors see of the sessions room: the requests, the results, and the `Sessions` protocol.

Every method takes the principal first. A session the principal may not read is answered with `NotFound`, the
same as one that does not exist; what its role in the session does not allow, with `Forbidden`. Roles are
`reader` (`get`, `list`, `history`, `events`), `writer` (all but the following) and `owner` (`delete`, `set_member`,
`remove_member`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from aerodrome.coordination.ports import Page
from aerodrome.events import SessionEvent
from aerodrome.model import OnBusy, Principal, Role, SessionKind, SessionRow, TurnRow


@dataclass(frozen=True, slots=True)
class OpenSession:
    #: The caller's id if given (and free, or already a session that the caller may read), else we make one.
    id: str | None = None
    model: str | None = None
    kind: SessionKind = SessionKind.PERSISTENT
    title: str | None = None
    #: Text appended to the runtime's system message.
    system_message: str | None = None
    #: Built-in tools the session may use, from what policy allows; ``None``: the policy's default set.
    tools: list[str] | None = None
    #: Whether the model's answers come in pieces. Costs the runtime three times the processor time of a turn in one
    #: piece (docs/facts.md, "Wire").
    streaming: bool = True
    #: Parameters of `session.resume` that a native client chose and that hold without it; allowed by policy already.
    native: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SendMessage:
    prompt: str
    attachments: list[dict[str, Any]] = field(default_factory=list)
    #: ``None``: the configured `sessions.on_busy`.
    on_busy: OnBusy | None = None
    idempotency_key: str | None = None
    #: Whoever sends it learns nothing of it before its turn has ended. Until then it may be lost in a power failure,
    #: as if it had not come.
    told_at_end: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    prompt: str
    model: str | None = None
    system_message: str | None = None
    attachments: list[dict[str, Any]] = field(default_factory=list)
    streaming: bool = True


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a session's history."""

    id: str
    role: str
    content: str
    created_at: float
    turn_id: str | None = None
    author: str | None = None


@dataclass(frozen=True, slots=True)
class MessagePage:
    messages: list[Message]
    next: str | None


class EventStream(Protocol):
    """A subscription. Bounded: a reader that falls too far behind is cut off with `Lagging`, so that it costs
    nobody else anything; it comes back with the last id it has seen. `Draining` ends it when the session leaves this
    node: what follows is to be had from another one."""

    #: The cursor behind which it begins, for a reader that has named none; empty when none is known.
    position: str

    def __aiter__(self) -> AsyncIterator[SessionEvent]: ...

    def close(self) -> None:
        """Let go of the subscription. Safe to call twice, and from a generator's `finally`."""
        ...


class Turn(Protocol):
    """An accepted prompt."""

    @property
    def row(self) -> TurnRow:
        """The turn as it stands now."""
        ...

    async def wait(self, reader: str | None = None) -> TurnRow:
        """The final row. Cancelling the wait does not touch the turn.

        Args:
            reader: The user who waits: one who ceases to be a member of the session gets `NotFound`.
        """
        ...

    def events(self, reader: str | None = None) -> EventStream:
        """What happens in the turn from its admission on; the stream ends after the turn has.

        Args:
            reader: As of `wait`.
        """
        ...

    def abandon(self) -> None:
        """The caller has gone away: with `sessions.on_disconnect = "cancel"` the turn is aborted."""
        ...


class Lagging(Exception):
    """This reader was cut off because it did not keep up."""


class Sessions(Protocol):
    async def open_session(self, who: Principal, request: OpenSession) -> tuple[SessionRow, bool]:
        """Create the session, or return the existing one that the caller may read; the flag says which.

        Raises:
            Invalid: The id, a tool or a title is not allowed.
            NotFound: The id is taken by a session the caller may not read (which is all it learns).
        """
        ...

    async def get(self, who: Principal, session_id: str) -> SessionRow: ...

    async def list(self, who: Principal, *, cursor: str | None = None, limit: int = 50) -> Page: ...

    async def retitle(self, who: Principal, session_id: str, title: str) -> SessionRow: ...

    async def delete(self, who: Principal, session_id: str) -> None: ...

    async def set_member(self, who: Principal, session_id: str, user: str, role: Role) -> SessionRow:
        """Share the session with a user of the same tenant, or change what the user may do in it.

        Whether there is such a user is not known here: users are whoever has a key. A change holds at once, also for
        what is under way: see `remove_member`. Prompts that were accepted stay accepted.

        Raises:
            Invalid: The name, the role, the owner, an ephemeral session, too many members.
        """
        ...

    async def remove_member(self, who: Principal, session_id: str, user: str) -> None:
        """Share it no more. Members may remove themselves. The user's streams and attachments end at once.

        Raises:
            NotFound: The user is no member.
            Invalid: The user is the owner.
        """
        ...

    async def send(self, who: Principal, session_id: str, message: SendMessage) -> Turn:
        """Accept a prompt; returns when it is recorded, before it is answered.

        Raises:
            SessionBusy: A turn is running and `on_busy` is `reject`.
            Conflict: The idempotency key was used for another prompt.
            Capacity: The session's queue is full.
        """
        ...

    async def ask(self, who: Principal, request: Ask) -> Turn:
        """One prompt in a session of its own that leaves nothing behind."""
        ...

    async def history(
        self, who: Principal, session_id: str, *, cursor: str | None = None, limit: int = 200
    ) -> MessagePage: ...

    async def events(self, who: Principal, session_id: str, *, after: str | None = None) -> EventStream:
        """Everything that happens in the session from now on, or from behind the event `after` on.

        When `after` is too old to be continued without a gap, the first event is `aerodrome.gap`.
        """
        ...

    async def abort(self, who: Principal, session_id: str) -> bool:
        """End the running turn. ``False``: none was running."""
        ...

    async def answer(self, who: Principal, session_id: str, request_id: str, answer: dict[str, Any]) -> None:
        """Answer a permission request (`{"decision": "approve" | "deny", "feedback"?}`) or a user-input
        request (`{"answer": str, "free_form"?: bool}`).

        Raises:
            NotFound: No such request is open: unknown, answered already, or timed out.
        """
        ...
