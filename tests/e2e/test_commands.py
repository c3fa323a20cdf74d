"""The commands that need a whole node: `demo`, `doctor`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
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
        "aerodrome serve",
    ):
        assert act in said


async def test_doctor_finds_a_healthy_machine_healthy(tmp_path: Path, model: ModelServer) -> None:
    config = write_config(tmp_path, model.base_url)
    findings = await aerodrome("doctor", "--config", str(config), "--json")
    assert {finding["check"] for finding in findings} == {
        "configuration",
        "Copilot CLI",
        "SDK",
        "provider",
        "stores",
        "address",
        "disk",
        "process isolation",
        "runtime",
    }
    assert not [finding for finding in findings if finding["result"] == "failed"]


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
