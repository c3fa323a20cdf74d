"""`systemctl`, over the units in /etc/systemd/system of the root."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from support.outside.machine import may
from support.outside.world import World, parser, refuse

#: As systemd has them for services of the system.
_SPECIFIERS = {"%S": "/var/lib", "%C": "/var/cache", "%l": "host"}


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """Sections of a unit, each setting with all its values."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            section.setdefault(key, []).append(value)
    return found


def systemctl(world: World, arguments: list[str]) -> None:
    options = parser("systemctl")
    options.add_argument("verb", choices=["daemon-reload", "enable", "restart"])
    options.add_argument("units", nargs="*")
    options.add_argument("--now", action="store_true")
    given = options.parse_intermixed_args(arguments)
    units = world.root / "etc" / "systemd" / "system"
    if given.verb == "daemon-reload":
        world.state["loaded"] = [path.name for path in units.iterdir()]
        for added in units.glob("*.d/*.conf"):
            # systemd says nothing of one that is added to no unit.
            if not (units / added.parent.stem).is_file():
                refuse(f"{added.parent.name} is of no unit")
            unit(added)
        return
    for name in given.units:
        full = name if "." in name else f"{name}.service"
        template, instance = re.sub(r"@.*\.", "@.", full), (re.findall(r"@(.*)\.", full) or [""])[0]
        world.need("loaded", template)
        if given.verb == "restart":
            world.need("enabled", full)
            world.state["asked"] = []
        else:
            world.note("enabled", full)
        parsed = unit(units / template)
        if "Service" in parsed:
            # One of several nodes of a template stands for the others.
            first = [each.partition("@")[0] for each in world.state["enabled"]].count(full.partition("@")[0]) == 1
            _start(world, parsed["Service"], instance, really=given.verb == "enable" and given.now and first)
        for required in " ".join(parsed["Unit"].get("Requires", [])).split():
            world.need("loaded", required)


def _start(world: World, service: dict[str, list[str]], instance: str, *, really: bool) -> None:
    """Whether the user may use what the command names; and a start of it, until it is ready, with its environment."""
    (user,), (command,) = service["User"], service["ExecStart"]
    world.need("users", user)
    for setting, parent in (("StateDirectory", "lib"), ("CacheDirectory", "cache")):
        made = world.root / "var" / parent / service[setting][0].replace("%i", instance)
        for path in (made, *made.parents):
            if path.is_relative_to(world.root / "var" / parent / "aerodrome"):
                world.state["owners"][str(path)] = [user, user]
        made.mkdir(parents=True, exist_ok=True)
    env = _environment(world, service, instance)
    words = [str(world.outside(word)) if word.startswith("/") else word for word in command.split()]
    for word in words:
        if word.startswith(str(world.root)) and not may(world, user, Path(word), 4):
            refuse(f"{user} may not read {world.inside(word)}")
    address = env.pop("AERODROME_SERVER__HTTP", None)
    if address is not None:
        world.note("addresses", address)
    if really:
        _until_ready(words, os.environ | env)


def _environment(world: World, service: dict[str, list[str]], instance: str) -> dict[str, str]:
    env: dict[str, str] = {}
    for line in service["Environment"]:
        for entry in line.split():
            for specifier, value in (_SPECIFIERS | {"%i": instance}).items():
                entry = entry.replace(specifier, value)
            name, _, value = entry.partition("=")
            env[name] = str(world.outside(value)) if value.startswith("/") else value
    for each in service["EnvironmentFile"]:
        file = world.outside(each.lstrip("-"))
        if file.stat().st_mode & 0o077:
            refuse(f"others may read {world.inside(str(file))}")
        env |= dict(line.split("=", 1) for line in shlex.split(file.read_text()))
    return env


def _until_ready(words: list[str], env: dict[str, str]) -> None:
    # Any ports: those of the unit may be taken here.
    here = {"AERODROME_SERVER__HTTP": "127.0.0.1:0", "AERODROME_SERVER__GATEWAY": "127.0.0.1:0"}
    process: Any = subprocess.Popen(
        words,
        env=env | here | {"AERODROME_RUNTIME__WARM": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
    if not line.startswith("ready "):
        refuse(f"{' '.join(words)} did not start: {errors}")
