"""A canary in the place of every secret: whatever the node does, it is nowhere but where it has to be.

A fleet of one node works, fails, is asked about and dies; then all that it has printed, answered, stored and left in
`/proc` is searched.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from redis import Redis

from aerodrome.config import load_settings
from aerodrome.config.secret_listing import cells_of
from aerodrome.demo.model import ModelServer
from support.postgres import server as postgres_server
from support.sdk_clients import Endpoint, connected
from support.server import serve, user_of
from support.stores import ValkeyServer, valkey
from support.vault import VaultServer

pytestmark = [pytest.mark.cli, pytest.mark.timeout(600)]

_CONFIG = """
[server]
http = "127.0.0.1:0"
gateway = "127.0.0.1:0"
data_dir = "{directory}/data"
drain_timeout = "10s"
[state]
url = "env:CANARY_POSTGRES"
database_schema = "a"
patience = "2s"
[coordination]
url = "{redis}"
heartbeat = "200ms"
ttl = "15s"
patience = "2s"
[provider]
type = "openai"
base_url = "{model}"
api_key = "file:{directory}/model-key"
model = "gpt-4.1"
[provider.tenants.vaulted]
type = "openai"
base_url = "{model}"
api_key = "vault:secret/aerodrome#key"
model = "gpt-4.1"
[provider.tenants.commanded]
type = "openai"
base_url = "{model}"
api_key = "command:/bin/sh {directory}/print-key"
model = "gpt-4.1"
[provider.tenants.plain]
type = "anthropic"
base_url = "{model}"
api_key = "canary-plain"
[provider.tenants.github]
type = "github"
github_token = "env:CANARY_GITHUB"
[secrets]
refresh = "200ms"
[runtime]
env = {{ CANARY = "canary-runtime-env" }}
warm = 1
[telemetry]
log_level = "debug"
"""
#: Every one contains this, and nothing else that is searched does.
CANARY = "canary-"


class Watch:
    """What was seen, by where."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}

    def add(self, where: str, text: str | bytes) -> None:
        self.seen[where] = text.decode("utf-8", "replace") if isinstance(text, bytes) else text

    def command(self, where: str, *arguments: str, environment: dict[str, str], expect: int | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "aerodrome", *arguments],
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, **environment},
        )
        assert expect is None or done.returncode == expect, done.stderr
        self.add(where, done.stdout + done.stderr)
        return done.stdout

    def process(self, process: psutil.Process) -> None:
        """What every user of the machine may see: not the environment, which is the owner's."""
        with suppress(OSError):  # it has ended, such as a program that prints a secret
            self.add(f"the arguments of {process.pid}", Path(f"/proc/{process.pid}/cmdline").read_bytes())

    def files(self, directory: Path) -> None:
        for parent, _, names in os.walk(directory):  # which passes over what is removed meanwhile
            for path in (Path(parent, name) for name in names):
                if path.is_file() and not path.is_symlink():
                    with suppress(FileNotFoundError):
                        self.add(str(path), path.read_bytes())

    def valkey(self, server: ValkeyServer, password: str) -> None:
        with Redis(port=server.port, password=password) as client:
            for key in client.scan_iter():
                kind = client.type(key)
                self.add(f"{key!r} in Valkey", repr(client.hgetall(key) if kind == b"hash" else client.dump(key)))

    def postgres(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            tables = connection.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'a'")
            for (name,) in tables.fetchall():
                rows = connection.execute(f'SELECT t::text FROM a."{name}" AS t'.encode()).fetchall()
                self.add(f"{name} in PostgreSQL", repr(rows))
                for (row,) in rows:
                    # What is stored as bytes is printed in hexadecimal.
                    assert CANARY.encode().hex() not in row, name

    def found(self) -> dict[str, str]:
        found = {}
        for where, text in self.seen.items():
            if (at := text.find(CANARY)) >= 0:
                found[where] = text[max(0, at - 100) : at + 60]
        return found


async def test_secrets_are_nowhere_but_where_they_are_needed(tmp_path: Path, model: ModelServer) -> None:
    watch = Watch()
    (tmp_path / "model-key").write_text("canary-model-key")
    (tmp_path / "print-key").write_text("echo canary-command\necho canary-standard-error >&2\n")
    (tmp_path / "redis").write_text("canary-redis")
    with VaultServer() as vault:
        vault.tokens.add("canary-vault-token")
        vault.secret["aerodrome"] = {"key": "canary-vaulted"}
        with valkey({"requirepass": "canary-redis"}) as redis, postgres_server() as postgres:
            environment = {
                "VAULT_ADDR": vault.url,
                "VAULT_TOKEN": "canary-vault-token",
                "CANARY_GITHUB": "canary-github",
                "CANARY_POSTGRES": postgres.url.replace("postgres@", "postgres:canary-postgres@"),
            }
            config = tmp_path / "aerodrome.toml"
            config.write_text(
                _CONFIG.format(
                    directory=tmp_path,
                    model=model.base_url,
                    redis=f"redis://:{{file:{tmp_path}/redis}}@127.0.0.1:{redis.port}/0",
                )
            )
            _settings(watch, config, environment)
            await asyncio.to_thread(_commands, watch, config, environment)
            await _node(watch, config, environment, tmp_path)
            watch.valkey(redis, "canary-redis")
            watch.postgres(postgres.url)
            watch.files(tmp_path / "data")
            watch.add("the log of PostgreSQL", (postgres.directory / "log").read_bytes())
        # The stores have gone.
        await asyncio.to_thread(_commands_that_fail, watch, config, environment)
    # They were used, all the same.
    used = {_key(request.headers) for request in model.requests}
    assert {"canary-model-key", "canary-vaulted", "canary-command"} <= used
    assert len(watch.seen) > 30
    assert watch.found() == {}


def _key(headers: dict[str, str]) -> str:
    return {name.lower(): value for name, value in headers.items()}.get("authorization", "").removeprefix("Bearer ")


def _settings(watch: Watch, config: Path, environment: dict[str, str]) -> None:
    settings = load_settings(config, env={**os.environ, **environment})
    cells = dict(cells_of(settings))
    values = [cell.current() for cell in cells.values()]
    assert sum(CANARY in value for value in values) == 7, cells
    watch.add("repr of settings", repr(settings) + str(settings) + repr(cells) + repr(settings.state.url))


def _commands(watch: Watch, config: Path, environment: dict[str, str]) -> None:
    named = ["--config", str(config)]
    watch.command("migrate", "migrate", *named, environment=environment, expect=0)
    for user, tenant in (("alice", "acme"), ("alice", "vaulted"), ("alice", "commanded"), ("alice", "plain")):
        made = watch.command(
            f"keys create {tenant}", "keys", "create", *named, "--tenant", tenant, "--user", user, "--json",
            environment=environment, expect=0,
        )  # fmt: skip
        (config.parent / f"key-{tenant}").write_text(json.loads(made)["key"])
    for verb in (["keys", "ls"], ["sessions", "ls"], ["nodes", "ls"], ["runtimes", "ls"]):
        watch.command(" ".join(verb), *verb, *named, environment=environment, expect=0)
    for more in ([], ["--json"]):
        told = watch.command(f"doctor {more}", "doctor", "--no-start", *named, *more, environment=environment)
        for where in (
            f"provider.api_key from file:{config.parent}/model-key",
            "provider.tenants.vaulted.api_key from vault:secret/aerodrome#key",
            "provider.tenants.commanded.api_key from command:/bin/sh ...",
            "provider.tenants.plain.api_key from the configuration itself",
            "provider.tenants.github.github_token from env:CANARY_GITHUB",
            "state.url from env:CANARY_POSTGRES",
            f"coordination.url from file:{config.parent}/redis",
        ):
            assert where in told


async def _node(watch: Watch, config: Path, environment: dict[str, str], tmp_path: Path) -> None:
    async with serve(config, environment=environment) as server:
        process = psutil.Process(server.process.pid)
        for tenant in ("acme", "vaulted", "commanded", "plain"):
            key = (tmp_path / f"key-{tenant}").read_text()
            async with user_of(server, key) as user:
                await user.open("s")
                for prompt in ("[[say: hello]]", "[[fail: 401]]"):
                    answer = await user.http.post("/sessions/s/messages", json={"prompt": prompt})
                    watch.add(f"the answer to {tenant} {prompt}", answer.text)
                for path in ("/sessions", "/sessions/s", "/sessions/s/messages", "/sessions/none"):
                    watch.add(f"{path} of {tenant}", (await user.http.get(path)).text)
        async with connected(Endpoint("gateway", server.gateway, (tmp_path / "key-acme").read_text())) as client:
            chat = await client.create(session_id="native")
            assert await chat.turn("[[say: hello]]") == "hello"
            watch.add("what a native client is told", repr(chat.events))
        async with httpx.AsyncClient(base_url=server.url) as anybody:
            for path in ("/health", "/ready", "/openapi.json", "/metrics", "/api/v1/sessions"):
                watch.add(path, (await anybody.get(path)).text)
        # A secret that is lost, and one that is changed, are told in the log.
        (tmp_path / "model-key").unlink()
        deadline = time.monotonic() + 60
        while "secret.kept" not in server.log.read_text():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        (tmp_path / "model-key").write_text("canary-model-key-two")
        for one in (process, *process.children(recursive=True)):
            watch.process(one)
        watch.files(tmp_path / "data")
        # With the stack of all threads, as `faulthandler` of a crash prints it.
        server.send_signal(signal.SIGABRT)
        await server.process.wait()
        watch.add("the log of the node", server.log.read_bytes())


def _commands_that_fail(watch: Watch, config: Path, environment: dict[str, str]) -> None:
    """The stores have gone, or are named wrongly."""
    named = ["--config", str(config)]
    wrong = {
        "no store": environment | {"PYTHONFAULTHANDLER": "1"},
        "an address that libpq does not understand": environment
        | {"CANARY_POSTGRES": "postgresql://u:canary-a%ZZb@h:x/y?sslmod=canary-c"},
        "an address of another kind": environment | {"CANARY_POSTGRES": "mysql://u:canary-b@h/y"},
        "no address": environment | {"CANARY_POSTGRES": ""},
        "Vault refuses": environment | {"VAULT_TOKEN": "canary-wrong"},
        "settings of the wrong kind": environment
        | {"AERODROME_PROVIDER__API_KYE": "canary-a", "AERODROME_STATE__URL": "mysql://u:canary-b c@h/y"},
    }
    for what, variables in wrong.items():
        for verb in (["serve"], ["doctor", "--no-start"]):
            watch.command(f"{verb[0]}, {what}", "--debug", *verb, *named, environment=variables)
    program = (
        "import faulthandler, sys, traceback\n"
        "from aerodrome.config import load_settings\n"
        "settings = load_settings(sys.argv[1])\n"
        "try:\n"
        "    raise RuntimeError(settings)\n"
        "except RuntimeError as error:\n"
        "    print(''.join(traceback.TracebackException.from_exception(error, capture_locals=True).format()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(config)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert "RuntimeError" in done.stdout + done.stderr
    watch.add("a traceback with local variables", done.stdout + done.stderr)
