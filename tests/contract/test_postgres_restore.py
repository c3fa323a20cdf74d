"""What `aerodrome restore --in-place` does to PostgreSQL that was restored to an earlier moment."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from aerodrome.app.stores import open_stores
from aerodrome.coordination.ports import Node
from aerodrome.errors import Fenced
from aerodrome.model import SessionKey, SessionKind, SessionRow, SessionState, TurnRow, TurnStatus
from aerodrome.sessions.erase import epoch_floor
from support.postgres import PostgresServer, account, binaries, fresh_schema, shared_server
from support.server import aerodrome


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "aerodrome.toml"
    schema = fresh_schema()
    path.write_text(
        f'[server]\ndata_dir = "{tmp_path}/data"\n'
        f'[state]\nurl = "{shared_server().url}"\ndatabase_schema = "{schema}"\n'
        f'[coordination]\nurl = "{shared_server().url}"\ndatabase_schema = "{schema}"\n'
    )
    return path


def run(server: PostgresServer, program: str, *arguments: str) -> None:
    command = [str(binaries() / program), "--dbname", server.url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, user=account(), cwd=server.directory)
    assert done.returncode == 0, done.stderr


async def test_trap_08_a_dump_that_is_restored_is_fenced_against_whoever_came_after_it(config: Path) -> None:
    """`pg_dump` while a node lives; it goes on, and is paused; the dump is restored, and the node wakes up."""
    from aerodrome.config import load_settings

    settings = load_settings(config, env={})
    server, schema = shared_server(), settings.state.database_schema
    old, new = SessionKey("acme", "old"), SessionKey("acme", "new")
    async with open_stores(settings) as stores:
        await stores.coordination.join(Node("a", "a-1"), 60.0)
        for key in (old, new):
            await stores.directory.insert(SessionRow(key, "alice", created_at=1000.0, state=SessionState.RUNNING))
        await stores.directory.insert(SessionRow(SessionKey("acme", "once"), "alice", kind=SessionKind.EPHEMERAL))
        await stores.ledger.accept(TurnRow(old, "t-1", "alice", TurnStatus.RUNNING, "hello", incarnation="a-1"))
        await stores.ledger.accept(TurnRow(SessionKey("acme", "gone"), "t-1", "alice", TurnStatus.RUNNING, "hello"))
        first = await stores.coordination.acquire(old, "a-1", floor=epoch_floor(0, 1000.0, 1000.0))
        assert first is not None
        await stores.files.raise_epoch(old, first.epoch)
        await stores.files.append(old, first.epoch, "/events", "before\n")
        dump = str(server.directory / "dump")
        await asyncio.to_thread(run, server, "pg_dump", "--schema", schema, "--format=custom", "--file", dump)

        # What the paused node had done since: both sessions, in epochs that the dump knows nothing of.
        held = {}
        for key in (old, new):
            lease = await stores.coordination.acquire(key, "a-1", floor=epoch_floor(0, 1000.0, 1000.0))
            assert lease is not None
            await stores.files.raise_epoch(key, lease.epoch)
            held[key] = lease.epoch
    await asyncio.to_thread(run, server, "pg_restore", "--clean", "--if-exists", dump)

    with pytest.raises(AssertionError, match="a still live: stop every node first"):
        await aerodrome("restore", "--in-place", "--config", str(config))
    async with open_stores(settings) as stores:
        await stores.coordination.leave("a-1")
    told = await aerodrome("restore", "--in-place", "--config", str(config), "--json")
    assert told == {"created_at": None, "sessions": 2, "unfinished_turns": 1, "replaced": None}

    async with open_stores(settings) as stores:
        await stores.coordination.join(Node("b", "b-1"), 60.0)
        for key in (old, new):
            row = await stores.directory.get(key)
            assert row is not None
            assert row.state is SessionState.HIBERNATED
            # Straight after the restore, and once the session has been loaded again.
            with pytest.raises(Fenced):
                await stores.files.append(key, held[key], "/events", "late\n")
            lease = await stores.coordination.acquire(
                key, "b-1", floor=epoch_floor(await stores.files.epoch(key), 1.0, 1.0)
            )
            assert lease is not None
            assert lease.epoch > held[key]
            await stores.files.raise_epoch(key, lease.epoch)
            with pytest.raises(Fenced):
                await stores.files.append(key, held[key], "/events", "late\n")
        assert await stores.files.read(old, "/events") == "before\n"
        assert await stores.directory.get(SessionKey("acme", "once")) is None
        assert [turn.key for turn in await stores.ledger.unfinished()] == [old]


async def test_state_in_postgresql_is_not_ours_to_copy(config: Path, tmp_path: Path) -> None:
    for words in (("backup",), ("restore",)):
        with pytest.raises(AssertionError, match="back up and restore that with its own tools"):
            await aerodrome(*words, str(tmp_path / "backup"), "--config", str(config))
