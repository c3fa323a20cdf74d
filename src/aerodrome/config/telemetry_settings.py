"""What the node says of itself: logs, metrics, traces."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from aerodrome.config.secret_cells import LiveSecret
from aerodrome.config.section import Section
from aerodrome.config.types import ListenAddress, Secret, Url

#: Of HTTP: of a value, what can be sent. A client's own refusal of another one would quote it in the log.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def parse_headers(text: str) -> dict[str, str]:
    """Headers as OpenTelemetry's variables have them, with small names. Raises ValueError, which quotes nothing."""
    headers: dict[str, str] = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not (equals and _NAME.fullmatch(name.strip()) and _VALUE.fullmatch(value.strip())):
            raise ValueError("expected name=value, and commas between several")
        headers[name.strip().lower()] = value.strip()
    return headers


def _check_headers(secret: SecretStr) -> SecretStr:
    if isinstance(secret, LiveSecret):  # else it is a reference that is not looked up
        parse_headers(secret.get_secret_value())
        secret.cell.check = parse_headers
    return secret


class TelemetrySettings(Section):
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe messages that are logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`auto` is `console` on a terminal and `json` elsewhere."
    )
    metrics_address: ListenAddress | None = Field(
        default=None,
        description="Address of its own at which `/metrics` is served, for Prometheus. Whoever reaches it may read "
        "them, so let only Prometheus reach it.",
        json_schema_extra={"example": '"127.0.0.1:9464"'},
    )
    metrics_token: Secret | None = Field(
        default=None,
        description="Bearer token with which `server.http` answers `/metrics`. Without it, and without "
        "`metrics_address`, nothing is measured.",
        json_schema_extra={"example": '"env:METRICS_TOKEN"'},
    )
    tenant_labels: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="How many tenants are told apart in metrics of turns and tokens; those that come later are "
        "`other`. 0: none is, and the metrics name no tenant.",
    )
    traces: Url | None = Field(
        default=None,
        description="Collector to which traces are sent, by OTLP over HTTP; `/v1/traces` is added. Needs "
        "`aerodrome[otel]`.",
        json_schema_extra={"example": '"http://127.0.0.1:4318"'},
    )
    trace_headers: Annotated[Secret, AfterValidator(_check_headers)] | None = Field(
        default=None,
        description="Headers for the collector, as `name=value,name=value`.",
        json_schema_extra={"example": '"env:OTLP_HEADERS"'},
    )
    trace_sampling: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="Share of the traces that begin here which are kept. Of one that a caller has begun, the caller "
        "decides.",
    )
    runtime_traces: bool = Field(
        default=False,
        description="Have the runtimes send their own traces and metrics to the same collector, joined to the node's. "
        "The headers are then in their environment.",
    )
