from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings

# Other work on the machine must not fail a property; pytest-timeout ends what hangs.
settings.register_profile("aerodrome", deadline=None)
settings.load_profile("aerodrome")


def pytest_unconfigure() -> None:
    # Late: tests that need no PostgreSQL must not need psycopg either.
    import sys

    if (stores := sys.modules.get("support.stores")) is not None:
        stores.stop_shared_valkey()
    if (postgres := sys.modules.get("support.postgres")) is not None:
        postgres.stop_shared_server()


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
