"""Sandboxes under the units: refused by the units alone, which says what helps, and made with what they ship for it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aerodrome._util.xdg import aerodrome_cache, runtime_packages
from aerodrome.demo.model import ModelServer
from support.chart import ROOT
from support.confined import ACCOUNT, HEADER, merged
from support.contained import takes_a_turn, unpack
from support.outside.systemd import unit
from support.sandbox import allowed
from support.server import new_key, write_config

__all__ = ["allowed"]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts are for root"),
    pytest.mark.skipif(
        not HEADER.is_file() or platform.machine() != "x86_64", reason="the numbers of system calls are not known here"
    ),
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here"),
    pytest.mark.usefixtures("allowed"),
]

SYSTEMD = ROOT / "deploy" / "systemd"
UNITS = ["aerodrome.service", "aerodrome@.service"]
DROP_IN = unit(SYSTEMD / "sandbox.conf")["Service"]
CHECK = """
import asyncio, sys
from pathlib import Path
from aerodrome.errors import RuntimeUnavailable
from aerodrome.runtime.launchers.sandbox.host import find_bubblewrap
from aerodrome.runtime.launchers.sandbox.launcher import SandboxLauncher, SandboxOptions
from aerodrome.runtime.workspaces import Workspaces
directory = Path(sys.argv[1])
options = SandboxOptions(find_bubblewrap(), directory / "packages")
launcher = SandboxLauncher(options, Workspaces(directory / "workspaces"), targets=lambda owner: [])
try:
    asyncio.run(launcher.check(directory / "homes"))
except RuntimeUnavailable as error:
    print(error.detail)
else:
    print("made")
"""


def confined(settings: dict[str, list[str]], directory: Path, *program: str | Path) -> list[str]:
    """The command that runs a program so, with a directory of its own."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, ACCOUNT, ACCOUNT)
    readable = [Path(sys.base_prefix), Path(sys.prefix), ROOT, aerodrome_cache(), directory]
    given = [json.dumps(settings), json.dumps([str(path) for path in readable])]
    script = ROOT / "tests" / "support" / "confined.py"
    return ["unshare", "--mount", sys.executable, str(script), *given, *map(str, program)]


def check(settings: dict[str, list[str]], directory: Path) -> str:
    """What comes of a sandbox there."""
    command = confined(settings, directory, sys.executable, "-c", CHECK, directory)
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", UNITS)
def test_a_sandbox_needs_the_drop_in(name: str, tmp_path: Path) -> None:
    service = unit(SYSTEMD / name)["Service"]
    assert check(merged(service, DROP_IN), tmp_path) == "made"
    assert "does not allow the sandbox" in check(service, tmp_path)


@pytest.mark.parametrize("setting", [*DROP_IN, "sethostname"])
def test_the_drop_in_allows_nothing_that_is_not_needed(setting: str, tmp_path: Path) -> None:
    service = unit(SYSTEMD / "aerodrome.service")["Service"]
    without: dict[str, Any] = {
        key: [value.replace(" sethostname", "") if setting == "sethostname" else value for value in values]
        for key, values in DROP_IN.items()
        if key != setting
    }
    assert without != DROP_IN
    assert "does not allow the sandbox" in check(merged(service, without), tmp_path)


@pytest.mark.cli
async def test_a_node_serves_turns_in_sandboxes_with_it(tmp_path: Path) -> None:
    directory = tmp_path / "node"
    directory.mkdir()
    unpack()
    # As a node of this account would have left it.
    runtime_packages().chmod(0o755)
    settings = merged(unit(SYSTEMD / "aerodrome.service")["Service"], DROP_IN)
    async with ModelServer() as model:
        config = write_config(directory, model.base_url, '[runtime]\nlauncher = "sandbox"\n', ttl="15s")
        key = await new_key(config)
        command = confined(settings, directory, sys.executable, "-m", "aerodrome", "serve", "--config", config)
        await takes_a_turn(command, tmp_path / "log", key, HOME=str(directory))
