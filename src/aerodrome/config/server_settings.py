"""The node: its addresses, who may call it, what it says of itself."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from pydantic import Field

from aerodrome._util.xdg import data_home
from aerodrome.config.section import Section
from aerodrome.config.types import (
    Address,
    Duration,
    ListenAddress,
    LocalPath,
    Name,
)


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
    drain_delay: Duration = Field(
        default=0.0,
        description="At shutdown: how long the node still takes work before that, while `/ready` says that it stops. "
        "Longer than a load balancer takes to notice.",
    )
    node_name: Name = Field(
        default_factory=_default_node_name,
        description="Name of this node in listings and logs; unique among the nodes of one store.",
        json_schema_extra={"default_text": "the host name", "example": '"node-1"'},
    )


class AuthSettings(Section):
    key_cache: Duration = Field(
        default=5.0,
        description="How long a checked API key is trusted; a revoked one works for as long at most, where the news of "
        "its revocation is lost.",
    )
