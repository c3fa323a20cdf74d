"""Every setting: its name, type, default and meaning. One class a section of `aerodrome.toml`.

The descriptions are the documentation: `docs/settings.md` and the file that `aerodrome init` writes are made
from them. Rules that concern one section are checked in its class, those that concern several in `Settings`.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from aerodrome._util.redis_url import REDIS_SCHEMES, RedisUrl
from aerodrome._util.xdg import data_home
from aerodrome.config.types import (
    Address,
    ByteSize,
    Duration,
    Kind,
    ListenAddress,
    LocalPath,
    Name,
    Secret,
    StoreUrl,
    Tool,
    Url,
    check_postgresql_url,
    resolve_store_url,
)
from aerodrome.model import ISOLATED_TOOLS, Isolation, OnBusy, Profile

MIB = 1 << 20


def _written(text: object) -> str:
    return f'"{text}"'


class Section(BaseModel):
    """A table of the file. Immutable; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)


def broken_rule(*path: str, message: str) -> PydanticCustomError:
    """A rule over several settings that does not hold; `path` is the setting to point at, from the class on."""
    # A custom error's message is a template: the text goes in as a value, so that braces in it stay as they are.
    return PydanticCustomError("rule", "{message}", {"message": message, "path": path})


def _default_node_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip(".-_")[:100] or "node"


def _default_data_dir() -> Path:
    return data_home() / "aerodrome"


class ServerSettings(Section):
    http: ListenAddress = Field(
        default=Address("127.0.0.1", 8080),
        description="Address of the HTTP API. Port 0 takes a free one; the `ready` line names it.",
    )
    gateway: ListenAddress = Field(
        default=Address("127.0.0.1", 4321),
        description="Address of the native gateway, to which Copilot SDKs connect. Port 0 takes a free one.",
    )
    advertise: ListenAddress | None = Field(
        default=None,
        description="Address at which other nodes reach this one's gateway. Needed where the one it listens on is not "
        "reached from other machines.",
        json_schema_extra={
            "default_text": "`server.gateway`, with this machine's name when that listens everywhere",
            "example": '"node-1.internal:4321"',
        },
    )
    data_dir: LocalPath = Field(
        default_factory=_default_data_dir,
        description="Directory of the databases, the runtimes' homes and their logs.",
        json_schema_extra={"default_text": "`$XDG_DATA_HOME/aerodrome`", "example": '"~/.local/share/aerodrome"'},
    )
    drain_timeout: Duration = Field(
        default=60.0, description="At shutdown: how long running turns may take to finish before they are cut."
    )
    node_name: Name = Field(
        default_factory=_default_node_name,
        description="Name of this node in listings and logs; unique among the nodes of one store.",
        json_schema_extra={"default_text": "the host name", "example": '"node-1"'},
    )


def _database_schema(value: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", value) or value.startswith("pg_"):
        raise ValueError("expected up to 63 small letters, digits and _, the first no digit")
    return value


def _key_prefix(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,60}", value):
        raise ValueError("expected up to 60 letters, digits or any of . _ -")
    return value


def _coordination_url(url: StoreUrl) -> StoreUrl:
    if url in ("sqlite", "memory"):
        return url
    if url.scheme in ("postgresql", "postgres"):
        return check_postgresql_url(url)
    if url.scheme in REDIS_SCHEMES:
        RedisUrl.parse(url)
        return url
    raise ValueError(
        'expected "sqlite", "memory", "redis://HOST" (or rediss, unix, redis+sentinel, redis+cluster) or '
        '"postgresql://USER@HOST/DATABASE"'
    )


#: Always resolved, checked, and shown without its password.
_CoordinationUrl = Annotated[
    StoreUrl, PlainValidator(resolve_store_url), AfterValidator(_coordination_url), Kind("store", _written)
]
_DatabaseSchema = Annotated[str, AfterValidator(_database_schema), Kind("name", _written)]


class CoordinationSettings(Section):
    url: _CoordinationUrl = Field(
        default=StoreUrl("sqlite"),
        description="Store of leases, membership, limits and events. `sqlite`: a file in `server.data_dir` that "
        "several processes of one machine may share. For several machines (docs/fleet-stores.md): `redis://...`, "
        "`rediss://...` (TLS), `unix://...`, `redis+sentinel://...`, `redis+cluster://...` (Redis 7 or Valkey), or "
        "`postgresql://...`. `memory` forgets at exit. `env:NAME` and `file:PATH` as for secrets.",
    )
    key_prefix: Annotated[str, AfterValidator(_key_prefix), Kind("name", _written)] = Field(
        default="aerodrome", description="Redis: what all keys begin with; fleets that share a server have one each."
    )
    database_schema: _DatabaseSchema = Field(
        default="aerodrome", description="PostgreSQL: the schema that holds the tables."
    )
    heartbeat: Duration = Field(default=1.0, gt=0, description="How often a node says that it is alive.")
    ttl: Duration = Field(
        default=5.0,
        description="Silence after which a node is dead and its sessions go to others; at least three heartbeats.",
    )
    patience: Duration = Field(
        default=15.0,
        description="How long a request or a turn waits for the coordination store when it is away, before it fails "
        "with `store_unavailable`. Longer than a restart of the store takes. A heartbeat does not wait: the next is "
        "due soon.",
    )

    @model_validator(mode="after")
    def _ttl_outlives_lost_heartbeats(self) -> Self:
        # Self-fencing starts at 2/3 of the time to live: with less, one late heartbeat would fence a healthy node.
        if self.ttl < 3 * self.heartbeat:
            raise broken_rule("ttl", message="expected at least three times coordination.heartbeat")
        return self


def _state_url(url: StoreUrl) -> StoreUrl:
    if url == "sqlite":
        return url
    if url.scheme in ("postgresql", "postgres"):
        return check_postgresql_url(url)
    expected = 'expected "sqlite" or "postgresql://USER@HOST/DATABASE"'
    if url.scheme in ("redis", "rediss", "valkey"):
        raise ValueError(f"{url.scheme} stores forget; {expected}")
    if url.scheme == "volume":
        raise ValueError(f"volume stores are not in this version; {expected}")
    raise ValueError(expected)


#: Always resolved, checked, and shown without its password.
_StateUrl = Annotated[StoreUrl, PlainValidator(resolve_store_url), AfterValidator(_state_url), Kind("store", _written)]


class StateSettings(Section):
    url: _StateUrl = Field(
        default=StoreUrl("sqlite"),
        description="Store of all that must last: session files, message ledger, directory, API keys. `sqlite`: files "
        "in `server.data_dir`, for one machine. `postgresql://...`: a database that nodes on many machines share; what "
        "libpq understands in an address counts, such as `sslmode`; `env:NAME` and `file:PATH` as for secrets.",
    )
    database_schema: _DatabaseSchema = Field(
        default="aerodrome", description="PostgreSQL: the schema that holds the tables."
    )
    connections: int = Field(default=10, ge=1, description="PostgreSQL: most connections of this node.")
    patience: Duration = Field(
        default=15.0,
        description="How long a request, or a turn that is being stored, waits for the state store when it is away or "
        "full, before it fails with `store_unavailable`.",
    )
    max_file: ByteSize = Field(default=64 * MIB, gt=0, description="Largest file of a session.")
    max_session: ByteSize = Field(default=256 * MIB, gt=0, description="Most bytes of one session's files together.")
    synchronous: Literal["full", "normal"] = Field(
        default="full",
        description="SQLite: `full` survives a power cut with every acknowledged write; `normal` is faster and may "
        "then lose the last ones. Neither loses anything when a process dies. PostgreSQL has its own setting for this.",
    )

    @model_validator(mode="after")
    def _session_holds_a_file(self) -> Self:
        if self.max_session < self.max_file:
            raise broken_rule("max_session", message="expected at least state.max_file")
        return self


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
    launcher: Literal["process"] = Field(
        default="process", description="How runtimes are started: `process` is a child process of the node."
    )
    warm: int = Field(default=1, ge=0, description="Started runtimes kept ready for whoever comes next.")
    max_runtimes: int = Field(default=32, ge=1, description="Most runtimes of this node, warm ones included.")
    max_sessions: int = Field(
        default=50, ge=1, description="Most sessions loaded in one runtime; past it the least recently used hibernates."
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
    capacity_timeout: Duration = Field(
        default=30.0, description="How long a request waits for a runtime at a ceiling, before the error `capacity`."
    )
    env: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="Environment variables for every runtime, beside the few it gets anyway.",
        json_schema_extra={"example": '{ HTTPS_PROXY = "http://127.0.0.1:3128" }'},
    )
    log_bytes: ByteSize = Field(default=MIB, gt=0, description="Most bytes of output kept of one runtime.")

    @model_validator(mode="after")
    def _warm_ones_fit(self) -> Self:
        if self.warm > self.max_runtimes:
            raise broken_rule("warm", message="expected at most runtime.max_runtimes")
        return self


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

    @model_validator(mode="after")
    def _hibernates_before_it_expires(self) -> Self:
        if self.ttl < self.idle_timeout:
            raise broken_rule("ttl", message="expected at least sessions.idle_timeout")
        return self


class ProviderSettings(Section):
    """Where models come from, for one tenant or for all that have no entry of their own."""

    type: Literal["github", "openai", "azure", "anthropic"] = Field(
        default="github",
        description="`github` uses GitHub's own models with a GitHub token; the others are your own endpoint and key.",
    )
    base_url: Url | None = Field(
        default=None,
        description="Address of the model API. Needed for every type but `github`.",
        json_schema_extra={"example": '"https://models.example/v1"'},
    )
    api_key: Secret | None = Field(
        default=None,
        description="Key of the model API: the key itself, or better a reference, `env:NAME` or `file:PATH`.",
        json_schema_extra={"example": '"env:MODEL_API_KEY"'},
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="Model of sessions that name none.",
        json_schema_extra={"example": '"gpt-4.1"'},
    )
    wire_api: Literal["completions", "responses"] | None = Field(
        default=None,
        description="Which API the endpoint speaks; without it the Copilot CLI decides.",
        json_schema_extra={"example": '"completions"'},
    )
    azure_api_version: str | None = Field(
        default=None,
        min_length=1,
        description="API version of an `azure` endpoint; without it the versionless route is used.",
        json_schema_extra={"example": '"2024-10-21"'},
    )
    github_token: Secret | None = Field(
        default=None,
        description="GitHub token with Copilot access, for the type `github`; `env:NAME` and `file:PATH` as above.",
        json_schema_extra={"example": '"env:GITHUB_TOKEN"'},
    )

    @model_validator(mode="after")
    def _keys_go_together(self) -> Self:
        if self.type != "github" and self.base_url is None:
            raise broken_rule("base_url", message=f'expected a value: the provider type "{self.type}" needs one')
        if self.type == "github":
            for key in ("base_url", "api_key", "wire_api"):
                if getattr(self, key) is not None:
                    raise broken_rule(
                        key, message='not used by the provider type "github"; expected type openai, azure or anthropic'
                    )
        if self.type != "azure" and self.azure_api_version is not None:
            raise broken_rule("azure_api_version", message='used by the provider type "azure" only')
        return self


class ProviderSection(ProviderSettings):
    tenants: dict[Name, ProviderSettings] = Field(
        default_factory=dict,
        description="Providers of single tenants, with the same keys. An entry stands alone: nothing of the common "
        "provider is used for that tenant.",
        json_schema_extra={
            "example": '{ acme = { type = "openai", base_url = "https://models.acme.example/v1", model = "gpt-4.1" } }'
        },
    )

    def of(self, tenant: str) -> ProviderSettings:
        """The tenant's own entry, whole, or the common one: keys never meet somebody else's address."""
        return self.tenants.get(tenant, self)


class AuthSettings(Section):
    key_cache: Duration = Field(
        default=5.0,
        description="How long a checked API key is trusted; a revoked one works for as long at most, where the news of "
        "its revocation is lost.",
    )


def _isolated(tool: str) -> str:
    if tool not in ISOLATED_TOOLS:
        known = ", ".join(ISOLATED_TOOLS)
        raise ValueError(f"expected one of the isolated tools ({known}); one that reaches the host goes in host_tools")
    return tool


class PolicySettings(Section):
    tools: list[Annotated[Tool, AfterValidator(_isolated)]] = Field(
        default_factory=lambda: list(ISOLATED_TOOLS),
        description="Built-in tools that sessions may use, and do when they name none. All stay within the session.",
    )
    host_tools: list[Tool] = Field(
        default_factory=list,
        description="Built-in tools that reach the host, such as `bash` or `edit`. A session that names one gets it "
        "only where the isolation is `user`.",
        json_schema_extra={"example": '["bash"]'},
    )
    allow_unsandboxed: bool = Field(
        default=False,
        description="Permit `host_tools`, and the profiles `sandboxed` and `trusted`, with a launcher that has no "
        "sandbox: every user who may use them then has a shell on this machine, with the rights of the node.",
    )
    profile: Profile = Field(
        default=Profile.ISOLATED,
        description="What native clients may ask of a runtime: `isolated` nothing that reaches the host, `sandboxed` "
        "also what stays in the user's own workspace (needs isolation `user`), `trusted` nearly everything.",
    )
    tenants: dict[Name, Profile] = Field(
        default_factory=dict,
        description="Profiles of single tenants, where they differ from `profile`. Under isolation `tenant` only a "
        "tenant that is named here can be `trusted`.",
        json_schema_extra={"example": '{ acme = "trusted" }'},
    )

    def of(self, tenant: str) -> Profile:
        return self.tenants.get(tenant, self.profile)


class LimitSettings(Section):
    max_body: ByteSize = Field(default=8 * MIB, gt=0, description="Largest body of an HTTP request.")
    max_prompt: ByteSize = Field(default=6 * MIB, gt=0, description="Largest prompt with its attachments, as JSON.")
    max_frame: ByteSize = Field(default=64 * MIB, gt=0, description="Largest message from or to a runtime.")
    sse_buffer: ByteSize = Field(
        default=4 * MIB, gt=0, description="What may wait for one slow reader of an event stream before it is cut off."
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


class TelemetrySettings(Section):
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe messages that are logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`auto` is `console` on a terminal and `json` elsewhere."
    )


class Settings(Section):
    """The whole configuration."""

    server: ServerSettings = Field(default_factory=ServerSettings, description="The node and its addresses.")
    coordination: CoordinationSettings = Field(
        default_factory=CoordinationSettings, description="Who runs which session, and who is alive."
    )
    state: StateSettings = Field(default_factory=StateSettings, description="Where what must last is stored.")
    isolation: IsolationSettings = Field(
        default_factory=IsolationSettings, description="Who shares a Copilot CLI process with whom."
    )
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings, description="The Copilot CLI processes.")
    sessions: SessionSettings = Field(default_factory=SessionSettings, description="The life of sessions and turns.")
    provider: ProviderSection = Field(default_factory=ProviderSection, description="Where models come from.")
    auth: AuthSettings = Field(default_factory=AuthSettings, description="How callers prove who they are.")
    policy: PolicySettings = Field(default_factory=PolicySettings, description="What sessions may do.")
    limits: LimitSettings = Field(default_factory=LimitSettings, description="Ceilings that protect the node.")
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings, description="What the node says of itself.")

    @model_validator(mode="after")
    def _host_tools_are_contained(self) -> Self:
        if not self.policy.host_tools:
            return self
        if Isolation.USER not in (self.isolation.default, *self.isolation.tenants.values()):
            raise broken_rule(
                "policy",
                "host_tools",
                message='needs isolation "user": set isolation.default, or isolation.tenants for who may use them',
            )
        if not self.policy.allow_unsandboxed:
            raise broken_rule(
                "policy",
                "host_tools",
                message=f'the launcher "{self.runtime.launcher}" has no sandbox, so these tools give users a shell '
                "on this machine; remove them, or accept that with policy.allow_unsandboxed = true",
            )
        return self

    @model_validator(mode="after")
    def _profiles_suit_the_isolation(self) -> Self:
        policy, isolation = self.policy, self.isolation
        shared = [tenant for tenant in isolation.tenants if isolation.of(tenant) is Isolation.TENANT]
        # Named by nobody, and so in no list of trusted ones.
        default_is_shared = isolation.default is Isolation.TENANT or any(name not in policy.tenants for name in shared)
        if policy.profile is not Profile.ISOLATED and default_is_shared:
            other = ", or name who may use it in policy.tenants" if policy.profile is Profile.TRUSTED else ""
            raise broken_rule(
                "policy",
                "profile",
                message=f'"{policy.profile}" needs isolation "user" for every tenant that policy.tenants does not '
                f"name: set isolation.default and isolation.tenants{other}",
            )
        for tenant, profile in policy.tenants.items():
            if profile is Profile.SANDBOXED and isolation.of(tenant) is Isolation.TENANT:
                raise broken_rule(
                    "policy",
                    "tenants",
                    message=f'"sandboxed" needs isolation "user" for {tenant}: set isolation.default or '
                    "isolation.tenants",
                )
        return self

    @model_validator(mode="after")
    def _profiles_are_contained(self) -> Self:
        policy = self.policy
        if policy.allow_unsandboxed:
            return self
        key = "profile" if policy.profile is not Profile.ISOLATED else "tenants"
        if {policy.profile, *policy.tenants.values()} - {Profile.ISOLATED}:
            raise broken_rule(
                "policy",
                key,
                message=f'the launcher "{self.runtime.launcher}" has no sandbox, so profiles other than "isolated" '
                "give users a shell on this machine; use that, or accept it with policy.allow_unsandboxed = true",
            )
        return self


def reveal(secret: SecretStr | None) -> str | None:
    """The text of a secret, at the moment it is sent."""
    return None if secret is None else secret.get_secret_value()
