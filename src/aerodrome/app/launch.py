"""How runtimes are started here, and one started for a look."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from aerodrome._util.xdg import runtime_packages
from aerodrome.app.options import pool_options
from aerodrome.app.sandbox import model_targets, sandbox_options, workspaces
from aerodrome.config.settings import Settings
from aerodrome.model import RuntimeKey
from aerodrome.runtime.binary import resolve, unpack
from aerodrome.runtime.homes import Homes
from aerodrome.runtime.launchers.process import ProcessLauncher
from aerodrome.runtime.launchers.sandbox.launcher import SandboxLauncher
from aerodrome.runtime.pool import RuntimePool
from aerodrome.runtime.ports import Launcher


async def try_runtime(settings: Settings) -> float:
    """Start one runtime, let it take a turn against a model of our own, stop it; returns the seconds to ready.

    Raises:
        RuntimeUnavailable: With the reason.
    """
    binary = await asyncio.to_thread(
        resolve, settings.runtime.command, allow_version_mismatch=settings.runtime.allow_version_mismatch
    )
    began = time.monotonic()
    with Homes(settings.server.data_dir / "runtimes") as homes:
        pool = RuntimePool(
            replace(pool_options(settings, binary.path, homes.path), warm=0, max_warm=0),
            await checked_launcher(settings, binary.path, homes.path),
        )
        await pool.start()
        try:
            await pool.reserve(RuntimeKey("aerodrome", "doctor"))
            return time.monotonic() - began
        finally:
            await pool.aclose()


async def check_sandbox(settings: Settings) -> None:
    """Whether runtimes can be sandboxed here, whatever launcher is set. Raises `RuntimeUnavailable`."""
    with tempfile.TemporaryDirectory(prefix="aerodrome-") as homes:
        await _sandbox_launcher(settings, runtime_packages(), lambda owner: None).check(Path(homes))


async def checked_launcher(
    settings: Settings, command: Path, homes: Path, released: Callable[[RuntimeKey], None] = lambda owner: None
) -> Launcher:
    """`launcher`, once it has been seen that this machine lets it do what it is to do.

    Args:
        command: The Copilot CLI.
        homes: A directory in which a home can be made.

    Raises:
        RuntimeUnavailable: It does not, and how to mend that.
    """
    chosen = launcher(settings, released)
    if isinstance(chosen, SandboxLauncher):
        await asyncio.to_thread(unpack, command)
        await chosen.check(homes)
    return chosen


def launcher(settings: Settings, released: Callable[[RuntimeKey], None] = lambda owner: None) -> Launcher:
    """As `runtime.launcher` says.

    Args:
        released: Called when a runtime has let go of its user's workspace.

    Raises:
        RuntimeUnavailable: This machine does not allow the sandbox.
    """
    # One unpacked copy of the CLI for all runtimes of this user; else 235 MB each (docs/facts.md, "Starting").
    packages = runtime_packages()
    if settings.runtime.launcher == "process":
        return ProcessLauncher(packages)
    return _sandbox_launcher(settings, packages, released)


def _sandbox_launcher(settings: Settings, packages: Path, released: Callable[[RuntimeKey], None]) -> SandboxLauncher:
    return SandboxLauncher(
        sandbox_options(settings, packages),
        workspaces(settings),
        targets=lambda owner: model_targets(settings.provider.of(owner.tenant)),
        released=released,
    )
