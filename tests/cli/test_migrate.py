"""`aerodrome migrate`, and what a start says to tables that do not suit; on a real server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from aerodrome.app.stores import open_stores
from aerodrome.config import load_settings
from aerodrome.model import Role, SessionKey, SessionRow, TurnRow, TurnStatus
from support.command_line import Run
from support.postgres import fresh_schema, postgres, shared_server


@pytest.fixture
def schema() -> str:
    return fresh_schema()


@pytest.fixture
def config(tmp_path: Path, schema: str) -> Path:
    path = tmp_path / "my.toml"
    url = shared_server().url.replace("postgres@", "postgres:s3cret@")
    state = f'[state]\nurl = "{url}"\ndatabase_schema = "{schema}"\n'
    path.write_text(f'[server]\ndata_dir = "{tmp_path / "data"}"\n{state}')
    return path


def execute(schema: str, statement: str) -> list[tuple[Any, ...]]:
    async def run() -> list[tuple[Any, ...]]:
        async with postgres(schema) as db:
            return (await db.execute(statement)).rows

    return asyncio.run(run())


def test_an_empty_database_is_migrated_by_the_command(run: Run, config: Path, schema: str) -> None:
    check = run("migrate", "-c", config, "--check", "--json")
    assert check.code == 1
    assert [(row["stored"], row["applied"]) for row in check.json] == [(0, [])] * 5
    assert execute(schema, f"SELECT to_regnamespace('{schema}')") == [(None,)]
    done = run("migrate", "-c", config, "--json")
    assert done.code == 0
    assert {row["name"]: row["applied"] for row in done.json} == {
        "files": [
            "postgresql_files_001_pre_files.sql",
            "postgresql_files_002_pre_deleted.sql",
            "postgresql_files_003_pre_order.sql",
        ],
        "ledger": ["postgresql_ledger_001_pre_ledger.sql"],
        "keys": ["postgresql_keys_001_pre_keys.sql"],
        "directory": ["postgresql_directory_001_pre_directory.sql"],
        "attached": [
            "postgresql_attached_001_pre_attached.sql",
            "postgresql_attached_002_pre_release.sql",
            "postgresql_attached_003_pre_drain.sql",
        ],
    }
    assert all(not row["pre"] and not row["post"] and row["problem"] is None for row in done.json)
    assert run("migrate", "-c", config, "--check").code == 0
    assert "directory" in run("migrate", "-c", config, "--post").out


def test_an_empty_database_is_made_ready_by_whoever_opens_it_first(run: Run, config: Path) -> None:
    assert run("keys", "create", "-c", config, "--tenant", "acme", "--user", "alice").code == 0
    assert len(run("keys", "ls", "-c", config, "--json").json) == 1
    assert run("migrate", "-c", config, "--check").code == 0


def test_old_tables_stop_the_start_with_the_command_to_run(run: Run, config: Path, schema: str) -> None:
    run("migrate", "-c", config)
    # As if this release knew one version more of the ledger than has been applied.
    execute(schema, "UPDATE aerodrome_migration SET version = 0 WHERE name = 'ledger'")
    failed = run("keys", "ls", "-c", config)
    assert failed.code == 1
    assert "run `aerodrome migrate`" in failed.err
    assert run("migrate", "-c", config, "--check").code == 1


def test_tables_of_a_release_that_this_one_does_not_suit_stop_everything(run: Run, config: Path, schema: str) -> None:
    run("migrate", "-c", config)
    newer = "INSERT INTO aerodrome_migration (name, version, file, checksum, oldest_compatible) VALUES"
    execute(schema, f"{newer} ('files', 4, 'f', 'c', 1)")
    assert run("keys", "ls", "-c", config).code == 0  # newer, and compatible
    execute(schema, f"{newer} ('files', 5, 'f', 'c', 5)")
    for command in ("keys ls", "migrate", "migrate --check"):
        failed = run(*command.split(), "-c", config)
        assert failed.code == 1
        assert "run a newer release" in failed.err


def test_a_role_that_may_not_make_tables_is_told_so(run: Run, config: Path, schema: str) -> None:
    with psycopg.connect(shared_server().url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {schema} LOGIN".encode())
    other = config.with_name("other.toml")
    other.write_text(config.read_text().replace("postgres:s3cret@", f"{schema}@"))
    failed = run("keys", "ls", "-c", other)
    assert failed.code == 1
    assert "aerodrome migrate" in failed.err
    # Made by a role that may, and granted: then it works.
    run("migrate", "-c", config)
    with psycopg.connect(shared_server().url, autocommit=True) as connection:
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {schema}".encode())
        rights = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA"
        connection.execute(f"GRANT {rights} {schema} TO {schema}".encode())
    assert run("keys", "create", "-c", other, "--tenant", "acme", "--user", "alice").code == 0

    async def use_everything() -> None:
        key = SessionKey("acme", "s1")
        async with open_stores(load_settings(other, resolve_secrets=False)) as stores:
            await stores.files.raise_epoch(key, 1)
            await stores.files.append(key, 1, "/a/b", "x")
            await stores.ledger.accept(TurnRow(key, "t-1", "alice", TurnStatus.QUEUED, "hello"))
            await stores.directory.insert(SessionRow(key, "alice"))
            assert await stores.directory.set_member(key, "bob", Role.READER) is not None
            assert await stores.directory.remove(key, 0.0)
            await stores.files.delete_session(key, 1, 0.0)
            assert await stores.files.forget_session(key, 1)

    asyncio.run(use_everything())


def test_sqlite_needs_no_migration(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "sqlite.toml"
    path.write_text(f'[server]\ndata_dir = "{tmp_path / "data"}"\n')
    assert run("migrate", "-c", path, "--json").json == []
    assert "nothing to do" in run("migrate", "-c", path).out


def test_doctor_checks_the_server_and_never_shows_its_password(config: Path, schema: str) -> None:
    def stores(path: Path) -> dict[str, str]:
        # A process of its own: doctor sets up the logging of the whole process.
        command = [sys.executable, "-m", "aerodrome", "doctor", "-c", str(path), "--no-start", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "s3cret" not in done.stdout + done.stderr
        (found,) = [finding for finding in json.loads(done.stdout) if finding["check"] == "stores"]
        assert isinstance(found, dict)
        return found

    # The server of the tests does not wait for its disk.
    found = stores(config)
    assert found["result"] == "warning"
    assert "postgres:***@127.0.0.1" in found["detail"]
    assert "fsync = off" in found["detail"]
    execute(schema, "UPDATE aerodrome_migration SET checksum = 'other' WHERE name = 'keys'")
    found = stores(config)
    assert found["result"] == "failed"
    assert "were made by another postgresql_keys_001" in found["detail"]
    away = config.with_name("away.toml")
    text = config.read_text().replace(f":{shared_server().port}/", ":1/")
    away.write_text(text.replace("[state]\n", '[state]\npatience = "1s"\n'))
    found = stores(away)
    assert found["result"] == "failed"
    assert "cannot be reached" in found["detail"]


@pytest.mark.parametrize("verb", [("migrate", "--check"), ("restore", "--in-place")])
def test_a_server_that_is_away_is_named_without_its_password(run: Run, tmp_path: Path, verb: tuple[str, str]) -> None:
    path = tmp_path / "away.toml"
    path.write_text(f'[server]\ndata_dir = "{tmp_path}/data"\n[state]\nurl = "postgresql://me:s3cret@127.0.0.1:1/x"\n')
    result = run(*verb, "-c", path)
    assert result.code == 1
    assert result.err.endswith(
        "error: state.url = postgresql://me:***@127.0.0.1:1/x: the PostgreSQL server cannot be reached\n"
    )
    assert "s3cret" not in result.err
