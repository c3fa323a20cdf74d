"""Hibernation, caps, expiry, deletion, drain: what is loaded when, and what remains."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from support.host import Host, host, tables_of, until

pytestmark = pytest.mark.cli


async def test_trap_10_the_least_recently_used_idle_session_makes_room(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model, runtime={"max_sessions": 3, "max_runtimes": 1}) as running:
        alice = await running.user("alice")
        for name in ("a", "b", "c"):
            await alice.open(name)
            await alice.say(name, f"I am {name}")
        await alice.say("a", "used again")  # b is now the least recently used, though a came first
        in_turn = asyncio.create_task(alice.say("c", "[[gate: held]] long"))
        await model.gate_reached("held")
        await alice.open("d")
        await alice.say("d", "new")
        states = {s["id"]: s["state"] for s in (await alice.http.get("/sessions")).json()["sessions"]}
        assert states == {"a": "resident", "b": "hibernated", "c": "running", "d": "resident"}
        assert running.runtime().reserved == 3
        model.open_gate("held")
        await in_turn
        assert await alice.prompts_seen("b") == ["I am b"]


async def test_a_runtime_is_freed_for_others_when_all_are_taken(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model, isolation={"default": "user"}, runtime={"max_runtimes": 2}) as running:
        for name in ("u1", "u2", "u3"):
            user = await running.user(name)
            await user.open(f"chat-{name}")
            await user.say(f"chat-{name}", "remember the word plum")
        assert len(running.node.pool.runtimes) <= 2
        u1 = await running.user("u1")
        assert "plum" in await u1.text("chat-u1", "which word did I ask you to remember?")


async def test_a_tenant_past_its_runtimes_frees_its_own_and_leaves_the_others(
    tmp_path: Path, model: ModelServer
) -> None:
    ceilings: dict[str, dict[str, Any]] = {"isolation": {"default": "user"}, "limits": {"max_runtimes_per_tenant": 2}}
    async with host(tmp_path, model, **ceilings) as running:
        zoe = await running.user("zoe", tenant="globex")
        await zoe.open("hers")
        await zoe.say("hers", "hello")  # the least recently used of all
        process = running.process("globex", "zoe")
        for name in ("u1", "u2", "u3"):
            user = await running.user(name)
            await user.open(f"chat-{name}")
            await user.say(f"chat-{name}", "remember the word plum")
        claimed = [runtime.key.user for runtime in running.node.pool.runtimes if runtime.key is not None]
        assert sorted(map(str, claimed)) == ["u2", "u3", "zoe"]
        assert process.is_running()
        u1 = await running.user("u1")
        assert "plum" in await u1.text("chat-u1", "which word did I ask you to remember?")
        users = [(name, await running.user(name)) for name in ("u1", "u3")]
        held = [asyncio.create_task(user.say(f"chat-{name}", "[[gate: held]] long")) for name, user in users]
        await model.gate_reached("held", 2)
        assert await zoe.text("hers", "[[say: now]]") == "now"
        model.open_gate("held")
        await asyncio.gather(*held)


async def test_no_room_within_the_time_is_told_with_a_hint(tmp_path: Path, model: ModelServer) -> None:
    limits = {"max_runtimes": 1, "capacity_timeout": "300ms"}
    async with host(tmp_path, model, isolation={"default": "user"}, runtime=limits) as running:
        u1, u2 = await running.user("u1"), await running.user("u2")
        await u1.open("one")
        await u2.open("two")
        in_turn = asyncio.create_task(u1.say("one", "[[gate: held]] long"))
        await model.gate_reached("held")
        response = await u2.http.post("/sessions/two/messages", json={"prompt": "hello"})
        assert response.status_code == 503
        assert response.json()["code"] == "capacity"
        assert int(response.headers["Retry-After"]) >= 1
        model.open_gate("held")
        await in_turn
        # The other one has to be put to sleep and its runtime to be ended, which may take longer than that.
        while (response := await u2.http.post("/sessions/two/messages", json={"prompt": "[[say: now]]"})).is_error:
            assert response.json()["code"] == "capacity", response.text
        assert response.json()["message"]["content"] == "now"


async def test_trap_03_idle_sessions_hibernate_and_idle_runtimes_stop(tmp_path: Path, model: ModelServer) -> None:
    times = {"sessions": {"idle_timeout": "300ms"}, "runtime": {"idle_timeout": "300ms"}}
    async with host(tmp_path, model, isolation={"default": "user"}, **times) as running:
        alice = await running.user("alice")
        await alice.open("s1")
        await alice.say("s1", "remember the word plum")
        process = running.process(user="alice")
        await until(lambda: not running.node.pool.runtimes and not process.is_running())
        assert running.node.sessions.live == []
        assert (await alice.http.get("/sessions/s1")).json()["state"] == "hibernated"
        assert "plum" in await alice.text("s1", "which word did I ask you to remember?")


async def test_trap_14_expiry_counts_from_the_last_use_and_spares_a_session_in_a_turn(
    tmp_path: Path, model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> None:
        pass

    async with host(tmp_path, model) as running:
        # Else it would delete by itself now and then, such as between two of these lines.
        monkeypatch.setattr(running.node.janitor, "sweep", never)
        alice = await running.user("alice")
        for name in ("old", "used", "busy"):
            await alice.open(name)
            await alice.say(name, "hello")
        directory = running.node.stores.directory
        janitor, service = running.node.janitor, running.node.sessions
        month = 31 * 86400
        for live in service.live:
            assert await service.hibernate(live)
        await until_quiet(running)
        await age_all(tmp_path, month)
        await alice.say("used", "still needed")
        in_turn = asyncio.create_task(alice.say("busy", "[[gate: held]] long"))
        await model.gate_reached("held")
        await age_all(tmp_path, month, only="busy")
        assert await janitor.delete_expired() == 1
        left = {row.key.id for row in (await directory.list("acme")).rows}
        assert left == {"used", "busy"}
        model.open_gate("held")
        await in_turn
        assert await alice.prompts_seen("busy") == ["hello", "[[gate: held]] long"]


async def until_quiet(running: Host) -> None:
    """Wait for the bookkeeping that nothing waits for."""
    await until(lambda: not running.node.sessions._context.tasks._tasks)


async def age_all(data_dir: Path, seconds: float, only: str | None = None) -> None:
    """Make sessions look unused for longer, as time would: in the database itself."""
    import sqlite3

    connection = sqlite3.connect(data_dir / "coordination.sqlite3")
    with connection:
        where, values = ("WHERE id = ?", (only,)) if only else ("", ())
        connection.execute(
            f"UPDATE session SET created_at = created_at - ?, last_used_at = last_used_at - ? {where}",
            (seconds, seconds, *values),
        )
    connection.close()


async def test_trap_20_deletion_is_complete(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("resident")
    await alice.open("asleep")
    await alice.open("running")
    await alice.say("resident", "hello")
    await alice.say("asleep", "hello", key="k1")
    assert await acme.node.sessions.hibernate(acme.node.sessions.find_live(("acme", "asleep")))  # type: ignore[arg-type]
    in_turn = asyncio.create_task(alice.say("running", "[[gate: held]] long", expect=404))
    await model.gate_reached("held")
    async with alice.events("resident") as events:
        for name in ("resident", "asleep", "running"):
            assert (await alice.http.delete(f"/sessions/{name}")).status_code == 204
            assert (await alice.http.get(f"/sessions/{name}")).status_code == 404
            assert (await alice.http.delete(f"/sessions/{name}")).status_code == 404
        async for _ in events:
            pass  # the stream of a deleted session ends
    await in_turn
    await until_quiet(acme)
    assert await tables_of(acme) == {}
    # The id is free again, with an empty history.
    await alice.open("resident")
    assert await alice.prompts_seen("resident") == []


async def test_a_drain_finishes_turns_and_puts_everything_to_sleep(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model) as running:
        alice = await running.user("alice")
        await alice.open("s1")
        await alice.open("s2")
        await alice.say("s2", "hello")
        turn = asyncio.create_task(alice.say("s1", "[[gate: held]] [[say: finished]]"))
        await model.gate_reached("held")
        drain = asyncio.create_task(running.node.sessions.drain(20))
        await until(lambda: running.node.sessions.draining)
        refused = await alice.say("s2", "more", expect=503)
        assert refused["code"] == "draining"
        ready = await alice.http.get(f"{running.url}/ready")
        assert (ready.status_code, ready.json()["code"]) == (503, "draining")
        model.open_gate("held")
        assert (await turn)["message"]["content"] == "finished"
        await drain
        assert running.node.sessions.live == []
    async with host(tmp_path, model) as running:
        alice = await running.user("alice")
        assert await alice.prompts_seen("s1") == ["[[gate: held]] [[say: finished]]"]
