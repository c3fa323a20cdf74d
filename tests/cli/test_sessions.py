"""`aerodrome sessions export` and `rm`: what a user or a tenant has, handed over and erased; on both stores."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from aerodrome.app.stores import Stores, open_stores
from aerodrome.config import load_settings
from aerodrome.coordination.ports import Node
from aerodrome.model import Role, SessionKey, SessionRow, TurnRow, TurnStatus
from support.command_line import Run
from support.postgres import fresh_schema, shared_server

T = TypeVar("T")
EVENTS = "/state/events.jsonl"


@pytest.fixture(params=["sqlite", "postgresql"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "my.toml"
    state = ""
    if request.param == "postgresql":
        state = f'[state]\nurl = "{shared_server().url}"\ndatabase_schema = "{fresh_schema()}"\n'
    path.write_text(f'[server]\ndata_dir = "{tmp_path / "data"}"\n{state}')
    return path


def on_stores(config: Path, call: Callable[[Stores], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_stores(load_settings(config, resolve_secrets=False)) as stores:
            return await call(stores)

    return asyncio.run(run())


async def make(stores: Stores, tenant: str, id_: str, owner: str, **members: Role) -> SessionKey:
    key = SessionKey(tenant, id_)
    await stores.directory.insert(SessionRow(key, owner, members=members, last_used_at=1.0, options={"tools": ["x"]}))
    await stores.files.raise_epoch(key, 1)
    await stores.files.append(key, 1, EVENTS, f"{owner} \ud800\n")
    for author in (owner, *members):
        turn = TurnRow(key, f"t-{author}", author, TurnStatus.COMPLETED, f"prompt of {author}", idempotency_key=author)
        await stores.ledger.accept(turn)
    return key


@pytest.fixture
def filled(config: Path) -> Path:
    async def fill(stores: Stores) -> None:
        await make(stores, "acme", "a-1", "alice")
        await make(stores, "acme", "a-2", "alice", bob=Role.WRITER)
        await make(stores, "acme", "b-1", "bob", alice=Role.READER, carol=Role.READER)
        await make(stores, "acme", "c-1", "carol")
        await make(stores, "beta", "a-1", "alice")
        for tenant, user in (("acme", "alice"), ("acme", "alice"), ("acme", "bob"), ("beta", "alice")):
            await stores.keys.create(tenant, user)

    on_stores(config, fill)
    return config


async def remains(stores: Stores) -> dict[str, list[str]]:
    page = await stores.directory.list(None, limit=100)
    return {f"{row.key}": sorted(row.members) for row in sorted(page.rows, key=lambda row: row.key)}


async def traces(stores: Stores, key: SessionKey) -> list[Any]:
    """Whatever any store still has of a session."""
    found: list[Any] = [await stores.directory.get(key), await stores.coordination.holder(key)]
    found += [await stores.files.epoch(key), await stores.files.total_bytes(key), *await stores.ledger.turns(key)]
    return [trace for trace in found if trace]


def test_everything_of_a_user_is_erased_and_nothing_of_others(run: Run, filled: Path) -> None:
    gone = [SessionKey("acme", "a-1"), SessionKey("acme", "a-2")]
    rm = ("sessions", "rm", "-c", filled, "--tenant", "acme", "--user", "alice", "--all", "--yes")
    result = run(*rm, "--with-keys", "--json")
    assert result.code == 0
    assert {name: value for name, value in result.json.items() if name != "revoked_keys"} == {
        "deleted": ["a-1", "a-2"],
        "memberships": ["b-1"],
        "refused": {},
    }
    assert len(result.json["revoked_keys"]) == 2
    assert on_stores(filled, remains) == {"acme/b-1": ["carol"], "acme/c-1": [], "beta/a-1": []}
    for key in gone:
        assert on_stores(filled, lambda stores, key=key: traces(stores, key)) == []  # type: ignore[misc]
    assert len(on_stores(filled, lambda stores: stores.ledger.turns(SessionKey("acme", "b-1")))) == 3
    keys = run("keys", "ls", "-c", filled, "--json").json
    assert [(key["tenant"], key["user"]) for key in keys] == [("acme", "bob"), ("beta", "alice")]
    # Asked for again, there is nothing left to do, and that is no failure.
    assert run(*rm, "--json").json == {"deleted": [], "memberships": [], "refused": {}, "revoked_keys": []}
    # It may also be the name that is wrong.
    again = run(*rm)
    assert (again.code, again.err) == (0, "nothing is stored of acme/alice\n")


def test_everything_of_a_tenant_is_erased(run: Run, filled: Path) -> None:
    result = run("sessions", "rm", "-c", filled, "--tenant", "acme", "--all", "--yes")
    assert result.code == 0
    assert "Deleted acme/b-1.\n" in result.out
    assert on_stores(filled, remains) == {"beta/a-1": []}
    assert len(run("keys", "ls", "-c", filled, "--json").json) == 4


def test_what_a_node_has_loaded_is_refused_and_named_and_the_rest_erased(run: Run, filled: Path) -> None:
    async def load(stores: Stores) -> None:
        await stores.coordination.join(Node("node-7", "n-1"), 600)
        assert await stores.coordination.acquire(SessionKey("acme", "a-2"), "n-1") is not None

    on_stores(filled, load)
    rm = ("sessions", "rm", "-c", filled, "--tenant", "acme")
    result = run(*rm, "--user", "alice", "--all", "--yes", "--json")
    assert result.code == 1
    assert result.json["deleted"] == ["a-1"]
    assert result.json["refused"] == {"a-2": "node node-7"}
    assert "acme/a-2 by node node-7" in result.err
    assert run(*rm, "a-2").code == 1
    assert on_stores(filled, remains)["acme/a-2"] == ["bob"]

    result = run(*rm, "a-2", "--wait", "200ms")
    assert result.code == 1
    assert "waiting for acme/a-2, which node node-7 has loaded" in result.err

    # The node puts it to sleep while the command waits.
    async def release(stores: Stores) -> None:
        while not any(node.name == "aerodrome-sessions-rm" for node in await stores.coordination.nodes()):
            await asyncio.sleep(0.02)
        await stores.coordination.leave("n-1")

    releasing = threading.Thread(target=on_stores, args=(filled, release))
    releasing.start()
    result = run(*rm, "a-2", "--wait", "60s")
    releasing.join(20)
    assert (result.code, result.out) == (0, "Deleted acme/a-2.\n")
    assert "acme/a-2" not in on_stores(filled, remains)


def test_one_session_is_deleted_without_a_question(run: Run, filled: Path) -> None:
    assert run("sessions", "rm", "-c", filled, "--tenant", "acme", "c-1").out == "Deleted acme/c-1.\n"
    assert run("sessions", "rm", "-c", filled, "--tenant", "acme", "c-1").code == 1
    assert "acme/c-1" not in on_stores(filled, remains)


@pytest.mark.parametrize(
    "arguments",
    [
        ["rm"],
        ["rm", "a-1", "--all"],
        ["rm", "a-1", "--user", "alice"],
        ["rm", "a-1", "--with-keys"],
        ["rm", "--all", "--wait", "soon"],
        ["export"],
        ["export", "a-1", "--all"],
    ],
)
def test_what_is_ambiguous_is_wrong_usage_and_deletes_nothing(run: Run, filled: Path, arguments: list[str]) -> None:
    assert run("sessions", *arguments, "-c", filled, "--tenant", "acme").code == 2
    assert len(on_stores(filled, remains)) == 5


def test_without_a_yes_nothing_is_deleted(run: Run, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run("sessions", "rm", "-c", filled, "--tenant", "acme", "--all").code == 1
    assert len(on_stores(filled, remains)) == 5


def test_everything_of_a_user_is_exported_as_lines(run: Run, filled: Path, tmp_path: Path) -> None:
    export = ("sessions", "export", "-c", filled, "--tenant", "acme", "--user", "alice", "--all")
    target = tmp_path / "alice.jsonl"
    assert run(*export, "--to", target).code == 0
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert lines == [json.loads(line) for line in run(*export).out.splitlines()]
    assert target.stat().st_mode & 0o777 == 0o600
    first, second, third = lines
    assert [first["session"]["id"], second["session"]["id"]] == ["a-1", "a-2"]
    assert first["files"] == {EVENTS: "alice \ud800\n"}
    assert first["options"] == {"tools": ["x"]}
    assert [turn["prompt"] for turn in second["turns"]] == ["prompt of alice", "prompt of bob"]
    assert third["membership"]["session"] == "b-1"
    assert third["membership"]["role"] == "reader"
    assert [turn["prompt"] for turn in third["membership"]["turns"]] == ["prompt of alice"]
    assert run(*export, "--to", target).code == 1  # what is there is not written over


def test_everything_of_a_tenant_is_exported_as_a_directory(run: Run, filled: Path, tmp_path: Path) -> None:
    target = tmp_path / "acme"
    assert run("sessions", "export", "-c", filled, "--tenant", "acme", "--all", "--to", target).code == 0
    assert target.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in (target / "sessions").iterdir()) == ["a-1", "a-2", "b-1", "c-1"]
    session = target / "sessions" / "b-1"
    assert json.loads((session / "session.json").read_text())["owner"] == "bob"
    assert len((session / "turns.jsonl").read_text().splitlines()) == 3
    assert (session / "files" / "state" / "events.jsonl").read_bytes() == b"bob \xed\xa0\x80\n"


def test_one_session_is_printed(run: Run, filled: Path) -> None:
    exported = run("sessions", "export", "-c", filled, "--tenant", "beta", "a-1").json
    assert exported["session"]["owner"] == "alice"
    assert exported["files"] == {EVENTS: "alice \ud800\n"}
    assert run("sessions", "show", "-c", filled, "--tenant", "beta", "a-1").json["epoch"] == 1
