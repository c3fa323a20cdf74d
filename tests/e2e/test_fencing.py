"""A node that cannot say that it lives, with real runtimes and a store that others hold."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from aerodrome.demo.model import ModelServer
from support.host import Host, User, host
from support.server import aerodrome, new_key, serve, user_of, write_config
from support.waiting import until

TTL = 6.0
COORDINATION = {"heartbeat": "300ms", "ttl": f"{TTL:g}s"}


@asynccontextmanager
async def held(path: Path) -> AsyncIterator[None]:
    """Nobody else can write to this database: the store hangs, and then fails."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()


async def working(running: Host, model: ModelServer, prompt: str) -> tuple[User, asyncio.Task[dict[str, object]]]:
    alice = await running.user("alice")
    await alice.open("s1")
    await alice.say("s1", "hello")
    turn = asyncio.create_task(alice.say("s1", prompt))
    await model.gate_reached("held")
    return alice, turn


async def test_a_node_that_cannot_heartbeat_kills_what_is_at_work_and_takes_it_up_again(
    tmp_path: Path, model: ModelServer
) -> None:
    async with host(tmp_path, model, coordination=COORDINATION) as running:
        alice, turn = await working(running, model, "[[gate: held]] [[say: finished]]")
        process = running.process()
        async with held(tmp_path / "coordination.sqlite3"):
            began = time.monotonic()
            await until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
            # Before the leases run out, the last beat being older than the moment in which we took the store.
            assert time.monotonic() - began < TTL
            assert not turn.done()
            model.open_gate("held")
        answer = await turn
        assert answer["message"]["content"] == "finished"  # type: ignore[index]
        assert answer["turn"]["retried"]  # type: ignore[index]
        assert await alice.prompts_seen("s1") == ["hello", "[[gate: held]] [[say: finished]]"]


async def test_a_short_outage_of_the_stores_fails_nothing(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model, coordination=COORDINATION) as running:
        alice, turn = await working(running, model, "[[gate: held]] [[say: finished]]")
        process = running.process()
        async with held(tmp_path / "state.sqlite3"):
            model.open_gate("held")
            other = asyncio.create_task(alice.open("s2"))
            another = asyncio.create_task(alice.say("s1", "more"))
            await asyncio.wait({turn, other, another}, timeout=7)  # longer than a write waits for a lock
            assert not turn.done()
        assert (await turn)["message"]["content"] == "finished"  # type: ignore[index]
        await other
        await another
        assert await alice.prompts_seen("s1") == ["hello", "[[gate: held]] [[say: finished]]", "more"]
        assert process.is_running()


async def test_a_node_that_was_paused_past_its_lease_stores_nothing_and_goes_on_anew(
    tmp_path: Path, model: ModelServer
) -> None:
    config = write_config(tmp_path, model.base_url, ttl="4s")
    key = await new_key(config)
    async with (
        serve(config) as first,
        serve(config) as second,
        user_of(first, key) as alice,
        user_of(second, key) as alice_there,
    ):
        await alice.open("s1")
        await alice.say("s1", "one")
        turn = asyncio.create_task(alice.say("s1", "[[gate: held]] [[say: stale]]", expect=503))
        await model.gate_reached("held")
        await asyncio.to_thread(first.pause_between_writes)
        try:
            async with asyncio.timeout(60):
                while (await alice_there.http.post("/sessions/s1/messages", json={"prompt": "two"})).is_error:
                    await asyncio.sleep(0.1)
            model.open_gate("held")
        finally:
            first.send_signal(signal.SIGCONT)
        problem = await turn
        assert problem["code"] in ("turn_interrupted", "session_busy")
        assert await alice_there.prompts_seen("s1") == ["one", "two"]
        # The paused one is a node again, and no process of its earlier life is left at work.
        async with asyncio.timeout(60):
            while len(await aerodrome("nodes", "ls", "--config", str(config), "--json")) < 2:
                await asyncio.sleep(0.1)
        await alice.open("s2")
        await alice.say("s2", "hello")
