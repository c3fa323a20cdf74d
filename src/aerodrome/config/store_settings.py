"""Where leases and what must last are stored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from aerodrome._util.redis_url import REDIS_SCHEMES
from aerodrome.config.section import MIB, Section, broken_rule, written
from aerodrome.config.types import (
    ByteSize,
    Duration,
    Kind,
    StoreUrl,
    check_postgresql_url,
    check_store_url,
    resolve_store_url,
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
    if url.scheme in ("postgresql", "postgres", *REDIS_SCHEMES):
        return check_store_url(url)
    raise ValueError(
        'expected "sqlite", "memory", "redis://HOST" (or rediss, unix, redis+sentinel, redis+cluster) or '
        '"postgresql://USER@HOST/DATABASE"'
    )


#: Always resolved, checked, and shown without its password.
_CoordinationUrl = Annotated[
    StoreUrl, PlainValidator(resolve_store_url), AfterValidator(_coordination_url), Kind("store", written)
]
_DatabaseSchema = Annotated[str, AfterValidator(_database_schema), Kind("name", written)]


class CoordinationSettings(Section):
    url: _CoordinationUrl = Field(
        default=StoreUrl("sqlite"),
        description="Store of leases, membership, limits and events. `sqlite`: a file in `server.data_dir` that "
        "several processes of one machine may share. For several machines (docs/fleet-stores.md): `redis://...`, "
        "`rediss://...` (TLS), `unix://...`, `redis+sentinel://...`, `redis+cluster://...` (Redis 7 or Valkey), or "
        "`postgresql://...`. `memory` forgets at exit. It may be, or have within it, a reference (docs/secrets.md).",
    )
    key_prefix: Annotated[str, AfterValidator(_key_prefix), Kind("name", written)] = Field(
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
    expected = 'expected "sqlite", "postgresql://USER@HOST/DATABASE" or "volume:/PATH"'
    if url.scheme in ("redis", "rediss", "valkey"):
        raise ValueError(f"{url.scheme} stores forget; {expected}")
    if url.scheme == "volume":
        if not url.partition(":")[2].startswith("/"):
            raise ValueError("expected the absolute path of the mounted volume, volume:/PATH")
        return url
    raise ValueError(expected)


def _tables_url(url: StoreUrl) -> StoreUrl:
    if url.scheme == "volume":
        raise ValueError('expected "sqlite" or "postgresql://USER@HOST/DATABASE"')
    return _state_url(url)


#: Always resolved, checked, and shown without its password.
_StateUrl = Annotated[StoreUrl, PlainValidator(resolve_store_url), AfterValidator(_state_url), Kind("store", written)]
_TablesUrl = Annotated[StoreUrl, PlainValidator(resolve_store_url), AfterValidator(_tables_url), Kind("store", written)]


class StateSettings(Section):
    url: _StateUrl = Field(
        default=StoreUrl("sqlite"),
        description="Store of all that must last: session files, message ledger, directory, API keys. `sqlite`: files "
        "in `server.data_dir`, for one machine. `postgresql://...`: a database that nodes on many machines share; what "
        "libpq understands in an address counts, such as `sslmode`; it may be, or have within it, a reference "
        "(docs/secrets.md). "
        "`volume:/PATH`: the session files lie on a volume that Copilot CLI servers share (docs/attached.md), all else "
        "where `tables` says.",
    )
    tables: _TablesUrl = Field(
        default=StoreUrl("sqlite"),
        description="With `volume:/PATH`: where message ledger, directory, API keys and epochs are; `sqlite` or "
        "`postgresql://...`, as for `url`.",
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

    @property
    def volume(self) -> Path | None:
        """Where session files lie, if that is a volume."""
        return Path(self.url.partition(":")[2]) if self.url.scheme == "volume" else None

    @property
    def tables_url(self) -> StoreUrl:
        """Where everything else is, or all."""
        return self.tables if self.url.scheme == "volume" else self.url

    @property
    def tables_setting(self) -> str:
        """The name of the setting that says so."""
        return "state.tables" if self.url.scheme == "volume" else "state.url"

    @model_validator(mode="after")
    def _session_holds_a_file(self) -> Self:
        if self.max_session < self.max_file:
            raise broken_rule("max_session", message="expected at least state.max_file")
        return self
