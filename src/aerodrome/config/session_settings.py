"""The life of sessions and turns, and the ceilings that protect a node."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from aerodrome.config.section import MIB, Section, broken_rule
from aerodrome.config.types import (
    ByteSize,
    Duration,
    Kind,
    Name,
)
from aerodrome.model import OnBusy

#: A thousand times more than another is as good as always first.
Weight = Annotated[float, Field(ge=0.01, le=100), Kind("number", lambda value: f"{value:g}")]


class SessionSettings(Section):
    idle_timeout: Duration = Field(default=1800.0, description="A session not used for this time hibernates.")
    ttl: Duration = Field(
        default=30 * 86400.0, gt=0, description="A session not used for this time is deleted, with its files."
    )
    on_busy: OnBusy = Field(
        default=OnBusy.ENQUEUE,
        description="What a prompt does when a turn is running: `enqueue` waits, `reject` fails with `session_busy`, "
        "`steer` joins the running turn, `interrupt` ends it.",
    )
    on_disconnect: Literal["continue", "cancel"] = Field(
        default="continue", description="What becomes of a turn whose caller has gone away."
    )
    request_timeout: Duration = Field(
        default=900.0, gt=0, description="A permission or input request that nobody answers is then denied."
    )
    max_queued: int = Field(default=100, ge=0, description="Most prompts waiting in one session.")
    turn_timeout: Duration = Field(default=3600.0, gt=0, description="A turn that runs longer is aborted.")
    large_history: ByteSize = Field(
        default=8 * MIB,
        gt=0,
        description="A session whose stored history is longer is warned of when it is loaded: in the log, and to its "
        "readers with the event `aerodrome.session_large`.",
    )
    max_history: ByteSize = Field(
        default=48 * MIB,
        gt=0,
        description="A session whose stored history is longer is not loaded, but refused with `too_large`: it might "
        "end its runtime, for all who share it.",
    )

    @model_validator(mode="after")
    def _hibernates_before_it_expires(self) -> Self:
        if self.ttl < self.idle_timeout:
            raise broken_rule("ttl", message="expected at least sessions.idle_timeout")
        if self.max_history < self.large_history:
            raise broken_rule("max_history", message="expected at least sessions.large_history")
        return self


class LimitSettings(Section):
    max_body: ByteSize = Field(default=8 * MIB, gt=0, description="Largest body of an HTTP request.")
    max_prompt: ByteSize = Field(default=6 * MIB, gt=0, description="Largest prompt with its attachments, as JSON.")
    max_frame: ByteSize = Field(default=64 * MIB, gt=0, description="Largest message from or to a runtime.")
    sse_buffer: ByteSize = Field(
        default=4 * MIB, gt=0, description="What may wait for one slow reader of an event stream before it is cut off."
    )
    max_readers: int = Field(
        default=10_000,
        ge=1,
        description="Most streams of events that are read from this node over HTTP at the same time.",
    )
    max_readers_per_user: int = Field(
        default=1_000, ge=1, description="The same, of one user; one more is refused with `rate_limited`."
    )
    max_clients: int = Field(default=10_000, ge=1, description="Most clients of the native gateway at the same time.")
    max_clients_per_user: int = Field(
        default=1_000, ge=1, description="Most clients of the native gateway at the same time, of one user."
    )
    max_requests: int = Field(
        default=1_000, ge=1, description="Most requests of one client of the native gateway that wait for an answer."
    )
    client_buffer: ByteSize = Field(
        default=96 * MIB,
        gt=0,
        description="What may wait for one client of the native gateway before it is cut off, and what its unanswered "
        "requests may have together.",
    )
    client_timeout: Duration = Field(
        default=30.0,
        gt=0,
        description="How long a client of the native gateway may take to authenticate, and to read what waits for it.",
    )
    max_turns: int = Field(default=500, ge=1, description="Most turns that run at the same time in this node.")
    max_turns_per_runtime: int | None = Field(
        default=None,
        ge=1,
        description="Most turns that run at the same time in one runtime; more of them wait.",
        json_schema_extra={"example": "20"},
    )
    max_turns_per_tenant: int | None = Field(
        default=None,
        ge=1,
        description="Most turns of one tenant that run at the same time, over all nodes. Without it each node gives a "
        "tenant a fifth of `max_turns`.",
        json_schema_extra={"example": "100"},
    )
    max_turns_per_user: int | None = Field(
        default=None,
        ge=1,
        description="Most turns of one user that run at the same time, over all nodes; more of them wait.",
        json_schema_extra={"example": "4"},
    )
    turns_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Most prompts that are accepted from one user in a minute, over all nodes; the next is refused "
        "with `rate_limited`.",
        json_schema_extra={"example": "60"},
    )
    turns_per_minute_per_tenant: int | None = Field(
        default=None,
        ge=1,
        description="The same, for all users of one tenant together.",
        json_schema_extra={"example": "600"},
    )

    max_waiting_per_tenant: int = Field(
        default=10_000,
        ge=1,
        description="Most prompts of one tenant that this node has accepted and that have not begun; one more is "
        "refused with `rate_limited`.",
    )
    max_waiting_per_user: int = Field(default=1_000, ge=1, description="The same, of one user.")
    max_waiting_text_per_tenant: ByteSize = Field(
        default=1024 * MIB,
        gt=0,
        description="Most characters of prompts, attachments included, that one tenant has waiting in this node.",
    )
    max_waiting_text_per_user: ByteSize = Field(default=256 * MIB, gt=0, description="The same, of one user.")
    max_sessions: int | None = Field(
        default=None,
        ge=1,
        description="Most sessions loaded in this node; past it the least recently used hibernates, as in one runtime "
        "(`runtime.max_sessions`).",
        json_schema_extra={"example": "1000"},
    )
    max_sessions_per_tenant: int | None = Field(
        default=None,
        ge=1,
        description="The same, of one tenant: its own least recently used one hibernates.",
        json_schema_extra={"example": "500"},
    )
    max_sessions_per_user: int | None = Field(
        default=None, ge=1, description="The same, of one owner.", json_schema_extra={"example": "20"}
    )
    max_runtimes_per_tenant: int | None = Field(
        default=None,
        ge=1,
        description="Most runtimes of one tenant in this node; past it one of its own has to become free. Default: "
        "three quarters of `runtime.max_runtimes`, rounded up.",
        json_schema_extra={"example": "16"},
    )
    weights: dict[Name, Weight] = Field(
        default_factory=dict,
        description="Shares of tenants that wait for the same: one of weight 2 is served twice as often as one of "
        "weight 1, which is what the others have.",
        json_schema_extra={"example": "{ acme = 2 }"},
    )

    def weight_of(self, tenant: str) -> float:
        return self.weights.get(tenant, 1.0)

    @model_validator(mode="after")
    def _a_prompt_fits(self) -> Self:
        if self.max_prompt > self.max_body:
            raise broken_rule("max_prompt", message="expected at most limits.max_body")
        # The runtime tells it in an event, and writes that down as a text: each time its escapes are escaped again.
        if 4 * self.max_prompt > self.max_frame:
            raise broken_rule("max_prompt", message="expected at most a quarter of limits.max_frame")
        if self.max_body > self.max_frame:
            raise broken_rule("max_body", message="expected at most limits.max_frame")
        if self.max_frame > self.client_buffer:
            raise broken_rule("max_frame", message="expected at most limits.client_buffer")
        return self
