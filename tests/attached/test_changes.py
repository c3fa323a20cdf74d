"""A server whose list of attached servers changes while it runs, and the commands for that."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from support.attached import TOKEN, Servers
from support.server import aerodrome, new_key, run_aerodrome, serve, user_of, write_config

pytestmark = pytest.mark.cli


def config_of(directory: Path, model: ModelServer, volume: Path, attach: list[str]) -> Path:
    servers = ", ".join(f'{{ address = "{address}", tenant = "acme" }}' for address in attach)
    return write_config(
        directory,
        model.base_url,
        ttl="4s",
        extra=f"""
[state]
url = "volume:{volume}"
[runtime]
warm = 0
attach = [{servers}]
attach_tokens = {{ default = {json.dumps(TOKEN)} }}
attach_refresh = "200ms"
""",
    )


async def listed(config: Path, states: dict[str, str], sessions: dict[str, int] | None = None) -> list[dict[str, Any]]:
    """The attached servers, once they stand as in `states`, server -> state, and those in `sessions` have so many.
    Nodes tell of both with their heartbeats, of which the latest may have been in between."""
    async with asyncio.timeout(60):
        while True:
            rows: list[dict[str, Any]] = await aerodrome("runtimes", "ls", "--config", str(config), "--json")
            # A node that has just been killed is listed as well, for as long as it may live.
            servers = [row for row in rows if "server" in row]
            stand = sorted((row["server"], row["state"]) for row in servers) == sorted(states.items())
            if stand and (sessions or {}).items() <= {row["server"]: row["sessions"] for row in servers}.items():
                return rows


@pytest.mark.parametrize("how", ["signal", "file"])
async def test_the_list_is_read_anew_without_a_restart(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer, how: str
) -> None:
    old, new = await servers.start(), await servers.start()
    config = config_of(tmp_path, model, volume, [old.address])
    key = await new_key(config)
    same = tmp_path / "same.toml"
    same.write_text(config.read_text())
    async with serve(config) as running, user_of(running, key) as alice:
        await listed(same, {old.address: "warm"})
        await alice.open("s1")
        await alice.say("s1", "My name is Ada")
        # What is wrong changes nothing.
        text = config.read_text().replace(old.address, new.address)
        config.write_text(text.replace('tenant = "acme"', "tenants = 3"))
        running.send_signal(signal.SIGHUP)
        async with asyncio.timeout(30):
            while "settings.not_reloaded" not in running.log.read_text():
                await asyncio.sleep(0.05)
        await listed(same, {old.address: "claimed"})
        config.write_text(text)
        if how == "signal":
            running.send_signal(signal.SIGHUP)
        await listed(config, {new.address: "warm"})
        assert "Ada" in await alice.text("s1", "What is my name?")
        await listed(config, {new.address: "claimed"})
        assert old.alive


async def test_a_key_that_is_away_keeps_no_change_of_the_list_from_being_taken(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    """It would not be looked at again before the file changes once more."""
    old, new = await servers.start(), await servers.start()
    config = config_of(tmp_path, model, volume, [old.address])
    key = tmp_path / "model-key"
    key.write_text("key")
    config.write_text(config.read_text().replace('api_key = "test-key"', f'api_key = "file:{key}"'))
    async with serve(config):
        await listed(config, {old.address: "warm"})
        key.unlink()
        config.write_text(config.read_text().replace(old.address, new.address))
        await listed(config, {new.address: "warm"})


async def test_the_commands_attach_and_detach(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    server = await servers.start()
    config = config_of(tmp_path, model, volume, [])
    key = await new_key(config)
    arguments = (server.address, "--config", str(config))
    async with serve(config) as running, user_of(running, key) as alice:
        made = await aerodrome("runtimes", "attach", *arguments, "--tenant", "acme", "--weight", "2", "--json")
        assert made == {"address": server.address, "tenant": "acme"}
        again = await run_aerodrome("runtimes", "attach", *arguments, "--tenant", "globex")
        assert (again.code, "attached already" in again.err) == (1, True)
        await listed(config, {server.address: "warm"})
        await alice.open("s1")
        await alice.say("s1", "My name is Ada")
    async with serve(config) as running, user_of(running, key) as alice:
        (row,) = await listed(config, {server.address: "claimed"})  # a restart keeps it
        assert (row["tenant"], row["weight"]) == ("acme", 2.0)
        assert "Ada" in await alice.text("s1", "What is my name?")
        await aerodrome("runtimes", "detach", *arguments, json_output=False)
        await listed(config, {})
        gone = await run_aerodrome("runtimes", "detach", *arguments)
        assert (gone.code, "no server" in gone.err) == (1, True)
        assert "Ada" in await alice.text("s1", "What is my name?")
        assert server.alive


async def test_a_server_is_drained_for_its_restart(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    one, two = await servers.start(), await servers.start()
    config = config_of(tmp_path, model, volume, [one.address, two.address])
    key = await new_key(config)
    arguments = (one.address, "--config", str(config))
    async with serve(config) as running, user_of(running, key) as alice:
        await listed(config, {one.address: "warm", two.address: "warm"})
        for session in ("s1", "s2"):
            await alice.open(session)
            await alice.say(session, "My name is Ada")
        await listed(
            config, {one.address: "claimed", two.address: "claimed"}, sessions={one.address: 1, two.address: 1}
        )
        refused = await run_aerodrome("runtimes", "recycle", *arguments)
        assert (refused.code, f"aerodrome runtimes drain {one.address}" in refused.err) == (1, True)
        done = await aerodrome("runtimes", "drain", *arguments, "--json")
        assert done["state"] == "done"
        await listed(config, {one.address: "drained", two.address: "claimed"}, sessions={one.address: 0})
        for session in ("s1", "s2"):
            assert "Ada" in await alice.text(session, "What is my name?")
        one.kill()
        await servers.start(port=one.port)
        await listed(config, {one.address: "drained", two.address: "claimed"})
    async with serve(config):
        rows = await listed(config, {one.address: "drained", two.address: "claimed"})  # a restart keeps it
        by_id = next(row["id"] for row in rows if row["server"] == one.address)
        assert (await aerodrome("runtimes", "drain", by_id, "--config", str(config), "--json"))["state"] == "done"
        await aerodrome("runtimes", "undrain", *arguments, json_output=False)
        await listed(config, {one.address: "claimed", two.address: "claimed"})
        again = await run_aerodrome("runtimes", "undrain", *arguments)
        assert (again.code, "no server" in again.err) == (1, True)


async def test_without_a_volume_nothing_can_be_attached(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url)
    refused = await run_aerodrome("runtimes", "attach", "cli-1:4321", "--tenant", "acme", "--config", str(config))
    assert (refused.code, "volume" in refused.err) == (1, True)
    config.write_text(config.read_text() + '\n[runtime]\nattach = ["cli-1:4321"]\n')
    wrong = await run_aerodrome("doctor", "--config", str(config))
    assert wrong.code == 1
    assert "volume:/PATH" in wrong.err + wrong.out
