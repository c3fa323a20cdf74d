"""`aerodrome init`."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from unittest.mock import Mock

import pytest

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


def test_a_disk_that_is_full_leaves_nothing_in_the_way(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr("aerodrome.cli.init.template", Mock(side_effect=full))
        result = run("init")
    assert (result.code, result.err) == (1, "error: aerodrome.toml can not be written: No space left on device\n")
    assert run("init").code == 0
