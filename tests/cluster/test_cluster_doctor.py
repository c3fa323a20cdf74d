"""`aerodrome doctor --cluster` looks at a real fleet, in trouble and out of it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import aerodrome
from aerodrome.app.stores import open_stores
from aerodrome.config import load_settings
from aerodrome.coordination.ports import Node
from aerodrome.demo.model import ModelServer
from aerodrome.model import SessionKey, SessionRow
from aerodrome.sessions.blame import LIMIT, OPTION, Charges
from support.nodes import eventually, nodes
from support.ports import free_port
from support.postgres import fresh_schema, shared_server
from support.server import serve, write_config
from support.stores import ValkeyServer, valkey

pytestmark = [pytest.mark.cli, pytest.mark.timeout(300)]


async def doctor(config: Path, *, expect: int, **environment: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The findings by what they are of. `environment` goes over this process's."""
    command = [sys.executable, "-m", "aerodrome", "doctor", "--cluster", "--json", "--config", str(config)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    out, err = await process.communicate()
    assert process.returncode == expect, (out, err)
    return {(finding["subject"], finding["check"]): finding for finding in json.loads(out)}


async def test_nodes_of_one_machine(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, ttl="60s")
    assert (await doctor(config, expect=1))["fleet", "nodes"]["detail"] == "no node lives"
    async with nodes(config, "a", "b") as fleet:
        user = await fleet.user("a")
        await user.open("s")
        await user.text("s", "[[say: one]]")
        findings = await doctor(config, expect=0)
        assert findings["fleet", "nodes"]["detail"] == "2 live: a, b"
        assert {finding["result"] for finding in findings.values()} == {"ok"}
        assert "1 sessions loaded, " in findings["node a", "load"]["detail"]

        # Which nothing else would show as clearly.
        await fleet.start("c", {"AERODROME_SERVER__ADVERTISE": f"127.0.0.1:{free_port()}"})
        findings = await doctor(config, expect=1)
        assert findings["node c", "address"]["result"] == "failed"
        assert "set server.advertise" in findings["node c", "address"]["mend"]
        assert findings["node b", "address"]["result"] == "ok"


async def test_damage_and_sessions_in_quarantine_are_found(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url)
    async with open_stores(load_settings(config)) as stores:
        key = SessionKey("acme", "huge")
        charges = Charges(LIMIT, 1.0, "memory").stored()
        await stores.directory.insert(SessionRow(key, "alice", options={OPTION: charges}))
        await stores.files.raise_epoch(key, 1)
        for number in range(50):
            await stores.files.append(key, 1, f"/f{number}", "x" * 10_000)
    assert ("state", "structure") not in await doctor(config, expect=1)
    with (tmp_path / "data" / "state.sqlite3").open("r+b") as file:
        # The middle of it: what is needed to open it is at the beginning.
        file.seek(file.seek(0, 2) // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096 * 3)
    findings = await doctor(config, expect=1)
    assert findings["state", "structure"]["detail"].startswith("damaged: state.sqlite3: ")
    assert "acme/huge" in findings["sessions", "quarantine"]["detail"]


async def test_what_a_dead_node_has_left_is_found(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, ttl="5s")
    async with nodes(config, "a") as fleet:
        user = await fleet.user("a")
        await user.open("s")
        turn = asyncio.create_task(user.http.post("/sessions/s/messages", json={"prompt": "[[gate: held]]"}))
        await eventually(lambda: len(model.requests) == 1)
        await eventually(lambda: _listed_as_running(config))
        await fleet.kill("a")
        await asyncio.gather(turn, return_exceptions=True)
        # The last heartbeat counts for `coordination.ttl`.
        findings = await eventually(lambda: _without_nodes(config), 60)
    assert findings["sessions", "leases"]["detail"].startswith("1 sessions are listed as loaded and no living node has")
    assert findings["sessions", "turns"]["detail"].startswith("1 turns of nodes that have gone are not reported yet")


async def _listed_as_running(config: Path) -> bool:
    async with open_stores(load_settings(config)) as stores:
        return any(row.state == "running" for row in (await stores.directory.list(None)).rows)


async def _without_nodes(config: Path) -> Any:
    return None if await _living(config) else await doctor(config, expect=1)


async def _living(config: Path) -> bool:
    async with open_stores(load_settings(config)) as stores:
        return bool(await stores.coordination.nodes())


async def test_servers_that_endanger_what_is_stored_in_them(tmp_path: Path, model: ModelServer) -> None:
    schema = fresh_schema()
    with valkey({"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}) as server:
        config = _fleet_config(tmp_path, model, server, schema)
        async with serve(config):
            findings = await doctor(config, expect=0)
            assert findings["coordination", "server"]["detail"].startswith("maxmemory-policy is allkeys-lru")
            # The server of the tests does not wait for its disk.
            assert findings["state", "server"]["detail"].startswith("fsync = off")
            server.command("ACL", "SETUSER", "default", "-info")
            server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
            findings = await doctor(config, expect=0)
            assert findings["coordination", "server"]["mend"].startswith("+info")
        server.stop()
        findings = await doctor(config, expect=1, AERODROME_COORDINATION__PATIENCE="1s")
        assert findings.keys() == {("stores", "reachable")}


def _fleet_config(directory: Path, model: ModelServer, server: ValkeyServer, schema: str) -> Path:
    config = write_config(directory, model.base_url, ttl="60s")
    text = config.read_text()
    text = text.replace("[coordination]\n", f'[coordination]\nurl = "{server.url}"\n')
    config.write_text(f'{text}\n[state]\nurl = "{shared_server().url}"\ndatabase_schema = "{schema}"\n')
    return config


@pytest.mark.parametrize("distance", [-2, 2])
async def test_a_node_of_a_release_too_far_away_is_refused_with_the_command_to_run(
    tmp_path: Path, model: ModelServer, distance: int
) -> None:
    config = write_config(tmp_path, model.base_url, ttl="60s")
    major, minor, _ = aerodrome.__version__.split(".", 2)
    other = f"{major}.{int(minor) + distance}.0" if int(minor) + distance >= 0 else f"{int(major) + 2}.0.0"
    async with open_stores(load_settings(config)) as stores:
        await stores.coordination.join(Node("far", "far-1", load={"version": other}), 60.0)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aerodrome", "serve", "--config", str(config), stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
        assert process.returncode == 1
        assert f"far runs {other}: more than one release lies between" in err.decode()
        assert "`aerodrome nodes drain far --wait`" in err.decode()
        assert [node.name for node in await stores.coordination.nodes()] == ["far"]
        # Its neighbour starts.
        near = f"{major}.{int(minor) + 1}.0"
        await stores.coordination.heartbeat("far-1", {"version": near})
        async with serve(config):
            findings = await doctor(config, expect=1)
            assert findings["fleet", "releases"]["detail"].startswith(f"nodes of several releases: far {near}, ")
