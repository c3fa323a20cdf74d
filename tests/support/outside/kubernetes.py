"""`helm`, which renders the chart by Helm's own library, and `kubectl`, over what was rendered."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from support.chart import CHART, Manifest, over, render
from support.outside.containers import in_container
from support.outside.world import World, parser, refuse


def helm(world: World, arguments: list[str]) -> None:
    """`upgrade --install`: the values fit the schema, and what the nodes read is in secrets that were made."""
    verb, *rest = arguments
    options = parser(f"helm {verb}")
    options.add_argument("--namespace", required=True)
    options.add_argument("release")
    if verb == "test":
        given = options.parse_args(rest)
        tests = [each for each in _manifests(world) if "helm.sh/hook" in each["metadata"].get("annotations", {})]
        if not any(each["metadata"]["annotations"]["helm.sh/hook"] == "test" for each in tests):
            refuse("the chart has no test")
        world.need("releases", given.release)
        return
    assert verb == "upgrade"
    options.add_argument("chart", type=Path)
    options.add_argument("--install", action="store_true", required=True)
    options.add_argument("--values", type=Path, action="append", default=[])
    options.add_argument("--set", action="append", default=[])
    options.add_argument("--wait", action="store_true")
    given = options.parse_args(rest)
    world.need("namespaces", given.namespace)
    if not (given.chart / "Chart.yaml").is_file():
        refuse(f"{given.chart} is no chart")
    assert given.chart.resolve() == CHART.resolve() or given.chart.name == CHART.name
    values = over({}, *(yaml.safe_load(file.read_text()) for file in given.values), *map(_set, given.set))
    world.state["manifests"] = render(values, name=given.release, namespace=given.namespace)
    world.note("releases", given.release)
    _references_lead_somewhere(world, values)


def _set(entry: str) -> dict[str, Any]:
    path, value = entry.split("=", 1)
    nested: Any = value.strip("{}").split(",") if value.startswith("{") else value
    for key in reversed(path.split(".")):
        nested = {key: nested}
    return dict(nested)


def _references_lead_somewhere(world: World, values: dict[str, Any]) -> None:
    """Each `file:` of the settings is a key of a secret that is mounted; networks let nodes go where it leads."""
    made: dict[str, str] = {}
    for name in values["secretFiles"]["existing"]:
        world.need("secrets", name)
        made |= world.state["secrets"][name]
    for key in re.findall(r"file:/etc/aerodrome/secrets/([\w-]+)", _settings_of_nodes(world)):
        if key not in made:
            refuse(f"no secret has the key {key}")
    for policy in _manifests(world):
        if "Egress" not in policy.get("spec", {}).get("policyTypes", []):
            continue
        ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", [])}
        for url in map(urlsplit, made.values()):
            port = url.port or {"postgresql": 5432, "redis": 6379, "rediss": 6379}.get(url.scheme)
            if port is not None and port not in ports:
                refuse(f"the policy {policy['metadata']['name']} lets no node get to port {port}")


def _settings_of_nodes(world: World) -> str:
    """The one of the nodes; hooks have copies."""
    files = [each["data"] for each in _manifests(world) if each["kind"] == "ConfigMap"]
    (text,) = {data["aerodrome.toml"] for data in files if "aerodrome.toml" in data}
    return str(text)


def _manifests(world: World) -> list[Manifest]:
    return list(world.state.get("manifests", []))


def kubectl(world: World, arguments: list[str]) -> None:
    options = parser("kubectl")
    options.add_argument("--namespace")
    verbs = options.add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create", allow_abbrev=False).add_subparsers(dest="kind", required=True)
    create.add_parser("namespace", allow_abbrev=False).add_argument("name")
    secret = create.add_parser("secret", allow_abbrev=False)
    secret.add_argument("type", choices=["generic"])
    secret.add_argument("name")
    secret.add_argument("--from-literal", action="append", default=[])
    job = create.add_parser("job", allow_abbrev=False)
    job.add_argument("--from", dest="source", required=True)
    job.add_argument("name")
    within = verbs.add_parser("exec", allow_abbrev=False)
    within.add_argument("workload")
    within.add_argument("command", nargs=argparse.REMAINDER)
    given = options.parse_args(arguments)
    if given.namespace is not None:
        world.need("namespaces", given.namespace)
    elif (given.verb, getattr(given, "kind", "")) != ("create", "namespace"):
        refuse("in which namespace?")
    if given.verb == "exec":
        _exec(world, given.workload, [word for word in given.command if word != "--"])
    elif given.kind == "namespace":
        world.note("namespaces", given.name)
    elif given.kind == "secret":
        made = world.state.setdefault("secrets", {})
        made[given.name] = dict(literal.split("=", 1) for literal in given.from_literal)
    else:
        _workload(world, given.source)


def _workload(world: World, name: str) -> Manifest:
    """`deploy/NAME` or `cronjob/NAME` of the release."""
    kind, _, name = name.partition("/")
    kinds = {"deploy": "Deployment", "cronjob": "CronJob"}
    found = [each for each in _manifests(world) if (each["kind"], each["metadata"]["name"]) == (kinds[kind], name)]
    return found[0] if found else refuse(f"the release has no {kind} {name}")


def _exec(world: World, workload: str, command: list[str]) -> None:
    """A file that the command names is one that is mounted."""
    pod = _workload(world, workload)["spec"]["template"]["spec"]
    for path in (world.inside(word) for word in command if word.startswith("/")):
        mounts = [each for each in pod["containers"][0]["volumeMounts"] if path.startswith(f"{each['mountPath']}/")]
        volumes = {each["name"] for each in pod["volumes"] if "configMap" in each or "projected" in each}
        if not mounts or mounts[0]["name"] not in volumes or not path.endswith("/aerodrome.toml"):
            refuse(f"{path} is not in the container")
    _write_settings(world, command)
    in_container(world, command)


def _write_settings(world: World, command: list[str]) -> None:
    """The settings of the nodes where the command looks for them, with the secrets beside them."""
    for literals in world.state["secrets"].values():
        for key, value in literals.items():
            file = world.root / "etc" / "aerodrome" / "secrets" / key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(value)
    text = _settings_of_nodes(world).replace("file:/", f"file:{world.root}/")
    for path in (Path(word) for word in command if word.startswith("/")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
