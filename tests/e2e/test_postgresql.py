"""A node whose state is in PostgreSQL: nothing of it is on the node's own disk, and a restart of the server is waited
for."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from support.host import host
from support.postgres import PostgresServer, fresh_schema, server, shared_server

pytestmark = pytest.mark.cli


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    with server() as own:
        yield own


def state_on(url: str, **more: Any) -> dict[str, Any]:
    return {"url": url, "database_schema": fresh_schema(), **more}


async def test_another_node_with_an_empty_disk_has_everything(tmp_path: Path, model: ModelServer) -> None:
    state = state_on(shared_server().url)
    async with host(tmp_path / "first", model, state=state) as first:
        alice = await first.user("alice")
        await alice.open("s1", title="Invoices")
        await alice.say("s1", "one")
        key = await first.key("alice")
    async with host(tmp_path / "second", model, state=state) as second:
        alice = await second.user("alice")
        assert (await second.node.stores.keys.authenticate(key)).user == "alice"
        (listed,) = (await alice.http.get("/sessions")).json()["sessions"]
        assert (listed["id"], listed["last_turn"]["status"]) == ("s1", "completed")
        assert await alice.prompts_seen("s1") == ["one"]
        assert (await alice.http.delete("/sessions/s1")).status_code == 204
        assert (await alice.http.get("/sessions/s1")).status_code == 404
    assert not list(tmp_path.rglob("state.sqlite3"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_a_restart_of_the_server_in_mid_turn_costs_latency_only(
    tmp_path: Path, model: ModelServer, own_server: PostgresServer, how: signal.Signals
) -> None:
    async with host(tmp_path, model, state=state_on(own_server.url)) as running:
        alice, bob = await running.user("alice"), await running.user("bob")
        for user in (alice, bob):
            await user.open(f"s-{user is alice}")
        await alice.say("s-True", "one")
        turn = asyncio.create_task(alice.say("s-True", "[[gate: held]] two"))
        await model.gate_reached("held")
        await asyncio.to_thread(own_server.stop, how)
        # Its answer is to be stored, and another user comes with a first prompt, while the server is away.
        model.open_gate("held")
        first = asyncio.create_task(bob.say("s-False", "hello"))
        done, _ = await asyncio.wait({turn, first}, timeout=1.0)
        assert not done
        await asyncio.to_thread(own_server.start)
        assert (await turn)["turn"] == {**(await turn)["turn"], "status": "completed", "retried": False}
        assert (await first)["turn"]["status"] == "completed"
        assert await alice.prompts_seen("s-True") == ["one", "[[gate: held]] two"]
        assert await bob.prompts_seen("s-False") == ["hello"]


async def test_a_server_that_stays_away_is_told_and_nothing_acknowledged_is_lost(
    tmp_path: Path, model: ModelServer, own_server: PostgresServer
) -> None:
    async with host(tmp_path, model, state=state_on(own_server.url, patience="3s")) as running:
        alice = await running.user("alice")
        await alice.open("s1")
        await alice.say("s1", "one")
        await asyncio.to_thread(own_server.stop)
        problem = await alice.say("s1", "two", expect=503)
        assert problem["code"] == "store_unavailable"
        assert "PostgreSQL" in problem["detail"]
        assert problem["retryable"] is True
        await asyncio.to_thread(own_server.start)
        assert await alice.prompts_seen("s1") == ["one"]
