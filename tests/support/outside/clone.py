"""`.venv/bin` of a clone: what takes long is looked at and not done.

Of tests it is seen that there are any; of `aerodrome demo` and `aerodrome bench`, and of the modules and scripts that
the Makefile starts, whether they are there and take their arguments. Programs that write pages are run.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from support.outside.world import World, aerodrome_here, refuse

#: Of the command; the others are run.
LONG = ("demo", "bench")


def environment_in(world: World, clone: Path) -> None:
    """Make the `.venv` of a clone that is set up."""
    binaries = clone / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for tool, name in (("venv_python", "python"), ("pytest", "pytest"), ("lint_imports", "lint-imports")):
        world.executable(binaries / name, tool)
    world.executable(binaries / "aerodrome", "aerodrome")
    (clone / ".venv" / ".ready").touch()


def venv_python(world: World, arguments: list[str]) -> int:
    if arguments[0] != "-m":
        return _script(Path(arguments[0]), arguments)
    module, rest = arguments[1], arguments[2:]
    if module == "aerodrome":
        return aerodrome(world, rest)
    if module == "pytest":
        pytest(world, rest)
        return 0
    if importlib.util.find_spec(module) is None:
        refuse(f"there is no module {module}")
    if module == "support.fleet_chaos":
        _arguments_of_chaos(rest)
    return subprocess.run([sys.executable, *arguments]).returncode if module.startswith("aerodrome.") else 0


def _script(path: Path, arguments: list[str]) -> int:
    if not path.is_file():
        refuse(f"{path} is not there")
    if path.name == "release.py":
        return 0
    return subprocess.run([sys.executable, *arguments]).returncode


def _arguments_of_chaos(arguments: list[str]) -> None:
    from support.fleet_chaos import options

    sys.argv = ["chaos", *arguments]
    options.arguments()


def aerodrome(world: World, arguments: list[str]) -> int:
    if arguments[0] not in LONG:
        return subprocess.run([aerodrome_here(), *arguments]).returncode
    import typer.core
    import typer.main

    from aerodrome.cli.main import app

    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    group.commands[arguments[0]].make_context(arguments[0], arguments[1:]).close()
    return 0


def pytest(world: World, arguments: list[str]) -> None:
    """Whether any test is meant: where they are, and with which words in their names."""
    paths = [Path(word) for word in arguments if word.startswith("tests")]
    words = arguments[arguments.index("-k") + 1] if "-k" in arguments else ""
    for path in paths:
        files = [path] if path.is_file() else path.rglob("test_*.py")
        if not any(re.search(rf"def test_\w*{words}", file.read_text()) for file in files):
            refuse(f"no test {words!r} in {path}")


def lint_imports(world: World, arguments: list[str]) -> int:
    return 0
