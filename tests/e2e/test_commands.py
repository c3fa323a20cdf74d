"""The commands that need a whole node: `demo`, `doctor`."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import sys
from pathlib import Path

import pytest
from rich.console import Console

from aerodrome.demo.model import ModelServer
from aerodrome.demo.tour import Tour
from support.server import aerodrome, write_config

pytestmark = pytest.mark.cli


async def test_the_demo_shows_the_main_job_and_ends_0() -> None:
    said = await aerodrome("demo", json_output=False)
    for act in (
        "Three users of two tenants talk at once",
        "Your name is Ada.",
        "404, as if there were none",
        "woken, ",
        "The turn was taken up again in another process",
        "she resumes the session that she had over HTTP",
        "another process has taken the turn up again",
        "The same connection, the same session object, the whole history",
        "aerodrome serve",
    ):
        assert act in said


async def test_the_demo_does_without_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "copilot", None)
    said = io.StringIO()
    await Tour(console=Console(file=said, width=200)).run()
    assert "Not shown, because the SDK is not installed: pip install 'aerodrome[sdk]'" in said.getvalue()
    assert "The turn was taken up again in another process" in said.getvalue()
    assert "aerodrome serve" in said.getvalue()


async def test_doctor_finds_a_healthy_machine_healthy(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url)
    findings = await aerodrome("doctor", "--config", str(config), "--json")
    assert {finding["check"] for finding in findings} == {
        "configuration",
        "Copilot CLI",
        "SDK",
        "provider",
        "secrets",
        "stores",
        "addresses",
        "telemetry",
        "disk",
        "process isolation",
        "sandbox",
        "runtime",
    }
    assert not [finding for finding in findings if finding["result"] == "failed"]


async def test_doctor_names_the_door_whose_address_is_taken(
    tmp_path: Path, model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, model.base_url)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("AERODROME_SERVER__GATEWAY", f"127.0.0.1:{taken.getsockname()[1]}")
        findings = await aerodrome("doctor", "--config", str(config), "--no-start", "--json")
    (found,) = [finding for finding in findings if finding["check"] == "addresses"]
    assert found["result"] == "warning"
    assert "set server.gateway" in found["detail"]


async def test_doctor_names_the_mend_of_what_is_wrong(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url, f'[runtime]\ncommand = "{tmp_path}/nowhere/copilot"')
    (tmp_path / "data").write_text("in the way")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "aerodrome",
        "doctor",
        "--config",
        str(config),
        "--json",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 1
    failed = {f["check"]: f["detail"] for f in json.loads(out) if f["result"] == "failed"}
    assert {"Copilot CLI", "stores", "runtime"} <= set(failed)
    assert "aerodrome runtime install" in failed["Copilot CLI"]
