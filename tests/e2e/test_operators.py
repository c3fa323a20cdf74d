"""Operators' verbs on a whole fleet: from the command line and over HTTP, for runtimes of any node."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from support.nodes import Nodes, eventually, nodes
from support.server import aerodrome, new_key, user_of, write_config

pytestmark = [pytest.mark.cli, pytest.mark.timeout(240)]


async def runtimes(fleet: Nodes) -> list[dict[str, Any]]:
    return list(await aerodrome("runtimes", "ls", "--config", str(fleet.config), "--json"))


async def runtime_of(fleet: Nodes, node: str) -> str:
    """The id of the claimed runtime of this node."""

    async def look() -> str | None:
        found = [row["id"] for row in await runtimes(fleet) if row["node"] == node and row["state"] == "claimed"]
        return found[0] if found else None

    return str(await eventually(look, 60))


async def fails(fleet: Nodes, *arguments: str) -> str:
    """What a command that must fail says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aerodrome", *arguments, "--config", str(fleet.config)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert process.returncode == 1, err
    return err.decode()


async def test_runtimes_of_any_node_are_recycled_and_drained(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, "[runtime]\nwarm = 0\n", ttl="15s")
    async with nodes(config, "a", "b") as fleet:
        alice, bob = await fleet.user("a", "alice"), await fleet.user("b", "bob", "bank")
        await alice.open("s1")
        await alice.text("s1", "My name is Ada.")
        await bob.open("s2")
        first, other = await bob.text("s2", "hello"), await runtime_of(fleet, "b")
        assert first
        worn = await runtime_of(fleet, "a")

        # In a turn: the command waits for its end.
        turn = asyncio.create_task(alice.text("s1", "[[gate: held]] [[say: finished]]"))
        await model.gate_reached("held")
        recycling = asyncio.create_task(aerodrome("runtimes", "recycle", worn, "--config", str(config), "--json"))

        async def is_retiring() -> bool:
            return any(row["id"] == worn and row["state"] == "retiring" for row in await runtimes(fleet))

        await eventually(is_retiring, 60)
        assert "recycle" in await fails(fleet, "runtimes", "drain", worn)
        assert not recycling.done()
        model.open_gate("held")
        assert await turn == "finished"
        done = await recycling
        assert (done["verb"], done["runtime"], done["node"], done["state"]) == ("recycle", worn, "a", "done")
        assert worn not in [row["id"] for row in await runtimes(fleet)]
        assert await alice.prompts_seen("s1") == ["My name is Ada.", "[[gate: held]] [[say: finished]]"]

        said = await aerodrome("runtimes", "drain", other, "--config", str(config), json_output=False)
        assert said.startswith(f"{other} of the node b is drained, after ")
        assert "no living node has a runtime" in await fails(fleet, "runtimes", "drain", other)
        assert await bob.text("s2", "again")  # it wakes in another

        # Over HTTP, by an operator, at the other node; and by nobody else.
        made = ("--tenant", "ops", "--user", "root", "--role", "admin", "--json")
        key = (await aerodrome("keys", "create", "--config", str(config), *made))["key"]
        next_one = await runtime_of(fleet, "a")
        async with user_of(fleet.servers["b"], key) as root:
            refused = await alice.http.post(f"/admin/runtimes/{next_one}/recycle")
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
            answer = await root.http.post(f"/admin/runtimes/{next_one}/recycle")
            assert (answer.status_code, answer.json()["node"]) == (200, "a"), answer.text
            assert (await root.http.post(f"/admin/runtimes/{next_one}/recycle")).status_code == 404
            listed = (await root.http.get("/admin/runtimes")).json()["runtimes"]
            assert next_one not in [row["id"] for row in listed]
            assert [row["name"] for row in (await root.http.get("/admin/nodes")).json()["nodes"]] == ["a", "b"]
            answer = await root.http.post("/admin/nodes/a/drain")
            assert (answer.status_code, answer.json()["name"]) == (202, "a")
            assert await asyncio.wait_for(fleet.servers["a"].process.wait(), 90) == 0
            assert (await root.http.post("/admin/nodes/a/drain")).status_code == 404
        assert await (await fleet.user("b", "alice")).prompts_seen("s1")


async def test_a_node_that_dies_with_the_runtime_is_told(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, "[runtime]\nwarm = 0\n", ttl="4s")
    async with nodes(config, "a") as fleet:
        alice = await fleet.user("a")
        await alice.open("s1")
        turn = asyncio.create_task(alice.http.post("/sessions/s1/messages", json={"prompt": "[[gate: held]]"}))
        await model.gate_reached("held")
        runtime = await runtime_of(fleet, "a")
        draining = asyncio.create_task(fails(fleet, "runtimes", "drain", runtime))

        async def is_retiring() -> bool:
            return any(row["state"] == "retiring" for row in await runtimes(fleet))

        await eventually(is_retiring, 60)
        await fleet.kill("a")
        assert "the node a has gone" in await asyncio.wait_for(draining, 90)
        await asyncio.gather(turn, return_exceptions=True)
        model.open_gate("held")


async def test_top_shows_the_fleet_once_as_json(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, "[runtime]\nwarm = 0\n", ttl="15s")
    key = await new_key(config)
    async with nodes(config, "a", "b") as fleet, user_of(fleet.servers["a"], key) as alice:
        await alice.open("s1")
        turn = asyncio.create_task(alice.text("s1", "[[gate: held]] [[say: finished]]"))
        await model.gate_reached("held")

        async def seen() -> dict[str, Any] | None:
            told = await aerodrome("top", "--json", "--config", str(config))
            # A node tells of itself now and then: of the runtime perhaps later than of the turn that waits for it.
            return told if told["totals"]["turns"] and told["totals"]["runtimes"] else None

        told = await eventually(seen, 60)
        assert json.dumps(told)
        assert told["totals"]["nodes"] == 2
        assert told["tenants"] == [{"tenant": "acme", "sessions": 1, "turns": 1, "waiting": 0, "runtimes": 1}]
        assert {row["name"]: row["turns"] for row in told["nodes"]} == {"a": 1, "b": 0}
        model.open_gate("held")
        assert await turn == "finished"
