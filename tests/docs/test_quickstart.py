"""What the pages tell the reader to type works, in that order, and prints what they show."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from support.console_page import ROOT, Command, File, Script, Shell, pages, parse, scripts, shown
from support.node_client import DIRECTORY as NODE_DIRECTORY
from support.node_client import node
from support.ports import free_port
from support.reader import reader_of

__all__ = ["node"]

#: The ports that the pages name, which may be taken on this machine.
PORTS = ("8080", "8081", "4321", "8000")


@pytest.mark.cli
@pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl"))), reason="the pages use bash and curl")
@pytest.mark.parametrize("page", pages("quickstart"))
def test_the_quick_start_works_as_it_is_written(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    ports = {port: str(free_port()) for port in PORTS}
    # All at once: a port that is free may begin with another that the page names.
    text = re.sub(rf"(?<=:|(?<=--port) )({'|'.join(PORTS)})\b", lambda named: ports[named[0]], text)
    env = reader_of(tmp_path) | {
        "AERODROME_SERVER__HTTP": f"127.0.0.1:{ports['8080']}",
        "AERODROME_SERVER__GATEWAY": f"127.0.0.1:{ports['4321']}",
    }
    steps = parse(text, "quickstart")
    if any(isinstance(step, File) and step.name.endswith(".mjs") for step in steps):
        request.getfixturevalue("node")
        (tmp_path / "node_modules").symlink_to(NODE_DIRECTORY / "node_modules")
    assert any(isinstance(step, Command) for step in steps)
    with Shell(tmp_path, env) as shell:
        for step in steps:
            if isinstance(step, File):
                (tmp_path / step.name).write_text(step.text, encoding="utf-8")
            else:
                shell.play(step)


def test_the_sessions_of_a_page_are_read() -> None:
    page = (
        "```console\n$ before\n```\n<!-- test: quickstart -->\n```console\n$ one \\\n> more\nout\n$ two\n```\n"
        "<!-- test: another -->\n```sh\na\n\nb\n```\n```console\n$ elsewhere\n```\n"
        "<!-- test: quickstart file=a.toml -->\n```toml\nx = 1\n```\n"
        "<!-- not run: no need -->\n\n```console\n$ left out\n```\n```console\n$ three\n```\n"
    )
    assert parse(page, "quickstart") == [
        Command(6, "one \\\nmore", ["out"]),
        Command(9, "two"),
        File(22, "a.toml", "x = 1\n"),
        Command(30, "three"),
    ]
    assert parse(page, "another") == [Command(18, "elsewhere")]
    assert scripts(page, "another") == [Script(13, "a\n\nb\n")]
    assert scripts(page, "nowhere") == []
    assert parse(page, "nowhere") == []


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        (["a"], ["a"], True),
        (["a"], ["a", "b"], False),
        ([], ["a"], False),
        (["{...}"], ['{"x": [1]}'], True),
        (["{...}"], ["x"], False),
        (["a", "...", "z"], ["a", "b", "c", "z"], True),
        (["a", "...", "z"], ["a", "z  "], True),
        (["a", "...", "z"], ["a", "b"], False),
    ],
)
def test_what_is_printed_is_held_against_what_is_shown(expected: list[str], printed: list[str], same: bool) -> None:
    assert shown(expected, printed) is same


def test_a_command_that_fails_or_says_something_else_is_told(tmp_path: Path) -> None:
    with Shell(tmp_path, reader_of(tmp_path)) as shell:
        shell.play(Command(1, "NAME=ada"))
        shell.play(Command(2, "echo $NAME", ["ada"]))
        shell.play(Command(3, "printf 'no line end'", ["no line end"]))
        with pytest.raises(AssertionError, match=r"line 4: .* ended with 3"):
            shell.play(Command(4, "(exit 3)"))
        with pytest.raises(AssertionError, match=r"line 5: .* printed"):
            shell.play(Command(5, "echo bob", ["ada"]))
        shell.play(Command(6, "cat &", []))
        with pytest.raises(AssertionError, match=r"line 7: .* ended"):
            shell.play(Command(7, "echo no &", ["yes"]))
