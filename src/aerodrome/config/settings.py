"""Every setting: its name, type, default and meaning. One class a section of `aerodrome.toml`.

The descriptions are the documentation: `docs/settings.md` and the file that `aerodrome init` writes are made
from them. Rules that concern one section are checked in its class, those that concern several in `Settings`.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from aerodrome.config.policy_settings import PolicySettings
from aerodrome.config.provider_settings import ProviderSection
from aerodrome.config.runtime_settings import IsolationSettings, RuntimeSettings
from aerodrome.config.sandbox_settings import SandboxLevel, SandboxSettings
from aerodrome.config.secret_settings import SecretSettings
from aerodrome.config.section import Section, broken_rule
from aerodrome.config.server_settings import AuthSettings, ServerSettings
from aerodrome.config.session_settings import LimitSettings, SessionSettings
from aerodrome.config.store_settings import CoordinationSettings, StateSettings
from aerodrome.config.telemetry_settings import TelemetrySettings
from aerodrome.model import Isolation, Profile


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
    sandbox: SandboxSettings = Field(
        default_factory=SandboxSettings, description="What the launcher `sandbox` keeps from a runtime."
    )
    sessions: SessionSettings = Field(default_factory=SessionSettings, description="The life of sessions and turns.")
    provider: ProviderSection = Field(default_factory=ProviderSection, description="Where models come from.")
    secrets: SecretSettings = Field(
        default_factory=SecretSettings, description="How secrets are looked up that other settings refer to."
    )
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
        if not self.policy.allow_unsandboxed and not self.contained:
            raise broken_rule(
                "policy",
                "host_tools",
                message=f"{self._why_not_contained()}, so these tools give users a shell on this machine; set "
                "runtime.launcher and sandbox.level so, remove the tools, or accept that with "
                "policy.allow_unsandboxed = true",
            )
        return self

    @model_validator(mode="after")
    def _attached_servers_share_their_files(self) -> Self:
        if self.runtime.attach and self.state.volume is None:
            raise broken_rule(
                "runtime",
                "attach",
                message='needs state.url = "volume:/PATH": attached servers keep the files of their sessions '
                "themselves, and another one goes on with them when one is lost",
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
        # Who is trusted may do more in the node's name than run commands: no launcher contains that.
        suitable = {Profile.ISOLATED, Profile.SANDBOXED} if self.contained else {Profile.ISOLATED}
        if policy.profile not in suitable:
            key, profile = "profile", policy.profile
        elif others := [profile for profile in policy.tenants.values() if profile not in suitable]:
            key, profile = "tenants", others[0]
        else:
            return self
        raise broken_rule("policy", key, message=self._why_not_suitable(profile))

    @property
    def contained(self) -> bool:
        """Whether what a user runs in a runtime of their own stays there."""
        return self.runtime.launcher == "sandbox" and self.sandbox.level is SandboxLevel.STRICT

    def _why_not_contained(self) -> str:
        if self.runtime.launcher == "sandbox":
            return f'the level "{self.sandbox.level}" of the sandbox shares the network of this machine'
        return f'the launcher "{self.runtime.launcher}" has no sandbox'

    def _why_not_suitable(self, profile: Profile) -> str:
        if self.contained:
            return (
                f'"{profile}" hands on what concerns the node, and no sandbox contains that; use another, or accept it '
                "with policy.allow_unsandboxed = true"
            )
        return (
            f'{self._why_not_contained()}, so profiles other than "isolated" give users a shell on this machine; use '
            'runtime.launcher = "sandbox" with level "strict" for "sandboxed", or accept it with '
            "policy.allow_unsandboxed = true"
        )
