"""A runtime's own traces leave its sandbox where the operator has named the collector, and not otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from support.collector import collector
from support.host import host, until

pytestmark = pytest.mark.cli


@pytest.mark.parametrize("named", [True, False])
async def test_traces_reach_a_collector_that_is_named(tmp_path: Path, model: ModelServer, named: bool) -> None:
    with collector() as otel, collector() as other:
        sections: dict[str, dict[str, Any]] = {
            "telemetry": {"traces": otel.url, "runtime_traces": True},
            "runtime": {"launcher": "sandbox"},
            "sandbox": {"allow": [(otel if named else other).url.removeprefix("http://")]},
        }
        async with host(tmp_path, model, **sections) as running:
            alice = await running.user()
            await alice.open("s1")
            assert await alice.text("s1", "hello") == "echo: hello"
            if named:
                await until(lambda: bool(otel.named("invoke_agent")), timeout=60)
        # The node is in no sandbox; and a runtime sends what it has when it ends.
        assert len(otel.named("turn")) == 1
        assert bool(otel.named("invoke_agent")) is named
