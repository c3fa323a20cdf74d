from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

# What is printed is compared with the pages: as wide and as plain as on any other machine. Typer looks when it is
# imported, and takes a job of GitHub Actions for a terminal.
for _name in ("COLUMNS", "LINES", "FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
    os.environ.pop(_name, None)

# What a shell starts in the background ignores Ctrl-C, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Other work on the machine must not fail a property; pytest-timeout ends what hangs.
settings.register_profile("aerodrome", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("aerodrome")


def pytest_unconfigure() -> None:
    # Late: tests that need no PostgreSQL must not need psycopg either.
    import sys

    if (stores := sys.modules.get("support.stores")) is not None:
        stores.stop_shared_valkey()
    if (postgres := sys.modules.get("support.postgres")) is not None:
        postgres.stop_shared_server()


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A command that was run in this process has had its logs written to the standard error of its test."""
    before = structlog.get_config() if structlog.is_configured() else None
    yield
    if before is not None:
        structlog.configure(**before)
    elif structlog.is_configured():
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def valkey_server() -> Any:
    """See `support.stores`."""
    from support.stores import shared_valkey

    return shared_valkey()


@pytest.fixture(scope="session")
def postgres_server() -> Any:
    """See `support.stores`."""
    from support.stores import shared_postgres

    return shared_postgres()
