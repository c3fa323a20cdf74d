"""Which coordination store the settings lead to, and what is said when that cannot be."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path

import pytest

from aerodrome.app.stores import open_stores
from aerodrome.cli.doctor import _examine
from aerodrome.config.settings import Settings
from aerodrome.coordination.ports import Node
from aerodrome.errors import ConfigError, StoreUnavailable
from support.ports import free_port
from support.postgres import PostgresServer, fresh_schema
from support.stores import ValkeyServer


def settings_for(tmp_path: Path, url: str, **coordination: str) -> Settings:
    coordination = {"url": url, "patience": "30s", "ttl": "60s"} | coordination
    return Settings.model_validate({"server": {"data_dir": str(tmp_path)}, "coordination": coordination})


async def see_each_other(first: Settings, second: Settings) -> None:
    async with open_stores(first) as a, open_stores(second) as b:
        await a.coordination.join(Node("a", "a-1"), 60.0)
        assert [node.name for node in await b.coordination.nodes()] == ["a"]


async def test_nodes_meet_in_redis(tmp_path: Path, valkey_server: ValkeyServer) -> None:
    prefix = f"test-{secrets.token_hex(6)}"
    one, two = (settings_for(tmp_path / name, valkey_server.url, key_prefix=prefix) for name in "ab")
    await see_each_other(one, two)


async def test_nodes_meet_in_postgresql(tmp_path: Path, postgres_server: PostgresServer) -> None:
    schema = fresh_schema()
    one, two = (settings_for(tmp_path / name, postgres_server.url, database_schema=schema) for name in "ab")
    await see_each_other(one, two)


async def test_without_the_driver_it_is_said_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("aerodrome.coordination.backends.redis")]:
        monkeypatch.delitem(sys.modules, module)
    for module in ("redis", "redis.asyncio"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'aerodrome\[redis\]'"):
        async with open_stores(settings_for(tmp_path, "redis://127.0.0.1:1")):
            pass


async def test_a_store_that_is_away_stops_the_start(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(StoreUnavailable) as caught:
        async with open_stores(settings_for(tmp_path, f"redis://me:s3cret@127.0.0.1:{port}", patience="1s")):
            pass
    where = f"coordination.url = redis://me:***@127.0.0.1:{port}"
    assert caught.value.detail == f"{where}: the Redis server cannot be reached"
    assert caught.value.retryable
    json.dumps(caught.value.extra)


async def test_doctor_looks_at_the_store_and_tells_no_secret(tmp_path: Path, valkey_server: ValkeyServer) -> None:
    good = f"{valkey_server.url}?db=1".replace("/0?", "?")
    bad = f"redis://me:s3cret@127.0.0.1:{free_port()}"
    for url, status, words in (
        (good, "ok", f"coordination in {good}; 0 sessions, 0 running nodes"),
        (bad, "failed", "the Redis server cannot be reached"),
    ):
        patience = "1s" if status == "failed" else "30s"
        settings = settings_for(tmp_path, url, key_prefix=secrets.token_hex(6), patience=patience)
        findings = await _examine(settings, False)
        (stores,) = [finding for finding in findings if finding.check == "stores"]
        assert stores.result == status
        assert words in stores.detail
        assert "s3cret" not in str(findings)
