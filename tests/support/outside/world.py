"""What the stand-ins share: where they are, what has been done so far, and how `aerodrome` is run."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from aerodrome._util.xdg import aerodrome_cache

TOOLS = (
    *("az", "chgrp", "curl", "docker", "helm", "install"),
    *("kubectl", "python3", "runuser", "sleep", "systemctl", "useradd"),
)


class Refused(Exception):
    """A stand-in was given what the real tool could not have used."""


class World:
    """One for each call of a stand-in.

    Args:
        root: Where /opt, /etc, /var and /srv of the script are.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._state_file = root / "state.json"
        self.state: dict[str, Any] = (
            json.loads(self._state_file.read_text()) if self._state_file.exists() else {"users": [], "owners": {}}
        )

    def save(self) -> None:
        self._state_file.write_text(json.dumps(self.state))

    def note(self, kind: str, name: str) -> None:
        """Something of this kind is there from now on."""
        self.state.setdefault(kind, []).append(name)

    def need(self, kind: str, name: str) -> None:
        if name not in self.state.get(kind, []):
            refuse(f"there is no {kind} {name!r} yet: {self.state.get(kind, [])}")

    def outside(self, path: str) -> Path:
        """Where a path of the documentation lies."""
        here = str(self.root)
        return Path(path) if path.startswith(here) else self.root / path.lstrip("/")

    def inside(self, path: str) -> str:
        """A path as the documentation has it."""
        return path.removeprefix(str(self.root))

    def aerodrome(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Run the command really, with stores in the root."""
        env = os.environ | {
            "AERODROME_SERVER__DATA_DIR": str(self.root / "data"),
            "AERODROME_CACHE_DIR": str(aerodrome_cache()),
            "AERODROME_STATE__URL": "sqlite",
            "AERODROME_COORDINATION__URL": "sqlite",
        }
        done = subprocess.run([aerodrome_here(), *arguments], env=env | dict(environment or {}))
        if done.returncode:
            refuse(f"aerodrome {' '.join(arguments)} ended with {done.returncode}")

    def executable(self, path: Path, tool: str, *first: str) -> None:
        """A program at this path that is the stand-in for a tool."""
        words = " ".join(
            f"'{word}'" for word in (sys.executable, "-m", "support.outside", str(self.root), tool, *first)
        )
        path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        path.chmod(0o755)


def tools(root: Path) -> Path:
    """Write the stand-ins; returns the directory to put on the PATH."""
    directory = root / "tools"
    directory.mkdir()
    world = World(root)
    for tool in TOOLS:
        world.executable(directory / tool, tool)
    return directory


def script_in(root: Path, text: str) -> str:
    """A script with its absolute paths in the root."""
    return re.sub(r"(?<![\w./:-])/(opt|etc|var|srv)(?=/)", rf"{root}/\1", text)


def aerodrome_here() -> str:
    return str(Path(sys.executable).with_name("aerodrome"))


def refuse(why: str) -> NoReturn:
    raise Refused(why)


def parser(tool: str) -> argparse.ArgumentParser:
    """Ends the program with 2 for what it does not know."""
    return argparse.ArgumentParser(tool, allow_abbrev=False, add_help=False)
