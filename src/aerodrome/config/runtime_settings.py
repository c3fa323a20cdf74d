"""The Copilot CLI processes, and who shares one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from aerodrome.config.attach_settings import AttachedServer
from aerodrome.config.recycle_settings import RecycleSettings, written
from aerodrome.config.section import MIB, Section, broken_rule
from aerodrome.config.types import (
    ByteSize,
    Duration,
    Kind,
    Name,
    Secret,
)
from aerodrome.model import Isolation, PlacementStrategy


class IsolationSettings(Section):
    default: Isolation = Field(
        default=Isolation.TENANT,
        description="Who shares a Copilot CLI process: `tenant` all users of a tenant (cheaper), `user` nobody (each "
        "user has their own).",
    )
    tenants: dict[Name, Isolation] = Field(
        default_factory=dict,
        description="Isolation of single tenants, where it differs from `default`.",
        json_schema_extra={"example": '{ acme = "user" }'},
    )

    def of(self, tenant: str) -> Isolation:
        return self.tenants.get(tenant, self.default)


def _command(value: str) -> str:
    if not value:
        raise ValueError('expected "auto" or the path of a Copilot CLI binary')
    return value if value == "auto" else str(Path(value).expanduser().absolute())


class RuntimeSettings(Section):
    command: Annotated[str, AfterValidator(_command), Kind('"auto" or path')] = Field(
        default="auto",
        description="The Copilot CLI binary. `auto`: `COPILOT_CLI_PATH`, what `aerodrome runtime install` put into the "
        "cache, the SDK's own download, then `copilot` on `PATH`.",
    )
    allow_version_mismatch: bool = Field(
        default=False, description="Start a Copilot CLI of another version than the one this release is tested with."
    )
    launcher: Literal["process", "sandbox"] = Field(
        default="process",
        description="How runtimes are started: `process` is a child process of the node, `sandbox` one that "
        "bubblewrap keeps from the machine (Linux; see `[sandbox]`).",
    )
    warm: int = Field(default=1, ge=0, description="Started runtimes kept ready for whoever comes next, at least.")
    max_warm: int | None = Field(
        default=None,
        ge=0,
        description="The same, at most: so many are kept when users come often, or have come many at a time.",
        json_schema_extra={"example": "8", "default_text": "4, or `warm` if that is more; 0 if `warm` is 0"},
    )
    memory_reserve: ByteSize = Field(
        default=512 * MIB,
        ge=0,
        description="Memory of the machine, or of the container, that runtimes which stand by leave free. When less "
        "than half of it is left, they are stopped. 0: do not look.",
    )
    max_runtimes: int = Field(default=32, ge=1, description="Most runtimes of this node, warm ones included.")
    max_sessions: int = Field(
        default=50, ge=1, description="Most sessions loaded in one runtime; past it the least recently used hibernates."
    )
    placement: PlacementStrategy = Field(
        default=PlacementStrategy.LEAST_LOADED,
        description="Which of several runtimes of a user or tenant gets a session: `least_loaded` the one with most "
        "room, `round_robin` one after the other, `sticky` the same for the same user as long as it is there.",
    )
    spawn_concurrency: int = Field(default=2, ge=1, description="Most runtimes that start at the same time.")
    start_timeout: Duration = Field(default=30.0, gt=0, description="A runtime that is not ready by then is ended.")
    ping_interval: Duration = Field(default=5.0, gt=0, description="How often a runtime is asked for a sign of life.")
    ping_timeout: Duration = Field(
        default=5.0, gt=0, description="A runtime that does not answer a ping by then is taken for dead and replaced."
    )
    stop_timeout: Duration = Field(
        default=5.0, description="What a runtime gets to stop by itself, and again after SIGTERM, before SIGKILL."
    )
    idle_timeout: Duration = Field(default=600.0, description="A runtime without sessions stops after this time.")
    attach: list[AttachedServer] = Field(
        default_factory=list,
        description="Copilot CLI servers that run already (docs/attached.md), as `HOST:PORT` or as tables with "
        "`address` and, if need be, `token`, `tenant`, `weight`, `max_sessions`, `workspace`. A name that leads to "
        "several addresses is a server each. Read anew on SIGHUP and when the file changes. Needs a volume for "
        "`state.url`.",
    )
    attach_tokens: dict[Name, Secret] = Field(
        default_factory=dict,
        repr=False,
        description="Connection tokens of attached servers by name: `default` for those that say nothing else, others "
        "for servers that are attached at run time and name one.",
        json_schema_extra={"example": '{ default = "file:/run/secrets/copilot-connection-token" }'},
    )
    attach_refresh: Duration = Field(
        default=5.0,
        gt=0,
        description="How often the names of attached servers are looked up again, and what was attached at run time.",
    )
    capacity_timeout: Duration = Field(
        default=30.0, description="How long a request waits for a runtime at a ceiling, before the error `capacity`."
    )
    env: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="Environment variables for every runtime, beside the few it gets anyway.",
        json_schema_extra={"example": '{ HTTPS_PROXY = "http://127.0.0.1:3128" }'},
    )
    recycle: Annotated[RecycleSettings, Kind("table", written)] = Field(
        default_factory=RecycleSettings,
        description="When a runtime is worn out and replaced, with its sessions moved and nobody interrupted: after so "
        "many `turns`, at an `age`, with so much `memory` (PSS, children included), so many open `descriptors` or "
        "`children`, or when it answers `drift` times slower than in its youth; 0 switches a limit off. It is looked "
        "at every `interval`. `at_once` are replaced at a time, and a turn that runs then has `patience` to end.",
    )
    log_bytes: ByteSize = Field(default=MIB, gt=0, description="Most bytes of output kept of one runtime.")

    @model_validator(mode="after")
    def _warm_ones_fit(self) -> Self:
        if self.warm > self.max_runtimes:
            raise broken_rule("warm", message="expected at most runtime.max_runtimes")
        if self.max_warm is not None and self.max_warm < self.warm:
            raise broken_rule("max_warm", message="expected at least runtime.warm")
        return self

    @property
    def most_warm(self) -> int:
        """`max_warm`, or what it is without being set."""
        if self.max_warm is not None:
            return self.max_warm
        return max(self.warm, 4) if self.warm else 0
