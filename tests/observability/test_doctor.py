"""What `aerodrome doctor` says of the settings of telemetry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from aerodrome.cli.doctor import Finding, _examine
from aerodrome.config import load_settings
from aerodrome.errors import ConfigError
from support.collector import collector
from support.host import make_settings


async def finding(tmp_path: Path, **telemetry: Any) -> Finding:
    settings = make_settings(tmp_path, "http://127.0.0.1:9/v1", telemetry=telemetry)
    return next(found for found in await _examine(settings, start=False) if found.check == "telemetry")


async def test_what_is_off_is_said_to_be(tmp_path: Path) -> None:
    assert await finding(tmp_path) == Finding("telemetry", "ok", "nothing is measured; no traces are sent")


async def test_the_collector_is_asked(tmp_path: Path) -> None:
    with collector() as otel:
        telemetry = {"traces": otel.url, "trace_headers": "x-api-key=hidden", "metrics_token": "hidden, too"}
        found = await finding(tmp_path, **telemetry)
    assert found == Finding("telemetry", "ok", f"metrics are served; traces go to {otel.url}")
    ((path, headers, body),) = otel.requests
    assert (path, headers["x-api-key"], body) == ("/v1/traces", "hidden", b"")
    found = await finding(tmp_path, **telemetry)
    assert found.result == "warning"
    assert "does not answer" in found.detail
    assert "hidden" not in found.detail


@pytest.mark.parametrize("headers", ["just-a-key", "a name=just-a-key", "=just-a-key", "x=just-a-key\\ny=2", "x=1,"])
def test_headers_that_are_none_are_refused(tmp_path: Path, headers: str) -> None:
    (tmp_path / "aerodrome.toml").write_text(f'[telemetry]\ntrace_headers = "{headers}"\n')
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "aerodrome.toml", env={})
    (problem,) = caught.value.extra["problems"]
    assert problem.startswith(f"{tmp_path}/aerodrome.toml:2: telemetry.trace_headers: expected name=value")
    assert "just-a-key" not in f"{caught.value} {problem}"


async def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    monkeypatch.delitem(sys.modules, "aerodrome.observability.tracing", raising=False)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk.")]:
        monkeypatch.delitem(sys.modules, name)
    found = await finding(tmp_path, traces="http://127.0.0.1:9")
    assert found.result == "failed"
    assert "aerodrome[otel]" in found.detail
