"""What sessions may do."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from aerodrome.config.section import Section
from aerodrome.config.types import (
    Name,
    Tool,
)
from aerodrome.model import ISOLATED_TOOLS, Profile


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
