"""What needs root, or installs something: venv, pip, useradd, install, chgrp, runuser; and waiting for a node."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from support.outside.world import World, aerodrome_here, parser, refuse


def python3(world: World, arguments: list[str]) -> None:
    """`-m venv`: an environment whose pip is a stand-in as well."""
    if arguments[:2] != ["-m", "venv"]:
        refuse(f"not known: {arguments}")
    options = parser("venv")
    options.add_argument("--copies", action="store_true")
    options.add_argument("directory", type=Path)
    binaries = options.parse_args(arguments[2:]).directory / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    world.executable(binaries / "pip", "pip", str(binaries))


def pip(world: World, arguments: list[str]) -> None:
    """`install` of this project with extras that it has: the environment then has the command of this one."""
    binaries, verb, requirement = arguments
    match = re.fullmatch(r"([^\[\]]+)(?:\[([\w,]+)\])?", requirement)
    assert match is not None
    assert verb == "install"
    project = tomllib.loads((Path(match[1]) / "pyproject.toml").read_text())["project"]
    missing = set((match[2] or "").split(",")) - set(project["optional-dependencies"]) - {""}
    if project["name"] != "aerodrome" or missing:
        refuse(f"{project['name']} has no {missing}")
    (Path(binaries) / "aerodrome").symlink_to(aerodrome_here())


def useradd(world: World, arguments: list[str]) -> None:
    options = parser("useradd")
    options.add_argument("--system", action="store_true", required=True)
    options.add_argument("--home-dir", required=True)
    options.add_argument("--shell", required=True)
    options.add_argument("name")
    world.note("users", options.parse_args(arguments).name)


def install(world: World, arguments: list[str]) -> None:
    """The real one, which only notes whose things are."""
    options = parser("install")
    options.add_argument("-d", action="store_true")
    options.add_argument("-m", required=True)
    options.add_argument("-o", default="root")
    options.add_argument("-g", default="root")
    options.add_argument("paths", nargs="+")
    given = options.parse_args(arguments)
    _own(world, given.paths[-1], given.o, given.g)
    command = ["/usr/bin/install", *(["-d"] if given.d else []), "-m", given.m, *given.paths]
    subprocess.run(command, check=True)


def chgrp(world: World, arguments: list[str]) -> None:
    group, *paths = arguments
    for path in paths:
        if not Path(path).exists():
            refuse(f"{path} is not there")
        _own(world, path, world.state["owners"].get(path, ["root"])[0], group)


def _own(world: World, path: str, owner: str, group: str) -> None:
    for name in {owner, group} - {"root"}:
        world.need("users", name)
    world.state["owners"][path] = [owner, group]


def may(world: World, user: str, path: Path, bit: int) -> bool:
    """Whether the user may read (4), write (2) or enter (1) it, and get to it. What nobody has given away is root's."""
    if not path.is_relative_to(world.root) or path == world.root:
        return True
    owner, group = world.state["owners"].get(str(path), ["root", "root"])
    shift = 6 if owner == user else 3 if group == user else 0
    return (path.stat().st_mode >> shift & bit) == bit and may(world, user, path.parent, 1)


def runuser(world: World, arguments: list[str]) -> int:
    """Run the rest, after a look at whether the user could use the files that it names."""
    flag, user, dashes, *command = arguments
    if (flag, dashes) != ("-u", "--"):
        refuse(f"not known: {arguments}")
    world.need("users", user)
    for word in command:
        _, equals, value = word.rpartition("=")
        path = Path(value)
        if not path.is_absolute() or not path.exists():
            continue
        if not may(world, user, path, 3 if equals else 4):
            refuse(f"{user} may not use {world.inside(value)}")
    return subprocess.run(command).returncode


def curl(world: World, arguments: list[str]) -> int:
    """A request to a node that was started: refused once, as long as it is not ready, and answered then."""
    options = parser("curl")
    options.add_argument("--fail", action="store_true", required=True)
    options.add_argument("--silent", action="store_true")
    options.add_argument("--output")
    options.add_argument("--request", default="GET")
    options.add_argument("--header", action="append")
    options.add_argument("url")
    given = options.parse_args(arguments)
    url = urlsplit(given.url)
    if given.request == "GET" and url.path == "/ready":
        world.need("addresses", url.netloc)
    elif not _is_route(given.request, url.path):
        refuse(f"there is no route {given.request} {url.path}")
    asked = world.state.setdefault("asked", [])
    asked.append(given.url)
    return 0 if asked.count(given.url) > 1 or given.request != "GET" else 22


def _is_route(method: str, path: str) -> bool:
    from aerodrome.http.api import routes_only

    return any(
        re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route), path) and method.lower() in methods
        for route, methods in routes_only().openapi()["paths"].items()
    )


def sleep(world: World, arguments: list[str]) -> None:
    (seconds,) = arguments
    assert float(seconds) <= 5
    world.note("slept", seconds)
