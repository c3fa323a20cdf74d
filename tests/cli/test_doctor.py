"""What `aerodrome doctor` says of secrets, models and stores, without starting anything."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from aerodrome.app.node import Node
from aerodrome.cli.doctor import Finding, _examine
from aerodrome.config import load_settings
from support.host import make_settings
from support.ports import free_port


async def found(check: str, tmp_path: Path, base_url: str | None = None, **sections: Any) -> Finding:
    settings = make_settings(tmp_path, base_url or f"http://127.0.0.1:{free_port()}/v1", **sections)
    return next(finding for finding in await _examine(settings, start=False) if finding.check == check)


@asynccontextmanager
async def endpoint(status: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A model's address that answers everything with this status, and what it was asked."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", asked


async def test_what_comes_with_the_defaults_is_no_secret(tmp_path: Path) -> None:
    settings = load_settings(overrides={"server.data_dir": str(tmp_path / "data")}, env={})
    (finding,) = [finding for finding in await _examine(settings, start=False) if finding.check == "secrets"]
    assert finding == Finding("secrets", "ok", "none")


async def test_a_model_that_is_not_there_is_told_before_the_first_turn(tmp_path: Path) -> None:
    finding = await found("provider", tmp_path)
    assert finding.result == "warning"
    assert finding.detail.startswith("turns will fail: provider.base_url = http://127.0.0.1:")
    assert "does not answer" in finding.detail


async def test_a_token_that_is_missing_is_told_beside_what_else_is_wrong(tmp_path: Path) -> None:
    github = {"type": "github", "github_token": None}
    finding = await found("provider", tmp_path, provider={"tenants": {"acme": github}})
    assert finding.result == "warning"
    assert "provider.tenants.acme.github_token is missing" in finding.detail
    assert "provider.base_url = " in finding.detail


@pytest.mark.cli
async def test_a_node_without_a_token_says_so_when_it_starts(tmp_path: Path) -> None:
    for provider, warned in (
        ({"tenants": {"acme": {"type": "github"}}}, [["provider.tenants.acme"]]),
        ({"tenants": {"acme": {"type": "github", "github_token": "t0ken"}}}, []),
    ):
        with capture_logs() as logs:
            async with Node(make_settings(tmp_path, "http://127.0.0.1:9/v1", provider=provider)):
                pass
        assert [line["sections"] for line in logs if line["event"] == "provider.no_token"] == warned


@pytest.mark.parametrize(
    ("kind", "header"),
    [("openai", b"authorization: bearer k3y"), ("azure", b"api-key: k3y"), ("anthropic", b"x-api-key: k3y")],
)
async def test_a_key_that_is_refused_is_told_and_not_shown(tmp_path: Path, kind: str, header: bytes) -> None:
    async with endpoint("401 Unauthorized") as (url, asked):
        provider = {"type": kind, "base_url": url, "api_key": "k3y", "model": "m"}
        finding = await found("provider", tmp_path, url, provider={"tenants": {"acme": provider}})
    # The common one, which has no key, is asked, too.
    (with_key,) = [request for request in asked if b"k3y" in request]
    assert with_key.startswith(b"GET /v1/models HTTP/1.1")
    assert header in with_key.lower()
    assert finding.result == "warning"
    assert f"{url} answers 401: provider.tenants.acme.api_key is refused" in finding.detail
    assert "k3y" not in finding.detail


@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden", "404 Not Found"])
async def test_an_endpoint_need_have_no_list_of_models(tmp_path: Path, status: str) -> None:
    async with endpoint(status) as (url, _):
        assert (await found("provider", tmp_path, url)).result == "ok"


async def test_a_key_that_no_request_can_carry_is_not_shown(tmp_path: Path) -> None:
    async with endpoint("200 OK") as (url, asked):
        provider = {"type": "openai", "base_url": url, "api_key": "k3y\nk3y", "model": "m"}
        finding = await found("provider", tmp_path, url, provider=provider)
    assert finding.result == "warning"
    assert "provider.api_key has a character" in finding.detail
    assert "k3y" not in finding.detail
    assert not asked


async def test_runtimes_with_a_way_of_their_own_are_not_second_guessed(tmp_path: Path) -> None:
    finding = await found("provider", tmp_path, runtime={"env": {"HTTPS_PROXY": "http://proxy.example:3128"}})
    assert finding.result == "ok"


async def test_a_store_that_cannot_be_opened_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    finding = await found("stores", tmp_path, server={"data_dir": str(tmp_path / "data")})
    assert finding == Finding(
        "stores", "failed", f"server.data_dir = {tmp_path}/data: state.sqlite3 cannot be made: File exists"
    )


async def test_the_directory_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, as which these tests may run, everything may be used."""
    stat = os.stat

    def refuse(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if Path(path).name == "restore.partial":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refuse)
    finding = await found("stores", tmp_path, server={"data_dir": str(tmp_path / "data")})
    assert finding.result == "failed"
    assert finding.detail.startswith(f"server.data_dir = {tmp_path}/data: this user may not use it; run the command as")
