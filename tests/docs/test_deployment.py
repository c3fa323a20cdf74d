"""The scripts of the pages about deployment are run, by `bash -e`, with stand-ins for what is not here.

No container, cluster, cloud or service manager takes part. `support.outside` says what takes their place: programs that
check what they are given and note what they were told to make. The other commands are the real ones, in a copy of
`deploy/` and with /opt, /etc, /var and /srv in a directory of the test. `aerodrome` itself is run: installed CLI, keys,
migration, and the start of each systemd unit's command.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from aerodrome._util.xdg import aerodrome_cache
from support.console_page import ROOT, pages, scripts
from support.outside.world import script_in, tools
from support.reader import reader_of

pytestmark = [pytest.mark.cli, pytest.mark.timeout(300)]


class Script:
    """Runs scripts in a clone."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.clone = directory / "clone"
        self.root.mkdir()
        shutil.copytree(ROOT / "deploy", self.clone / "deploy", ignore=shutil.ignore_patterns("secrets"))
        for entry in ("LICENSE", "README.md", "docs", "pyproject.toml", "scripts", "src"):
            (self.clone / entry).symlink_to(ROOT / entry)
        # What a system has.
        for made in ("etc/systemd/system", "opt", "var/cache/aerodrome", "var/lib"):
            (self.root / made).mkdir(parents=True)
        # The Copilot CLI, which need not come anew.
        for cached in aerodrome_cache().iterdir():
            (self.root / "var" / "cache" / "aerodrome" / cached.name).symlink_to(cached)
        environment = reader_of(directory)
        self._env = environment | {
            "PATH": f"{tools(self.root)}{os.pathsep}{environment['PATH']}",
            "PYTHONPATH": str(ROOT / "tests"),
            "ADMIN_KEY": "a-key",
            "ADDRESS": "10.0.0.7",
        }

    def configure(self) -> None:
        """What the reader is asked to write, with a store that only a secret names."""
        etc = self.root / "etc" / "aerodrome"
        (etc / "aerodrome.toml").write_text(
            '[provider]\ntype = "openai"\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "gpt-4.1"\n'
            'api_key = "env:MODEL_KEY"\n[state]\nurl = "env:STATE_URL"\n'
        )
        (etc / "secrets.env").write_text("MODEL_KEY='a&b c'\nSTATE_URL='sqlite'\n")

    def keys_of_the_service(self) -> int:
        """In the data directory that its unit names."""
        with contextlib.closing(sqlite3.connect(self.root / "var" / "lib" / "aerodrome" / "state.sqlite3")) as state:
            return int(state.execute("SELECT count(*) FROM api_key").fetchone()[0])

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-e", "-u", "-o", "pipefail"],
            input=script_in(self.root, text),
            cwd=self.clone,
            env=self._env,
            umask=0o022,
            capture_output=True,
            text=True,
        )


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


@pytest.mark.parametrize("page", pages("deployment"))
def test_the_scripts_of_a_page_work_in_this_order(page: str, script: Script) -> None:
    found = scripts((ROOT / page).read_text(encoding="utf-8"), "deployment")
    assert found
    for each in found:
        done = script.run(each.text)
        assert done.returncode == 0, f"line {each.line}: {done.stdout}{done.stderr}"
        if "aerodrome init" in each.text:
            script.configure()
        if "runuser" in each.text and "keys create" in each.text:
            assert script.keys_of_the_service() == 1
