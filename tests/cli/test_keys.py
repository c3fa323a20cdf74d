"""`aerodrome keys`, on the real store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aerodrome.app.stores import open_stores
from aerodrome.config import load_settings
from aerodrome.errors import Unauthenticated
from aerodrome.model import Principal
from support.command_line import Result, Run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "my.toml"
    # The provider's secret is not there: commands that need none must work without it.
    path.write_text(f'[server]\ndata_dir = "{tmp_path / "data"}"\n[provider]\ngithub_token = "env:NOT_SET_HERE"\n')
    return path


def principal_of(key: str, config: Path) -> Principal:
    async def authenticate() -> Principal:
        async with open_stores(load_settings(config, resolve_secrets=False)) as stores:
            return await stores.keys.authenticate(key)

    return asyncio.run(authenticate())


def create(run: Run, config: Path, *more: str) -> Result:
    return run("keys", "create", "--config", config, "--tenant", "acme", "--user", "alice", *more)


def test_a_created_key_authenticates_its_user(run: Run, config: Path) -> None:
    result = create(run, config, "--role", "admin", "--json")
    assert result.code == 0
    assert sorted(result.json) == ["id", "key"]
    assert result.json["key"].startswith("aero_")
    assert principal_of(result.json["key"], config) == Principal(
        "acme", "alice", frozenset({"admin"}), result.json["id"]
    )


def test_for_a_person_the_key_alone_is_on_standard_output(run: Run, config: Path) -> None:
    result = create(run, config)
    assert principal_of(result.out.strip(), config).user == "alice"
    assert result.out.strip() not in result.err
    assert "shown only now" in result.err


def test_keys_are_listed_without_their_secrets(run: Run, config: Path) -> None:
    assert run("keys", "ls", "-c", config, "--json").json == []
    alice = create(run, config, "--label", "[bold]laptop", "--json").json
    bob = run("keys", "create", "-c", config, "--tenant", "other", "--user", "bob", "--json").json
    listed = run("keys", "ls", "-c", config, "--json").json
    assert [(key["id"], key["tenant"], key["user"], key["roles"], key["label"]) for key in listed] == [
        (alice["id"], "acme", "alice", [], "[bold]laptop"),
        (bob["id"], "other", "bob", [], None),
    ]
    assert [key["id"] for key in run("keys", "ls", "-c", config, "--tenant", "other", "--json").json] == [bob["id"]]
    table = run("keys", "ls", "-c", config).out
    header, first, _ = table.splitlines()
    assert header.split() == ["ID", "TENANT", "USER", "ROLES", "LABEL", "CREATED"]
    assert first.split()[:5] == [alice["id"], "acme", "alice", "-", "[bold]laptop"]
    assert alice["key"] not in table


def test_a_row_is_whole_when_it_is_not_for_a_terminal(run: Run, config: Path) -> None:
    label = "x" * 200
    create(run, config, "--label", label)
    assert label in run("keys", "ls", "-c", config).out


def test_a_revoked_key_is_refused(run: Run, config: Path) -> None:
    key = create(run, config, "--json").json
    assert run("keys", "revoke", key["id"], "-c", config).out == f"Revoked {key['id']}.\n"
    with pytest.raises(Unauthenticated):
        principal_of(key["key"], config)
    again = run("keys", "revoke", key["id"], "-c", config)
    assert (again.code, again.err) == (1, f"error: there is no key {key['id']}; `aerodrome keys ls` lists them\n")


def test_a_key_that_has_leaked_is_revoked_by_itself_and_not_shown(run: Run, config: Path) -> None:
    create(run, config, "--json")
    key = create(run, config, "--json").json
    for _ in range(2):
        result = run("keys", "revoke", key["key"], "-c", config)
        assert key["key"] not in result.out + result.err
    assert f"there is no key {key['id']}" in result.err
    with pytest.raises(Unauthenticated):
        principal_of(key["key"], config)
    assert len(run("keys", "ls", "-c", config, "--json").json) == 1


def test_a_wrong_label_is_told(run: Run, config: Path) -> None:
    result = create(run, config, "--label", "x" * 201)
    assert result.code == 1
    assert "a label has 1 to 200 characters" in result.err


def test_keys_can_be_made_while_the_stores_are_open_elsewhere(run: Run, config: Path) -> None:
    """As beside a running server: the other holder of the stores sees the key at once."""

    async def beside() -> Principal:
        async with open_stores(load_settings(config, resolve_secrets=False)) as stores:
            result = await asyncio.to_thread(create, run, config, "--json")
            return await stores.keys.authenticate(result.json["key"])

    assert asyncio.run(beside()).user == "alice"
