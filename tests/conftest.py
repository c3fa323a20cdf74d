from __future__ import annotations

from hypothesis import settings

# Other work on the machine must not fail a property; pytest-timeout ends what hangs.
settings.register_profile("aerodrome", deadline=None)
settings.load_profile("aerodrome")


def pytest_unconfigure() -> None:
    # Late: tests that need no PostgreSQL must not need psycopg either.
    import sys

    if (postgres := sys.modules.get("support.postgres")) is not None:
        postgres.stop_shared_server()
