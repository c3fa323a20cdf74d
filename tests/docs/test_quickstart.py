"""What the pages tell the reader to type works, in that order, and prints what they show."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

import pytest

from aerodrome._util.xdg import aerodrome_cache
from support.console_page import Command, File, Shell, parse, shown
from support.node_client import DIRECTORY as NODE_DIRECTORY
from support.node_client import node

__all__ = ["node"]

ROOT = Path(__file__).parents[2]
#: Of a translation the blocks are those of the original (test_translations.py), so it is not run again.
PAGES = ["README.md"] + [
    page.relative_to(ROOT).as_posix()
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if page.parent.name != "zh" and "<!-- test: quickstart" in page.read_text(encoding="utf-8")
]
#: The ports that the pages name, which may be taken on this machine.
PORTS = ("8080", "8081", "4321", "8000")


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def reader_of(home: Path) -> dict[str, str]:
    """The environment of somebody who has installed Aerodrome and done nothing else."""
    kept = ("TERM", "NPM_CONFIG_REGISTRY", "npm_config_registry")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "NO_PROXY": "127.0.0.1",
        # The installed Copilot CLI: 200 MB that need not come anew for each page.
        "AERODROME_CACHE_DIR": str(aerodrome_cache()),
    }


@pytest.mark.cli
@pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl"))), reason="the pages use bash and curl")
@pytest.mark.parametrize("page", PAGES)
def test_the_quick_start_works_as_it_is_written(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    for port, free in ports.items():
        text = text.replace(f":{port}", f":{free}").replace(f"--port {port}", f"--port {free}")
    env = reader_of(tmp_path) | {
        "AERODROME_SERVER__HTTP": f"127.0.0.1:{ports['8080']}",
        "AERODROME_SERVER__GATEWAY": f"127.0.0.1:{ports['4321']}",
    }
    steps = parse(text, "quickstart")
    if any(isinstance(step, File) and step.name.endswith(".mjs") for step in steps):
        request.getfixturevalue("node")
        (tmp_path / "node_modules").symlink_to(NODE_DIRECTORY / "node_modules")
    assert sum(isinstance(step, Command) for step in steps) >= 2
    with Shell(tmp_path, env) as shell:
        for step in steps:
            if isinstance(step, File):
                (tmp_path / step.name).write_text(step.text, encoding="utf-8")
            else:
                shell.play(step)


def test_the_sessions_of_a_page_are_read() -> None:
    page = (
        "```console\n$ before\n```\n<!-- test: quickstart -->\n```console\n$ one \\\n> more\nout\n$ two\n```\n"
        "```sh\nnot run\n```\n<!-- test: quickstart file=a.toml -->\n```toml\nx = 1\n```\n```console\n$ three\n```\n"
    )
    assert parse(page, "quickstart") == [
        Command(6, "one \\\nmore", ["out"]),
        Command(9, "two"),
        File(16, "a.toml", "x = 1\n"),
        Command(19, "three"),
    ]
    assert parse(page, "another") == []


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
    with Shell(tmp_path, reader_of(tmp_path), timeout=10) as shell:
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
