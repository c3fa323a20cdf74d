"""Copilot CLI servers that somebody else runs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from aerodrome.config.section import Section
from aerodrome.config.types import Kind, ListenAddress, Name, Secret


class AttachedServerSettings(Section):
    """One of `runtime.attach`, written as a table or, with all but the address left out, as `"HOST:PORT"`."""

    address: ListenAddress
    token: Secret | None = None
    weight: float = Field(default=1.0, gt=0, le=1000)
    tenant: Name | None = None
    max_sessions: int | None = Field(default=None, ge=1)
    workspace: str = Field(default="/tmp", min_length=1)  # noqa: S108 - on the server's machine


def _from_address(value: Any) -> Any:
    return {"address": value} if isinstance(value, str) else value


AttachedServer = Annotated[AttachedServerSettings, BeforeValidator(_from_address), Kind("server")]
