"""The sandbox of this node's runtimes, from the settings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aerodrome.config.provider_settings import ProviderSettings
from aerodrome.config.sandbox_settings import SandboxLevel
from aerodrome.config.settings import Settings
from aerodrome.runtime.launchers.sandbox.bubblewrap import SandboxLimits
from aerodrome.runtime.launchers.sandbox.egress import GITHUB, Egress, Network, Target, target, target_of
from aerodrome.runtime.launchers.sandbox.host import find_bubblewrap
from aerodrome.runtime.launchers.sandbox.launcher import SandboxOptions
from aerodrome.runtime.launchers.sandbox.proxy import CONNECTIONS
from aerodrome.runtime.workspaces import Workspaces


def sandbox_options(settings: Settings, packages: Path) -> SandboxOptions:
    """Raises `RuntimeUnavailable` when there is no bubblewrap."""
    sandbox = settings.sandbox
    return SandboxOptions(
        bubblewrap=find_bubblewrap(sandbox.bubblewrap),
        packages=packages,
        limits=SandboxLimits(
            memory=sandbox.memory,
            processes=sandbox.processes,
            file_size=sandbox.file_size,
            tmp_size=sandbox.tmp_size,
            workspace_quota=sandbox.workspace_quota,
        ),
        own_network=sandbox.level is SandboxLevel.STRICT,
        egress=Egress(Network(sandbox.network), frozenset(target(text) for text in sandbox.allow)),
        proxy=target_of(sandbox.proxy) if sandbox.proxy is not None else None,
        read_only=tuple(sandbox.read_only),
        # One for the model's answer and one for what a tool does, of each session.
        connections=max(CONNECTIONS, 2 * settings.runtime.max_sessions),
    )


def workspaces(settings: Settings) -> Workspaces:
    return Workspaces(settings.sandbox.workspaces or settings.server.data_dir / "workspaces")


def model_targets(provider: ProviderSettings) -> Iterable[Target]:
    """Where the sessions of a tenant with this provider connect to."""
    if provider.base_url is None:
        return [target(text) for text in GITHUB]
    return [target_of(provider.base_url)]
