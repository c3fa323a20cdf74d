"""The endpoints that every test of the SDKs runs against."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from aerodrome.demo.model import ModelServer
from support.cli import cli
from support.sdk_clients import Endpoint, direct_endpoint, forwarded_endpoint, gateway_endpoint
from support.session_fs import stored_endpoint

__all__ = ["cli"]

#: "direct": the CLI itself, which shows that a test is right. "gateway": Aerodrome in its place. "forwarded": the same,
#: where another node than the client's runs the session. A fourth, "stored", is the CLI with its session files in our
#: store, to find out what that alone changes.
ENDPOINTS = ("direct", "gateway", "forwarded")


@pytest.fixture(
    scope="module",
    # The pinned CLI by itself does not change from day to day.
    params=[pytest.param(kind, marks=pytest.mark.soak if kind == "direct" else ()) for kind in ENDPOINTS],
)
def endpoint_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(endpoint_kind: str) -> Iterator[ModelServer]:
    """One for each endpoint: gates that one has opened are shut for the other."""
    with ModelServer.in_thread() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def endpoint(
    endpoint_kind: str, cli: Path, model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Endpoint]:
    """One for all tests of a module: its sessions are the tests' own, its process is not."""
    directory = tmp_path_factory.mktemp(endpoint_kind)
    match endpoint_kind:
        case "direct":
            opened = direct_endpoint(directory, cli, model)
        case "stored":
            opened = stored_endpoint(directory, cli, model)
        case "forwarded":
            opened = forwarded_endpoint(directory, model)
        case _:
            opened = gateway_endpoint(directory, model)
    async with opened as found:
        yield found
