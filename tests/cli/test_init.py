"""`aerodrome init`."""

from __future__ import annotations

import resource
import stat
from pathlib import Path

from aerodrome.config import Settings, load_settings
from support.command_line import Run


def test_it_writes_a_file_that_loads_and_changes_nothing(run: Run) -> None:
    result = run("init")
    assert result.code == 0
    assert result.out.startswith("Wrote aerodrome.toml")
    assert load_settings("aerodrome.toml", env={}) == Settings()
    assert stat.S_IMODE(Path("aerodrome.toml").stat().st_mode) == 0o600


def test_it_replaces_nothing_unless_told_so(run: Run) -> None:
    Path("my.toml").write_text("mine")
    result = run("init", "my.toml")
    assert (result.code, result.err) == (1, "error: my.toml exists; --force replaces it\n")
    assert Path("my.toml").read_text() == "mine"
    assert run("init", "my.toml", "--force").code == 0
    assert load_settings("my.toml", env={}) == Settings()


def test_a_place_that_can_not_be_written_is_told(run: Run) -> None:
    result = run("init", "missing/my.toml")
    assert (result.code, result.err) == (1, "error: missing/my.toml can not be written: No such file or directory\n")


def test_a_disk_that_takes_a_part_only_leaves_nothing_in_the_way(run: Run) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        result = run("init")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (result.code, result.err) == (1, "error: aerodrome.toml can not be written: File too large\n")
    assert run("init").code == 0
