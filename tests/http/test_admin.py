"""The routes of operators: who may call them, and what they answer."""

from __future__ import annotations

import pytest

from aerodrome.errors import Conflict, NotFound
from aerodrome.operators.requests import State
from support.http_front import ALICE, Front

ROOT = {"Authorization": "Bearer aero_root"}
ROUTES = [
    ("GET", "/api/v1/admin/runtimes"),
    ("GET", "/api/v1/admin/nodes"),
    ("POST", "/api/v1/admin/runtimes/rt-1/recycle"),
    ("POST", "/api/v1/admin/runtimes/rt-1/drain"),
    ("POST", "/api/v1/admin/nodes/n1/drain"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_the_role_nothing_is_looked_up(front: Front, method: str, path: str) -> None:
    front.administration.failure = NotFound("there is none")
    answer = await front.client.request(method, path, headers=ALICE)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert front.administration.calls == []
    assert (await front.client.request(method, path, headers={"Authorization": ""})).status_code == 401


async def test_operators_see_nodes_and_runtimes(front: Front) -> None:
    runtimes = (await front.client.get("/api/v1/admin/runtimes", headers=ROOT)).json()["runtimes"]
    assert [row["id"] for row in runtimes] == ["rt-1"]
    (node,) = (await front.client.get("/api/v1/admin/nodes", headers=ROOT)).json()["nodes"]
    assert (node["name"], node["sessions"], node["age"]) == ("n1", 3, 60.0)
    assert node["rss_bytes"] == 300_000_010


@pytest.mark.parametrize("verb", ["recycle", "drain"])
async def test_a_runtime_is_retired(front: Front, verb: str) -> None:
    answer = await front.client.post(f"/api/v1/admin/runtimes/rt-1/{verb}", headers=ROOT)
    assert (answer.status_code, answer.json()["state"], answer.json()["seconds"]) == (200, "done", 2.5)
    front.administration.state = State.RUNNING
    answer = await front.client.post(f"/api/v1/admin/runtimes/rt-1/{verb}?wait=0", headers=ROOT)
    assert (answer.status_code, answer.json()["state"], answer.json()["seconds"]) == (202, "running", None)
    assert front.administration.calls == [(verb, "rt-1", "30.0"), (verb, "rt-1", "0.0")]
    answer = await front.client.post(f"/api/v1/admin/runtimes/rt-1/{verb}?wait=1000", headers=ROOT)
    assert answer.status_code == 400


async def test_a_node_is_asked_to_drain(front: Front) -> None:
    answer = await front.client.post("/api/v1/admin/nodes/n1/drain", headers=ROOT)
    assert (answer.status_code, answer.json()) == (202, {"name": "n1", "incarnation": "n1-1"})


@pytest.mark.parametrize(("error", "status"), [(NotFound("no such"), 404), (Conflict("two"), 409)])
@pytest.mark.parametrize(("method", "path"), ROUTES[2:])
async def test_errors_are_told(front: Front, method: str, path: str, error: Exception, status: int) -> None:
    front.administration.failure = error
    assert (await front.client.request(method, path, headers=ROOT)).status_code == status
