"""Secrets are changed under a running node, and nobody restarts it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis

from aerodrome.app.secret_keeper import SecretKeeper
from aerodrome.app.stores import open_stores
from aerodrome.config import Settings
from aerodrome.demo.model import ModelServer
from aerodrome.model import SessionKey
from aerodrome.sessions.activation import Activation
from support.host import Host, host, make_settings
from support.misbehaving import raw
from support.nodes import eventually
from support.postgres import PostgresServer
from support.postgres import server as postgres_server
from support.stores import valkey

pytestmark = [pytest.mark.cli]


@pytest.fixture(autouse=True)
def _nobody_else_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a test has the node do so (`secrets.refresh`): a session that it is putting to sleep is still loaded."""
    monkeypatch.setattr("aerodrome.app.secret_keeper._LOOK", 3600.0)


def last_key(model: ModelServer) -> str:
    """The key that the model's latest request came with."""
    headers = {name.lower(): value for name, value in model.requests[-1].headers.items()}
    return headers["authorization"].removeprefix("Bearer ")


def is_loaded(running: Host, session_id: str) -> bool:
    return running.node.sessions.is_loaded(SessionKey("acme", session_id))


async def test_a_changed_key_is_used_for_the_next_session_and_for_those_that_are_loaded(
    tmp_path: Path, model: ModelServer
) -> None:
    secret = tmp_path / "model-key"
    secret.write_text("key-one")
    async with host(tmp_path, model, provider={"api_key": f"file:{secret}"}) as running:
        alice = await running.user()
        await alice.open("idle")
        await alice.open("running")
        assert await alice.text("idle", "[[say: one]]") == "one"
        assert last_key(model) == "key-one"
        turn = asyncio.create_task(alice.text("running", "[[gate: held]][[say: held]]"))
        await eventually(lambda: len(model.requests) == 2)

        secret.write_text("key-two")
        await alice.open("new")
        assert await alice.text("new", "[[say: two]]") == "two"
        assert last_key(model) == "key-two"

        await running.node.secrets.look()
        assert not is_loaded(running, "idle")
        # It is in a turn.
        assert is_loaded(running, "running")
        assert await alice.text("idle", "[[say: three]]") == "three"
        assert last_key(model) == "key-two"

        model.open_gate("held")
        assert await turn == "held"
        await running.node.secrets.look()
        assert not is_loaded(running, "running")
        await running.node.secrets.look()
        assert is_loaded(running, "idle")
        assert await alice.prompts_seen("running") == ["[[gate: held]][[say: held]]"]
        assert last_key(model) == "key-two"


async def test_a_session_that_is_being_loaded_when_the_key_changes_does_not_keep_the_old_one(
    tmp_path: Path, model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "model-key"
    secret.write_text("key-one")
    opening, go = asyncio.Event(), asyncio.Event()
    as_it_is = Activation.open

    async def held(self: Activation, *arguments: Any, **options: Any) -> None:
        opening.set()
        await go.wait()
        await as_it_is(self, *arguments, **options)

    async with host(tmp_path, model, provider={"api_key": f"file:{secret}"}) as running:
        alice = await running.user()
        await alice.open("s")
        monkeypatch.setattr(Activation, "open", held)
        turn = asyncio.create_task(alice.text("s", "[[say: one]]"))
        await opening.wait()
        secret.write_text("key-two")
        # The old key has been read, and nothing is loaded yet.
        await running.node.secrets.look()
        go.set()
        assert await turn == "one"
        assert last_key(model) == "key-one"
        await running.node.secrets.look()
        assert not is_loaded(running, "s")
        assert await alice.text("s", "[[say: two]]") == "two"
        assert last_key(model) == "key-two"
        await running.node.secrets.look()
        assert is_loaded(running, "s")


async def test_a_prompt_behind_another_has_the_key_that_there_is_when_its_turn_begins(
    tmp_path: Path, model: ModelServer
) -> None:
    """Else a session with many prompts in its queue would keep the old key for all of them."""
    secret = tmp_path / "model-key"
    secret.write_text("key-one")
    async with host(tmp_path, model, provider={"api_key": f"file:{secret}"}) as running:
        alice = await running.user()
        await alice.open("s")
        first = asyncio.create_task(alice.text("s", "[[gate: held]][[say: one]]"))
        await eventually(lambda: len(model.requests) == 1)
        second = asyncio.create_task(alice.text("s", "[[say: two]]"))
        (live,) = running.node.sessions.live
        await eventually(lambda: len(live.turns.all) == 2)
        secret.write_text("key-two")
        model.open_gate("held")
        assert (await first, await second) == ("one", "two")
        assert last_key(model) == "key-two"
        assert await alice.prompts_seen("s") == ["[[gate: held]][[say: one]]", "[[say: two]]"]


async def test_a_native_prompt_that_comes_to_a_turn_does_not_prolong_the_use_of_the_old_key(
    tmp_path: Path, model: ModelServer
) -> None:
    """Elsewhere the runtime takes it at once, and goes on with it by itself."""
    secret = tmp_path / "model-key"
    secret.write_text("key-one")
    async with (
        host(tmp_path, model, provider={"api_key": f"file:{secret}"}) as running,
        raw(running.gateway_address, await running.key()) as client,
    ):
        await client.request("session.create", {"sessionId": "s"})
        await client.request("session.send", {"sessionId": "s", "prompt": "[[gate: held]][[say: one]]"})
        await eventually(lambda: len(model.requests) == 1)
        secret.write_text("key-two")
        sending = asyncio.create_task(client.request("session.send", {"sessionId": "s", "prompt": "[[say: two]]"}))
        (live,) = running.node.sessions.live
        await eventually(lambda: len(live.turns.all) == 2)
        model.open_gate("held")
        assert "messageId" in (await sending)["result"]
        await eventually(lambda: len(model.requests) == 2)
        assert last_key(model) == "key-two"
        await eventually(lambda: not live.busy)


async def test_a_key_of_one_tenant_concerns_its_sessions_only(tmp_path: Path, model: ModelServer) -> None:
    secret = tmp_path / "model-key"
    secret.write_text("key-one")
    own = {"type": "openai", "base_url": model.base_url, "model": "gpt-4.1", "api_key": f"file:{secret}"}
    async with host(tmp_path, model, provider={"tenants": {"acme": own}}) as running:
        for tenant in ("acme", "other"):
            user = await running.user("alice", tenant)
            await user.open("s")
            await user.text("s", "[[say: one]]")
        secret.write_text("key-two")
        await running.node.secrets.look()
        assert not is_loaded(running, "s")
        assert running.node.sessions.is_loaded(SessionKey("other", "s"))


async def test_what_is_behind_a_command_is_asked_in_the_background(tmp_path: Path, model: ModelServer) -> None:
    secret = tmp_path / "model-key"
    secret.write_text("key-one")
    provider, secrets = {"api_key": f"command:cat {secret}"}, {"refresh": "100ms"}
    async with host(tmp_path, model, provider=provider, secrets=secrets) as running:
        alice = await running.user()
        await alice.open("s")
        secret.write_text("key-two")
        await eventually(lambda: _said_with(alice, model, "key-two"))
        secret.unlink()
        await eventually(lambda: running.node.secrets.problems)
        (problem,) = running.node.secrets.problems.items()
        assert problem == ("provider.api_key", "the program cat failed (exit code 1); run it by hand to see why")
        assert await _said_with(alice, model, "key-two")


async def test_a_program_that_hangs_keeps_no_other_secret_from_being_looked_at(
    tmp_path: Path, model: ModelServer
) -> None:
    (tmp_path / "model-key").write_text("key-one")
    hangs, asked = tmp_path / "hangs", tmp_path / "asked"
    script = tmp_path / "program"
    script.write_text(f"#!/bin/sh\nwhile [ -e {hangs} ]; do touch {asked}; sleep 0.05; done\necho key\n")
    script.chmod(0o700)
    own = {"type": "openai", "base_url": model.base_url, "model": "gpt-4.1", "api_key": f"command:{script}"}
    provider = {"api_key": f"file:{tmp_path}/model-key", "tenants": {"other": own}}
    secrets = {"refresh": "100ms", "timeout": "60s"}
    async with host(tmp_path, model, provider=provider, secrets=secrets) as running:
        alice = await running.user()
        await alice.open("s")
        await alice.text("s", "[[say: one]]")
        hangs.touch()
        try:
            await eventually(asked.exists)
            (tmp_path / "model-key").write_text("key-two")
            await eventually(lambda: not is_loaded(running, "s"))
            # And it has not been given up yet.
            assert running.node.secrets.problems == {}
        finally:
            hangs.unlink()


async def _said_with(user: object, model: ModelServer, key: str) -> bool:
    await user.text("s", "[[say: hello]]")  # type: ignore[attr-defined]
    return last_key(model) == key


async def test_new_connections_to_redis_have_the_new_password(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("first password")
    with valkey({"requirepass": '"first password"'}) as server:
        settings = make_settings(
            tmp_path,
            "http://127.0.0.1:9/v1",
            coordination={"url": f"redis://:{{file:{secret}}}@127.0.0.1:{server.port}/0"},
        )
        async with open_stores(settings) as stores:
            assert await stores.coordination.nodes() == []
            with Redis(port=server.port, password="first password") as admin:
                admin.config_set("requirepass", "second password")
                secret.write_text("second password")
                admin.client_kill_filter(_type="normal", skipme=True)
                assert await stores.coordination.nodes() == []
                admin.config_set("requirepass", "third password")
                admin.client_kill_filter(_type="normal", skipme=True)
                with pytest.raises(Exception, match="refuses the user or the password"):
                    await stores.coordination.nodes()


async def test_new_connections_to_postgresql_have_the_new_password(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("first password")
    with postgres_server() as server, psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute("CREATE ROLE aero LOGIN PASSWORD 'first password'")
        admin.execute("CREATE SCHEMA aerodrome AUTHORIZATION aero")
        _ask_for_passwords(server)
        url = f"postgresql://aero:{{file:{secret}}}@127.0.0.1:{server.port}/postgres"
        async with open_stores(make_settings(tmp_path, "http://127.0.0.1:9/v1", state={"url": url})) as stores:
            assert await stores.directory.count() == 0
            admin.execute("ALTER ROLE aero PASSWORD 'second password'")
            secret.write_text("second password")
            ended = admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'aero'")
            assert ended.rowcount > 0
            assert await stores.directory.count() == 0


def _ask_for_passwords(server: PostgresServer) -> None:
    rules = server.directory / "data" / "pg_hba.conf"
    text = rules.read_text()
    rules.write_text("host all aero 127.0.0.1/32 scram-sha-256\n" + text)
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute("SELECT pg_reload_conf()")
    # The server takes a moment to hear of it.
    wrong = server.url.replace("postgres@", "aero:wrong@")
    while True:
        try:
            psycopg.connect(wrong).close()
        except psycopg.OperationalError:
            return
        time.sleep(0.02)


async def test_a_round_that_fails_is_not_the_last(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model, secrets={"refresh": "20ms"}) as running:
        rounds: list[bool] = []

        class Broken(SecretKeeper):
            async def look(self, *, ask: bool = True) -> None:
                rounds.append(ask)
                raise RuntimeError("broken")

        keeper = asyncio.create_task(Broken(running.node.settings, running.node.sessions).run())
        await eventually(lambda: len(rounds) > 2)
        keeper.cancel()


async def test_a_changed_token_of_attached_servers_is_handed_on(tmp_path: Path, model: ModelServer) -> None:
    """Also after a reload, whose settings count from then on."""
    for name in ("first", "second"):
        (tmp_path / name).write_text("token-one")

    def settings(name: str) -> Settings:
        return make_settings(
            tmp_path, model.base_url, runtime={"attach_tokens": {"default": f"file:{tmp_path}/{name}"}}
        )

    async with host(tmp_path, model, runtime={"attach_tokens": {"default": f"file:{tmp_path}/first"}}) as running:
        node = running.node
        handed: list[dict[str, str]] = []

        async def reload(_: object, tokens: dict[str, str]) -> None:
            handed.append(dict(tokens))

        node.attached.reload = reload  # type: ignore[method-assign, assignment]
        await node.secrets.look()
        assert handed == []
        (tmp_path / "first").write_text("token-two")
        await node.secrets.look()
        assert handed == [{"default": "token-two"}]
        await node.reload(settings("second"))
        assert handed[1:] == [{"default": "token-one"}]
        (tmp_path / "first").write_text("token-three")
        (tmp_path / "second").write_text("token-four")
        await node.secrets.look()
        assert handed[2:] == [{"default": "token-four"}]
