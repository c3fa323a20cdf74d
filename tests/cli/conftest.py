"""Running the command line in this process, in an empty directory, with a cache and data of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog

from aerodrome.cli.main import main
from support.command_line import Result, Run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for name in list(os.environ):
        if name.startswith(("AERODROME_", "COPILOT_", "NPM_CONFIG_", "npm_config_")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))

    def run_(*arguments: str | Path) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        # What it has set up writes to the standard error of this test.
        structlog.reset_defaults()
        out, err = capfd.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, out, err)

    return run_
