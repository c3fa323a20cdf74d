"""Runtimes for tests: the real Copilot CLI, and scripts that misbehave in its place."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from aerodrome._util.xdg import runtime_packages
from aerodrome.errors import RuntimeUnavailable
from aerodrome.runtime.binary import resolve
from aerodrome.runtime.launchers.process import ProcessLauncher
from aerodrome.runtime.pool import PoolOptions, RuntimePool
from aerodrome.runtime.ports import LaunchSpec
from aerodrome.runtime.supervisor import ManagedRuntime, RuntimeOptions

#: The real CLI without network and keys. Its own provider leads nowhere; sessions bring theirs.
OFFLINE = {
    "COPILOT_OFFLINE": "true",
    "COPILOT_PROVIDER_BASE_URL": "http://127.0.0.1:9/v1",
    "COPILOT_MODEL": "gpt-4.1",
}
TOKEN = "the-connection-token"


@pytest.fixture(scope="session")
def cli() -> Path:
    """The Copilot CLI that Aerodrome would start."""
    try:
        return resolve("auto").path
    except RuntimeUnavailable as error:
        pytest.fail(f"these tests need the Copilot CLI: {error.detail}")


def fake(directory: Path, name: str) -> Path:
    """An executable of a script in `fake_runtimes`."""
    script = Path(__file__).parent / "fake_runtimes" / f"{name}.py"
    path = directory / name
    path.write_text(f"#!{sys.executable} -IS\n{script.read_text()}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def launcher() -> ProcessLauncher:
    # The CLI unpacks itself once, not for each test.
    return ProcessLauncher(runtime_packages())


def launch_spec(directory: Path, command: Path, **changes: Any) -> LaunchSpec:
    spec = LaunchSpec(
        id="rt-1",
        command=command,
        home=directory / "homes" / "rt-1",
        token=TOKEN,
        log_dir=directory / "logs" / "rt-1",
        env=OFFLINE,
    )
    return replace(spec, **changes)


def runtime_options(directory: Path, command: Path, *, misbehaviour: dict[str, Any] | None = None) -> RuntimeOptions:
    return RuntimeOptions(
        command=command,
        homes=directory / "homes",
        logs=directory / "logs",
        env={**OFFLINE, "FAKE": json.dumps(misbehaviour or {})},
        ping_interval=0.2,
        # On a busy machine one that is well may be late; a test of one that hangs says so itself (`hung`).
        ping_timeout=30.0,
    )


@asynccontextmanager
async def running_pool(runtime: RuntimeOptions, **options: Any) -> AsyncIterator[RuntimePool]:
    """A pool without warm runtimes, unless told otherwise; afterwards no process of it may be left."""
    pool = RuntimePool(PoolOptions(runtime=runtime, **{"warm": 0, "replenish_delay": 0.0, **options}), launcher())
    await pool.start()
    try:
        yield pool
    finally:
        await pool.aclose()
    assert processes_at_home(runtime.homes) == []
    assert list(runtime.homes.glob("*")) == []


def processes_at_home(directory: Path) -> list[psutil.Process]:
    """Living processes of runtimes that have their home somewhere in the directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("COPILOT_HOME", "").startswith(f"{directory}/"):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def hold_for_hung(runtime: ManagedRuntime, seconds: float = 2.0) -> None:
    """...when it has not answered a ping for so long. Those that are only slow, on a slow machine, are given longer."""
    runtime._ping_timeout = seconds
    runtime._options = replace(runtime._options, ping_timeout=seconds)


def hang(runtime: ManagedRuntime, ping_timeout: float = 1.0) -> psutil.Process:
    """Stop its process, and have that noticed soon."""
    assert runtime.pid is not None
    process = psutil.Process(runtime.pid)
    process.suspend()
    hold_for_hung(runtime, ping_timeout)
    return process


def has_ended(process: psutil.Process) -> bool:
    """It has, though nobody may have reaped it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
