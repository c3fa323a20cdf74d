"""How runtimes are started here, and one started for a look."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from aerodrome._util.xdg import runtime_packages
from aerodrome.app.options import pool_options
from aerodrome.config.settings import Settings
from aerodrome.model import RuntimeKey
from aerodrome.runtime.binary import resolve
from aerodrome.runtime.homes import Homes
from aerodrome.runtime.launchers.process import ProcessLauncher
from aerodrome.runtime.pool import RuntimePool


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
        pool = RuntimePool(replace(pool_options(settings, binary.path, homes.path), warm=0, max_warm=0), launcher())
        await pool.start()
        try:
            await pool.reserve(RuntimeKey("aerodrome", "doctor"))
            return time.monotonic() - began
        finally:
            await pool.aclose()


def launcher() -> ProcessLauncher:
    # One unpacked copy of the CLI for all runtimes of this user; else 235 MB each (docs/facts.md, "Starting").
    return ProcessLauncher(runtime_packages())
