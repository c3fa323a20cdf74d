from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import structlog


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="replay this one run of the simulation, and print it")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int | None:
    """The run to replay. The option is only known when this directory, or a file in it, was asked for."""
    asked = request.config.getoption("--seed", default=None)
    if asked is None and "SIMULATION_SEED" in os.environ:
        asked = os.environ["SIMULATION_SEED"]
    return None if asked is None else int(asked)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The nodes' own log lines are of no use here: they have no virtual time, and cost half of the real one."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.configure(**before)
