"""What a number of users needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from aerodrome.cli.main import app
from aerodrome.operators.capacity import MEASURED, Costs, Demand, Machine, plan

COSTS = Costs(node=100.0, runtime=150.0, session=3.0, turn=1.0, asleep=0.01)
MACHINE = Machine(memory=16_000.0, cores=4.0)
DEMAND = Demand(users=1_000, active=0.1, per_minute=30.0, isolated=False)


def test_it_is_the_formula() -> None:
    made = plan(DEMAND, COSTS, MACHINE)
    assert (made.active_users, made.loaded, made.asleep, made.runtimes) == (100, 100, 900, 2)
    # 10 turns run on average; 3 deviations more are 9.5.
    assert made.turns_at_once == 20
    assert made.nodes == 2  # one, and one that may fail
    assert made.memory == pytest.approx(100 + 2 * 150 + 100 * 3 + 20 * 1 + 900 * 0.01)
    assert made.users_per_gb == pytest.approx(1_000 / made.memory * 1e3)


def test_isolation_user_is_a_runtime_for_each_active_user() -> None:
    made = plan(replace(DEMAND, isolated=True), COSTS, MACHINE)
    assert made.runtimes == 100
    # 15.3 GB in machines of which 11.9 are planned with.
    assert made.nodes == 3
    assert made.runtimes_a_node == 50


def test_each_tenant_has_runtimes_of_its_own() -> None:
    assert plan(replace(DEMAND, tenants=40), COSTS, MACHINE).runtimes == 40
    assert plan(replace(DEMAND, tenants=1_000), COSTS, MACHINE).runtimes == 100  # no more than are active


def test_many_turns_need_processors() -> None:
    made = plan(replace(DEMAND, per_minute=3_000.0), COSTS, MACHINE)
    assert made.cores == pytest.approx(10.0)
    assert made.nodes == 5


@given(
    st.integers(1, 10**6),
    st.floats(0, 1),
    st.floats(0, 1e5),
    st.booleans(),
    st.integers(1, 1000),
    st.integers(1, 20),
)
def test_more_users_never_need_less(
    users: int, active: float, per_minute: float, isolated: bool, tenants: int, sessions: int
) -> None:
    demand = Demand(users, active, per_minute, isolated, tenants=tenants, sessions=sessions)
    few, many = plan(demand, COSTS, MACHINE), plan(replace(demand, users=2 * users), COSTS, MACHINE)
    assert many.memory >= few.memory
    assert many.nodes >= few.nodes
    assert few.loaded + few.asleep == users * sessions
    needed = few.nodes - 1
    assert few.runtimes_a_node * needed >= few.runtimes
    assert few.memory - needed * COSTS.node <= needed * (MACHINE.memory * MACHINE.used - COSTS.node) + 1e-6


def run(*arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(app, ["plan", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def test_the_command_plans() -> None:
    made = run("--users", "10000", "--active", "10%", "--isolation", "user", "--turns-per-minute", "1000")
    assert made["active_users"] == 1000
    assert made["runtimes"] == 1000
    assert made == run("--users", "10000", "--active", "0.1", "--isolation", "user", "--turns-per-minute", "1000")
    shown = CliRunner().invoke(app, ["plan", "--users", "10000"])
    assert "runtime.max_runtimes" in shown.stdout


@pytest.mark.parametrize("wrong", [("--active", "11"), ("--active", "x"), ("--memory", "big"), ("--turn-time", "soon")])
def test_what_makes_no_sense_is_refused(wrong: tuple[str, str]) -> None:
    done = CliRunner().invoke(app, ["plan", "--users", "10", *wrong])
    assert done.exit_code == 2


def test_the_page_has_the_constants_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "capacity.md").read_text()
    for name in ("node", "runtime", "session", "turn", "asleep"):
        assert f"| {name} | {getattr(MEASURED, name):g} |" in page
    shown = CliRunner().invoke(app, ["plan", "--users", "10000", "--active", "2%", "--isolation", "user"]).stdout
    assert "\n".join(line.rstrip() for line in shown.splitlines()) in page
