"""The chart's `cliServers`: what it mounts and configures, with a real server and a real node, serves turns."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aerodrome.app.node import Node
from aerodrome.config import load_settings
from aerodrome.demo.model import ModelServer
from attached.test_topology import connected, rows, where
from support.attached import TOKEN, Names, Server, Servers
from support.chart import Manifest, Selected, example, only, pods, render
from support.host import Host, until

pytestmark = pytest.mark.cli

NAME = "air-aerodrome"


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return render(example("cli-servers"))


def pod(manifests: list[Manifest], owner: str) -> Selected:
    (found,) = [each for each in pods(manifests) if each.owner == owner]
    return found


def on_volume(container: dict[str, Any], volume: Path) -> dict[str, Path]:
    """Where the mounts of the shared volume lead: path in the container -> directory here."""
    return {
        mount["mountPath"]: volume / mount.get("subPath", "")
        for mount in container["volumeMounts"]
        if mount["name"] == "sessions"
    }


async def start(manifests: list[Manifest], servers: Servers, volume: Path, **where: Any) -> Server:
    """A server as its pod would run it."""
    spec = pod(manifests, f"Deployment/{NAME}-cli").spec
    for before in spec["initContainers"]:
        command = before["command"]
        for path, directory in on_volume(before, volume).items():
            command = [word.replace(path, str(directory)) for word in command]
        volume.mkdir(exist_ok=True)
        subprocess.run(command, check=True)
    (container,) = spec["containers"]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    ((path, directory),) = on_volume(container, volume).items()
    assert path == f"{env['COPILOT_HOME']}/session-state"
    # `support.attached` starts servers like this.
    assert container["args"][:3] == ["--headless", "--no-auto-update", "--no-auto-login"]
    assert container["args"][3::2] == ["--host", "--port"]
    assert directory.is_dir(), "the kubelet would make it, as root"
    return await servers.start(tenant=str(directory.relative_to(volume)), **where)


@asynccontextmanager
async def node(
    manifests: list[Manifest], directory: Path, volume: Path, model: ModelServer, names: Names, port: int
) -> AsyncIterator[Host]:
    """A node with the settings and the mounts of its pod, but for stores, model and addresses."""
    (container,) = pod(manifests, f"Deployment/{NAME}").spec["containers"]
    secrets = directory / "secrets"
    secrets.mkdir(parents=True)
    given = {"tables-url": "sqlite", "coordination-url": "sqlite", "provider-key": "key", "cli-token": TOKEN}
    for name, text in given.items():
        (secrets / name).write_text(text)
    text = only(manifests, "ConfigMap", NAME)["data"]["aerodrome.toml"]
    paths = on_volume(container, volume) | {"/etc/aerodrome/secrets": secrets}
    for path, here in paths.items():
        assert path in text
        text = text.replace(path, str(here))
    text = text.replace("-cli:4321", f"-cli:{port}")
    (directory / "aerodrome.toml").write_text(text)
    env = {
        "AERODROME_SERVER__HTTP": "127.0.0.1:0",
        "AERODROME_SERVER__GATEWAY": "127.0.0.1:0",
        "AERODROME_SERVER__DATA_DIR": str(directory / "data"),
        "AERODROME_PROVIDER__BASE_URL": model.base_url,
        "AERODROME_RUNTIME__ATTACH_REFRESH": "200ms",
    }
    settings = load_settings(directory / "aerodrome.toml", env=env)
    async with AsyncExitStack() as stack:
        yield Host(await stack.enter_async_context(Node(settings, resolver=names)), stack)


def pre_stop(manifests: list[Manifest], server: Server, host: str) -> list[str]:
    """What its pod does before it is told to stop, once nodes have had the time to notice."""
    (container,) = pod(manifests, f"Deployment/{NAME}-cli").spec["containers"]
    *command, script = container["lifecycle"]["preStop"]["exec"]["command"]
    first, rest = script.split("\n", 1)
    assert first == "sleep 40"
    # A pod has a network of its own, with one server in it.
    address = bytes(reversed([int(part) for part in host.split(".")])).hex().upper()
    assert rest.count("[0-9A-F]+:10E1") == 1
    return [*command, rest.replace("[0-9A-F]+:10E1", f"{address}:{server.port:04X}")]


async def test_turns_are_served_and_none_is_cut_when_a_server_is_replaced(
    manifests: list[Manifest], tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    one = await start(manifests, servers, volume, host="127.0.0.1")
    names = Names(**{f"{NAME}-cli": ["127.0.0.1"]})
    async with node(manifests, tmp_path / "node", volume, model, names, one.port) as host:
        await connected(host, 1)
        alice = await host.user("alice", "acme")
        await alice.open("s1")
        assert (await alice.say("s1", "My name is Ada"))["turn"]["status"] == "completed"
        assert where(host) == {"s1": one.address}
        turn = asyncio.create_task(alice.say("s1", "[[gate: held]] wait"))
        await model.gate_reached("held")
        # A rollout: its successor is ready, and the address of one that goes is not told any more.
        await start(manifests, servers, volume, host="127.0.0.2", port=one.port)
        names.addresses[f"{NAME}-cli"] = ["127.0.0.2"]
        stopping = await asyncio.create_subprocess_exec(*pre_stop(manifests, one, "127.0.0.1"))
        try:
            await until(lambda: rows(host).get(one.address, {}).get("state") == "draining", 60)
            assert stopping.returncode is None
            model.open_gate("held")
            result = await turn
            assert (result["turn"]["status"], result["turn"]["retried"]) == ("completed", False)
            # No node is connected to it now: it may be told to stop, long before the drain is over.
            assert await asyncio.wait_for(stopping.wait(), 60) == 0
        finally:
            if stopping.returncode is None:
                stopping.kill()
                await stopping.wait()
        one.kill()
        assert "Ada" in await alice.text("s1", "What is my name?")
        assert where(host) == {"s1": f"127.0.0.2:{one.port}"}


def test_a_server_waits_for_all_that_its_nodes_may_take(manifests: list[Manifest]) -> None:
    cli = only(manifests, "Deployment", f"{NAME}-cli")["spec"]
    settings = only(manifests, "ConfigMap", NAME)["data"]["aerodrome.toml"]
    assert 'drain_timeout = "600s"' in settings
    (container,) = cli["template"]["spec"]["containers"]
    script = container["lifecycle"]["preStop"]["exec"]["command"][-1]
    # As long as the cluster's DNS keeps a name, and then some for nodes to look it up (`runtime.attach_refresh`).
    assert "sleep 40\n" in script
    assert cli["minReadySeconds"] == 40
    assert "$(seq 600)" in script
    assert cli["template"]["spec"]["terminationGracePeriodSeconds"] == 40 + 600 + 30
