"""What the pages have one type in a clone, run by `bash -e` in a copy of it.

The copy is set up: its `.venv/bin` are the stand-ins of `support.outside.clone`. `make` is the real one, and so are the
programs that write pages, which must write what is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.console_page import ROOT, pages, scripts
from support.outside.clone import environment_in
from support.outside.world import World
from support.reader import reader_of

pytestmark = [pytest.mark.cli, pytest.mark.skipif(shutil.which("make") is None, reason="the pages use make")]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    directory = tmp_path / "clone"
    directory.mkdir()
    left_out = {".git", ".venv", "build", "dist", "docs"}
    for entry in ROOT.iterdir():
        if entry.name not in left_out:
            (directory / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "docs", directory / "docs")
    environment_in(World(tmp_path), directory)
    return directory


@pytest.mark.parametrize("page", pages("clone"))
def test_what_is_typed_in_a_clone_works(page: str, clone: Path, tmp_path: Path) -> None:
    found = scripts((ROOT / page).read_text(encoding="utf-8"), "clone")
    assert found
    reader = reader_of(tmp_path)
    env = reader | {
        "PATH": os.pathsep.join([str(clone / ".venv" / "bin"), reader["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")]),
    }
    if any("export PATH" in script.text for script in found):
        # This is what puts the command on the path.
        env["PATH"] = reader["PATH"]
    for script in found:
        said = subprocess.run(
            ["bash", "-e", "-u", "-o", "pipefail"],
            input=f"{script.text}command -v aerodrome\n",
            cwd=clone,
            env=env,
            capture_output=True,
            text=True,
        )
        assert said.returncode == 0, f"line {script.line}: {said.stdout}{said.stderr}"
        if "export PATH" in script.text:
            assert said.stdout.splitlines()[-1] == str(clone / ".venv" / "bin" / "aerodrome")
    for written in (clone / "docs").rglob("*"):
        if written.is_file():
            assert written.read_bytes() == (ROOT / written.relative_to(clone)).read_bytes(), written
