"""What `aerodrome doctor` says of attached servers."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from aerodrome.app.attached_doctor import examine_attached
from aerodrome.cli.doctor import Finding, _examine
from aerodrome.demo.model import ModelServer
from support.attached import Names, Servers, attached_settings, of_acme

pytestmark = pytest.mark.cli


async def finding(settings: Any) -> Finding | None:
    return next((found for found in await _examine(settings, start=False) if found.check == "attached servers"), None)


async def test_each_server_is_connected_to(tmp_path: Path, volume: Path, servers: Servers, model: ModelServer) -> None:
    good, elsewhere = await servers.start(), await servers.start(own_files=True)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hung = f"127.0.0.1:{silent.getsockname()[1]}"
        entries = [of_acme(good), of_acme(elsewhere), {"address": hung}]
        settings = attached_settings(tmp_path / "d", model, volume, entries, runtime={"ping_timeout": "5s"})
        found = await finding(settings)
    assert found is not None
    assert found.result == "warning", "one can be used"
    assert found.detail.startswith("1 of 3 can be used; ")
    assert f"{elsewhere.address}: its session-state is not the directory of acme" in found.detail
    assert f"{hung}: it does not answer within 5 s" in found.detail
    assert good.address not in found.detail
    assert await finding(attached_settings(tmp_path / "d", model, volume, [of_acme(good)])) == Finding(
        "attached servers", "ok", "1 of 1 can be used"
    )
    assert await finding(attached_settings(tmp_path / "d", model, volume, [])) is None


async def test_without_any_that_can_be_used_it_fails(
    tmp_path: Path, volume: Path, servers: Servers, model: ModelServer
) -> None:
    server = await servers.start(token="another")
    settings = attached_settings(tmp_path / "d", model, volume, [of_acme(server)])
    found = await finding(settings)
    assert found is not None
    assert (found.result, "AUTHENTICATION_FAILED" in found.detail) == ("failed", True)


async def test_names_and_what_they_lead_to(tmp_path: Path, volume: Path, servers: Servers, model: ModelServer) -> None:
    server = await servers.start()
    addresses = [{"address": f"{name}:{server.port}"} for name in ("cli-1", "cli-2", "cli-3")]
    settings = attached_settings(tmp_path / "d", model, volume, addresses)
    found = await examine_attached(settings, Names(**{"cli-1": ["127.0.0.1"], "cli-2": ["127.0.0.1"]}))
    assert found.pop(f"cli-1:{server.port} (127.0.0.1:{server.port})") is None
    assert "the same server" in str(found.pop(f"cli-2:{server.port} (127.0.0.1:{server.port})"))
    assert "cannot be looked up" in str(found.pop(f"cli-3:{server.port}"))
    assert found == {}
