"""Backups that are made while nodes work, and what is restored from them."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aerodrome.app.backup import DATABASES
from aerodrome.app.stores import coordination_of
from aerodrome.config import load_settings
from aerodrome.coordination.ports import Node
from aerodrome.demo.model import ModelServer
from support.nodes import nodes
from support.postgres import fresh_schema
from support.server import aerodrome, new_key, serve, user_of, write_config
from support.stores import ValkeyServer

pytestmark = [pytest.mark.cli, pytest.mark.timeout(300)]

_SESSIONS = 6


async def refused(*arguments: str) -> str:
    """Run a command that must fail; returns what it said."""
    with pytest.raises(AssertionError) as caught:
        await aerodrome(*arguments)
    return str(caught.value)


async def test_a_backup_under_load_has_every_turn_that_was_answered_before_it(
    tmp_path: Path, model: ModelServer
) -> None:
    """Two nodes and their users work while it is made, and are killed; another machine goes on from it."""
    config = write_config(tmp_path, model.base_url, ttl="15s")
    answered: dict[str, list[str]] = {f"s{number}": [] for number in range(_SESSIONS)}
    stop = asyncio.Event()

    async with nodes(config, "a", "b") as fleet:

        async def talk(number: int) -> None:
            user = await fleet.user("ab"[number % 2])
            session = f"s{number}"
            await user.open(session)
            turn = 0
            while not stop.is_set():
                turn += 1
                assert await user.text(session, f"[[say: {session}-{turn}]]") == f"{session}-{turn}"
                answered[session].append(f"{session}-{turn}")
                # Others come and go: their rows, files and deletions are under way at every moment.
                await user.http.post("/ask", json={"prompt": "[[say: once]]"})

        key = await fleet.key()
        talks = [asyncio.create_task(talk(number)) for number in range(_SESSIONS)]
        while min(map(len, answered.values())) < 2:
            await asyncio.sleep(0.02)
        before = {session: list(answers) for session, answers in answered.items()}
        made = await aerodrome("backup", str(tmp_path / "backup"), "--config", str(config), "--json")
        assert await refused("backup", str(tmp_path / "backup"), "--config", str(config))
        stop.set()
        await asyncio.gather(*talks)
    assert made["sessions"] >= _SESSIONS
    assert made["bytes"].keys() == set(DATABASES)
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "backup").iterdir()} == {0o600}

    (tmp_path / "elsewhere").mkdir()
    elsewhere = write_config(tmp_path / "elsewhere", model.base_url, ttl="15s")
    restored = await aerodrome("restore", str(tmp_path / "backup"), "--config", str(elsewhere), "--json")
    # Without the ephemeral ones, whose callers have gone.
    assert restored["sessions"] == _SESSIONS
    assert restored["replaced"] is None
    # The turns of the moment of the backup are ended by the first node; the ephemeral ones with their sessions.
    async with serve(elsewhere) as server, user_of(server, key) as user:
        for session, answers in before.items():
            history = await user.history(session)
            said = [text for role, text in history if role == "assistant"]
            assert said[: len(answers)] == answers
            assert said == [f"{session}-{turn}" for turn in range(1, len(said) + 1)]
            # The real CLI resumes it, and the model is sent all of it.
            prompts = await user.prompts_seen(session)
            assert [re.sub(r"\[\[say: (.*)\]\]", r"\1", prompt) for prompt in prompts] == said
    listed = await aerodrome("sessions", "ls", "--config", str(elsewhere), "--json")
    assert {row["id"] for row in listed} == set(before)
    # What was under way at that moment is reported, which may come after the turns that followed it.
    assert {row["last_turn"]["status"] for row in listed} <= {"completed", "interrupted"}


async def test_trap_08_a_restored_session_is_fenced_against_whoever_had_it_before(
    tmp_path: Path, model: ModelServer
) -> None:
    """A node that was paused before the restore believes in an epoch that was given out after the backup."""
    config = write_config(tmp_path, model.base_url, ttl="15s")
    async with nodes(config, "a") as fleet:
        user = await fleet.user("a")
        await user.open("used")
        await user.open("unused")
        await user.text("used", "[[say: one]]")
        await aerodrome("backup", str(tmp_path / "backup"), "--config", str(config), "--json")
        await user.text("unused", "[[say: after]]")
        await user.text("used", "[[say: two]]")
        lost = dict(_epochs(tmp_path / "data"))
        paused = fleet.servers["a"]
        paused.pause_between_writes()
        try:
            said = await refused("restore", str(tmp_path / "backup"), "--config", str(config), "--replace")
            assert "is in use: stop every node of this data_dir, also one that stands still" in said
        finally:
            paused.send_signal(signal.SIGCONT)
    restored = await aerodrome("restore", str(tmp_path / "backup"), "--config", str(config), "--replace", "--json")
    assert set(DATABASES) <= {path.name for path in Path(restored["replaced"]).iterdir()}
    fenced = dict(_epochs(tmp_path / "data"))
    assert lost.keys() == fenced.keys() == {"used", "unused"}
    assert all(fenced[session] > lost[session] for session in lost)
    again = await aerodrome("restore", str(tmp_path / "backup"), "--config", str(config), "--replace", "--json")
    assert again["sessions"] == 2
    assert all(epoch > fenced[session] for session, epoch in _epochs(tmp_path / "data"))
    key = await new_key(config)
    async with serve(config) as server, user_of(server, key) as user:
        assert await user.prompts_seen("used") == ["[[say: one]]"]
        assert await user.text("unused", "[[say: new]]") == "new"
    assert all(epoch > lost[session] for session, epoch in _epochs(tmp_path / "data"))


def _epochs(directory: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(directory / "state.sqlite3")) as connection:
        return connection.execute("SELECT session, epoch FROM file_session").fetchall()


async def test_a_restore_that_must_not_be(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, ttl="15s")
    backup = tmp_path / "backup"
    async with serve(config):
        await aerodrome("backup", str(backup), "--config", str(config), "--json")
        assert "is in use: stop every node" in await refused("restore", str(backup), "--config", str(config))
        assert "is in use: stop every node" in await refused("restore", "--in-place", "--config", str(config))
    # The node has gone; its data has not.
    assert "give --replace" in await refused("restore", str(backup), "--config", str(config))
    assert "name a backup, or give --in-place" in await refused("restore", "--config", str(config))
    await aerodrome("restore", "--in-place", "--config", str(config), "--json")

    with (backup / "state.sqlite3").open("r+b") as file:
        file.seek(5000)
        file.write(b"bit rot")
    assert "is damaged: it is not what was backed up" in await refused(
        "restore", str(backup), "--config", str(config), "--replace"
    )
    manifest: dict[str, Any] = json.loads((backup / "backup.json").read_text())
    (backup / "backup.json").write_text(json.dumps(manifest | {"format": 2}))
    assert "restore it with that release" in await refused("restore", str(backup), "--config", str(config))
    (backup / "backup.json").unlink()
    assert "is no backup" in await refused("restore", str(backup), "--config", str(config))


async def test_a_restore_that_is_cut_short_keeps_nodes_from_starting(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, ttl="15s")
    await new_key(config)
    async with serve(config):
        await aerodrome("backup", str(tmp_path / "backup"), "--config", str(config), "--json")
    (tmp_path / "data" / "restore.partial").mkdir()
    (tmp_path / "data" / "state.sqlite3").unlink()
    assert "was cut short: run `aerodrome restore` again" in await refused("keys", "ls", "--config", str(config))
    await aerodrome("restore", str(tmp_path / "backup"), "--config", str(config), "--json")
    assert len(await aerodrome("keys", "ls", "--config", str(config), "--json")) == 1


async def test_a_damaged_database_can_be_replaced(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, ttl="15s")
    async with serve(config):
        await aerodrome("backup", str(tmp_path / "backup"), "--config", str(config), "--json")
    for path in (tmp_path / "data").glob("state.sqlite3*"):
        path.unlink()
    (tmp_path / "data" / "state.sqlite3").write_bytes(b"no database at all" * 1000)
    assert "cannot be copied: file is not a database" in await refused(
        "backup", str(tmp_path / "b2"), "--config", str(config)
    )
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("b2")] == []
    await aerodrome("restore", str(tmp_path / "backup"), "--config", str(config), "--replace", "--json")
    async with serve(config):
        pass


async def test_a_node_that_only_the_coordination_store_knows_of_is_not_overwritten(
    tmp_path: Path, model: ModelServer, valkey_server: ValkeyServer
) -> None:
    """It may be on another machine, with the disk it uses mounted from here."""
    config = write_config(tmp_path, model.base_url, ttl="15s")
    async with serve(config):
        await aerodrome("backup", str(tmp_path / "backup"), "--config", str(config), "--json")
    prefix = f'url = "{valkey_server.url}"\nkey_prefix = "{fresh_schema()}"\n'
    config.write_text(config.read_text().replace("[coordination]\n", f"[coordination]\n{prefix}"))
    words = ("restore", str(tmp_path / "backup"), "--config", str(config), "--replace")
    async with coordination_of(load_settings(config)) as coordination:
        await coordination.join(Node("far", "far-1"), 60.0)
        assert "far still live: stop every node first (`aerodrome nodes drain`)" in await refused(*words)
        await coordination.leave("far-1")
    await aerodrome(*words, "--json")
