"""What is printed was written by anybody: a terminal must not obey it, and every encoding has to bear it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aerodrome.app.stores import open_stores
from aerodrome.cli import console
from aerodrome.config import load_settings
from aerodrome.model import SessionKey, SessionRow
from support.command_line import Run

#: Sets the terminal's title, clears it, goes back to the begin of the line, turns the direction about.
HOSTILE = "a\x1b]0;mine\x07 \x9b2J \r\n\u202e \x7f b"
SPELT = r"a\x1b]0;mine\x07 \x9b2J \r\n\u202e \x7f b"


def test_a_table_spells_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(("TITLE", "USER"), [(HOSTILE, "alice")])
    assert capsys.readouterr().out.split("\n")[1] == f"{SPELT}   alice"


def test_messages_keep_their_lines_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    for print_it in (console.say, console.note, console.complain):
        print_it("one\ntwo\x1b[2J 中文")
        printed = "".join(capsys.readouterr())
        assert printed.endswith("one\ntwo\\x1b[2J 中文\n")


def test_json_says_the_same_to_programs_and_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"title": HOSTILE + " half \ud800, 中文, 🙂"}
    console.print_json(value)
    printed = capsys.readouterr().out
    assert json.loads(printed) == value
    assert "中文" in printed
    assert not set(printed) & set("\x1b\x07\x9b\x7f\r\u202e\ud800")


def test_a_title_is_listed_whatever_it_is_and_whatever_the_encoding(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "t.toml"
    config.write_text(f'[server]\ndata_dir = "{tmp_path / "data"}"\n')

    async def fill() -> None:
        async with open_stores(load_settings(config, resolve_secrets=False)) as stores:
            await stores.directory.insert(SessionRow(SessionKey("acme", "s"), "alice", title=f"{HOSTILE} 中文 🙂"))

    asyncio.run(fill())
    assert f"{SPELT} 中文 🙂" in run("sessions", "ls", "-c", config).out
    for more in ([], ["--json"]):
        listed = subprocess.run(
            [sys.executable, "-m", "aerodrome", "sessions", "ls", "-c", str(config), *more],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            timeout=60,
        )
        assert (listed.returncode, listed.stderr) == (0, b"")
        assert rb"\u4e2d\u6587" in listed.stdout
