"""The values the parts exchange. No behaviour beyond what follows from the value itself.

Times are Unix seconds (float, UTC). Ids are strings; a session id is unique inside its tenant only, so that
everything that names a session takes a `SessionKey`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

#: What the CLI accepts (docs/facts.md, "Wire"), with our own shorter limit: 200 characters.
SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
#: Tenants and users name rows, metrics and log lines, so they stay printable and short.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")

#: Built-in tools of the runtime that stay within one session (the SDK's `BUILTIN_TOOLS_ISOLATED`).
ISOLATED_TOOLS = (
    "ask_user",
    "task_complete",
    "exit_plan_mode",
    "task",
    "read_agent",
    "write_agent",
    "list_agents",
    "send_inbox",
    "context_board",
    "skill",
)


#: Longest title of a session, in characters.
MAX_TITLE = 200


class SessionKey(NamedTuple):
    tenant: str
    id: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.id}"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller."""

    tenant: str
    user: str
    roles: frozenset[str] = frozenset()
    key_id: str | None = None

    @property
    def is_admin(self) -> bool:
        return "admin" in self.roles


class SessionKind(StrEnum):
    PERSISTENT = "persistent"
    EPHEMERAL = "ephemeral"


class Role(StrEnum):
    """What a user may do in a session. Each may do what those behind it may."""

    #: Delete it, and say whom it is shared with.
    OWNER = "owner"
    #: Send prompts, stop turns, answer what the runtime asks, bring tools along, give it another title.
    WRITER = "writer"
    #: See it, its history and its events, and make a copy of it.
    READER = "reader"

    def covers(self, least: Role) -> bool:
        """Whether it allows what `least` does."""
        order = list(Role)
        return order.index(self) <= order.index(least)


class SessionState(StrEnum):
    """Where a session is. The directory stores it for listings; the node that holds the lease decides."""

    HIBERNATED = "hibernated"
    RESIDENT = "resident"
    RUNNING = "running"


class TurnStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"
    INTERRUPTED = "interrupted"

    @property
    def is_final(self) -> bool:
        return self not in (TurnStatus.QUEUED, TurnStatus.RUNNING)


class OnBusy(StrEnum):
    ENQUEUE = "enqueue"
    REJECT = "reject"
    STEER = "steer"
    INTERRUPT = "interrupt"


class Isolation(StrEnum):
    USER = "user"
    TENANT = "tenant"


class PlacementStrategy(StrEnum):
    """Which of several runtimes gets a session (`placement.choose`)."""

    LEAST_LOADED = "least_loaded"
    ROUND_ROBIN = "round_robin"
    STICKY = "sticky"


class Profile(StrEnum):
    """What native clients of a tenant may ask of a runtime; `policy/profiles.py` says which suits whom."""

    ISOLATED = "isolated"
    SANDBOXED = "sandboxed"
    TRUSTED = "trusted"


class RuntimeKey(NamedTuple):
    """Whom a runtime serves: one user of one tenant, or (`user` is None) one tenant's users."""

    tenant: str
    user: str | None

    def __str__(self) -> str:
        return f"{self.tenant}/{self.user or '*'}"


@dataclass(frozen=True, slots=True)
class LastTurn:
    id: str
    status: TurnStatus


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One row of the directory: everything about a session that outlives its runtime."""

    key: SessionKey
    owner: str
    kind: SessionKind = SessionKind.PERSISTENT
    isolation: Isolation = Isolation.TENANT
    state: SessionState = SessionState.HIBERNATED
    model: str | None = None
    title: str | None = None
    #: What the session was opened with and needs again at each resume: `system_message`, `tools`. No secrets.
    options: dict[str, Any] = field(default_factory=dict)
    created_at: float = 0.0
    last_used_at: float = 0.0
    last_turn: LastTurn | None = None
    #: Whom the owner shares it with: user -> `writer` or `reader`.
    members: dict[str, Role] = field(default_factory=dict)

    def role_of(self, who: Principal) -> Role | None:
        """What the principal may do here; ``None``: it may not even know that the session exists."""
        if who.tenant != self.key.tenant:
            return None
        return Role.OWNER if who.user == self.owner else self.members.get(who.user)

    @property
    def people(self) -> list[tuple[str, Role]]:
        """Everybody who has a role, the owner first."""
        return [(self.owner, Role.OWNER), *self.members.items()]


@dataclass(frozen=True, slots=True)
class TurnRow:
    """One row of the message ledger: an accepted prompt and what became of it."""

    key: SessionKey
    id: str
    author: str
    status: TurnStatus
    prompt: str
    #: The node incarnation that accepted it and works on it.
    incarnation: str = ""
    attachments: list[dict[str, Any]] = field(default_factory=list)
    #: The caller's `Idempotency-Key`, unique in the session; a repeated key returns the first outcome.
    idempotency_key: str | None = None
    #: Digest of prompt and attachments, when there is a key: the same key for another prompt is a conflict.
    digest: str = ""
    #: The runtime's id of the user message, known once `session.send` has been answered.
    message_id: str | None = None
    #: The answer: `{"id": ..., "content": ...}`.
    answer: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    #: `{"code": ..., "detail": ...}` when the turn did not complete.
    error: dict[str, Any] | None = None
    retried: bool = False
    #: A tool call has started, so that the turn must not be run again by itself.
    tool_ran: bool = False
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None


def valid_session_id(value: str) -> bool:
    return SESSION_ID.fullmatch(value) is not None


def valid_name(value: str) -> bool:
    return NAME.fullmatch(value) is not None
