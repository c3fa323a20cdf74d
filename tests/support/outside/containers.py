"""`docker`, over the Dockerfile and compose files; and `az`, over the templates of Azure."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import yaml

from support.outside.world import World, parser, refuse


def docker(world: World, arguments: list[str]) -> None:
    verb, *rest = arguments
    {"build": _build, "run": _run, "compose": _compose}[verb](world, rest)


def _build(world: World, arguments: list[str]) -> None:
    """What the image is made of is in the context."""
    options = parser("docker build")
    options.add_argument("--file", type=Path, required=True)
    options.add_argument("--tag", required=True)
    options.add_argument("context", type=Path)
    given = options.parse_args(arguments)
    _sources(given.file, given.context)
    world.note("images", given.tag)
    world.state["dockerfile"] = str(given.file.resolve())


def _sources(dockerfile: Path, context: Path) -> None:
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.read_text(), re.MULTILINE):
        for source in sources.split():
            if not (context / source).exists():
                refuse(f"{source} is not in {context}")


def _run(world: World, arguments: list[str]) -> None:
    """The entry point with these arguments; of other programs `cat`, of a file that the image has."""
    options = parser("docker run")
    options.add_argument("--rm", action="store_true", required=True)
    options.add_argument("--entrypoint")
    options.add_argument("image")
    options.add_argument("arguments", nargs=argparse.REMAINDER)
    given = options.parse_args(arguments)
    world.need("images", given.image)
    text = Path(world.state["dockerfile"]).read_text()
    if given.entrypoint is None:
        (entry,) = re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)
        assert json.loads(entry)[-1] == "aerodrome"
        world.aerodrome(given.arguments)
        return
    (path,) = map(world.inside, given.arguments)
    if given.entrypoint != "cat" or f"--output {path}" not in text:
        refuse(f"the image has no {path}")
    print("{}")


def _compose(world: World, arguments: list[str]) -> None:
    options = parser("docker compose")
    options.add_argument("--file", type=Path, required=True)
    verbs = options.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", allow_abbrev=False)
    for flag in ("--build", "--detach", "--wait", "--no-deps"):
        up.add_argument(flag, action="store_true")
    up.add_argument("services", nargs="*")
    verbs.add_parser("build", allow_abbrev=False).add_argument("services", nargs="*")
    run = verbs.add_parser("run", allow_abbrev=False)
    run.add_argument("--rm", action="store_true")
    run.add_argument("services", nargs=1)
    within = verbs.add_parser("exec", allow_abbrev=False)
    within.add_argument("services", nargs=1)
    within.add_argument("command", nargs=argparse.REMAINDER)
    given = options.parse_args(arguments)
    services = _services(given.file)
    for service in given.services:
        if service not in services:
            refuse(f"there is no service {service}")
    match given.verb:
        case "up":
            for service in given.services or services:
                world.note("running", service)
        case "run":
            # What the service does, with the settings that are mounted into it.
            world.aerodrome(services[given.services[0]]["command"])
        case "exec":
            world.need("running", given.services[0])
            in_container(world, given.command)


def _services(file: Path) -> dict[str, Any]:
    """Of a compose file that compose takes; what it mounts and builds from is there."""
    from compose_spec import PyCompose

    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", file.read_text())
    parsed = yaml.safe_load(text)
    PyCompose.from_json(json.dumps(parsed))
    for entry in (*parsed["configs"].values(), *parsed["secrets"].values()):
        if not (file.parent / entry["file"]).is_file():
            refuse(f"{entry['file']} is not there")
    services: dict[str, Any] = parsed["services"]
    for build in (service["build"] for service in services.values() if "build" in service):
        context = file.parent / build["context"]
        _sources(context / build["dockerfile"], context)
    return services


def in_container(world: World, command: list[str]) -> None:
    if command[0] != "aerodrome":
        refuse(f"{command[0]} is not on the path of the image")
    world.aerodrome(command[1:])


def az(world: World, arguments: list[str]) -> None:
    """The commands of the page, each with the options that it has there; `--resource-group` is one that was made."""
    words = [arguments.pop(0) for _ in range(len(arguments)) if arguments and not arguments[0].startswith("-")]
    command = " ".join(words)
    options = parser(f"az {command}")
    wanted = {
        "group create": ["--name", "--location"],
        "deployment group create": ["--resource-group", "--template-file", "--parameters"],
        "containerapp delete": ["--resource-group", "--name", "--yes"],
        "container create": ["--resource-group", "--file"],
        "container delete": ["--resource-group", "--name", "--yes"],
    }
    for option in wanted[command]:
        action = {"--yes": "store_true", "--parameters": "append"}.get(option, "store")
        options.add_argument(option, required=True, action=action)
    given = options.parse_args(arguments)
    if command == "group create":
        world.note("groups", given.name)
        return
    world.need("groups", given.resource_group)
    match command:
        case "deployment group create":
            _deploy(world, Path(given.template_file), given.parameters)
        case "containerapp delete":
            world.need("apps", given.name)
            world.state["apps"].remove(given.name)
        case "container create":
            group = yaml.safe_load(Path(given.file).read_text())
            world.note("containers", group["name"])
        case "container delete":
            world.need("containers", given.name)


def _deploy(world: World, template: Path, parameters: list[str]) -> None:
    """Apps are made as the template names them: `'aerodrome-${release}-${number}'` for each of `nodes`."""
    from support import bicep

    root = bicep.parse(template)
    given: dict[str, Any] = {"release": {"value": "a"}}
    for each in parameters:
        if each.startswith("@"):
            given |= json.loads(Path(each[1:]).read_text())["parameters"]
        else:
            name, value = each.split("=", 1)
            given[name] = {"value": value}
    unknown = set(given) - bicep.declared(root, "param")
    if unknown:
        refuse(f"{template} has no {unknown}")
    (pattern,) = re.findall(r"range\(1, nodes\): '(.+?)'", bicep.text(root))
    for number in range(1, given["nodes"]["value"] + 1):
        name = pattern.replace("${number}", str(number)).replace("${release}", given["release"]["value"])
        if "image" in dict(each.split("=", 1) for each in parameters if "=" in each) and name in world.state["apps"]:
            refuse(f"{name} would be updated in its place")
        world.note("apps", name)
