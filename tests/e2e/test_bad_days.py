"""Users' bad days: the store is full or locked, the model is down, callers vanish, prompts are strange."""

from __future__ import annotations

import asyncio
import sqlite3
import string
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from aerodrome.demo.model import ModelServer
from support.host import Host, host, until

pytestmark = pytest.mark.cli


# --- stores ---


async def test_a_full_disk_fails_the_turn_and_keeps_the_history(acme: Host) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    await limit_pages(acme, room=2)
    problem = await alice.say("s1", "two " + "x" * 400_000, expect=503)
    assert problem["code"] == "store_unavailable"
    await limit_pages(acme, room=1_000_000)
    # The prompt that failed is not in the history; the session goes on from where it was.
    assert await alice.prompts_seen("s1") == ["one"]
    assert [c for role, c in await alice.history("s1") if role == "user"] == ["one", "[[turns]]"]


async def limit_pages(running: Host, *, room: int) -> None:
    """Make the state store's disk full, for real: SQLite's own limit on the size of its file."""
    database = running.node.stores.files._database  # type: ignore[attr-defined]

    def limit(connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + room}")

    await database.write(limit)


async def test_a_store_locked_by_another_process_is_waited_for(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model, state={"patience": "60s"}) as acme:
        alice = await acme.user("alice")
        await alice.open("s1")
        await alice.say("s1", "one")
        locker = await lock_from_outside(tmp_path / "state.sqlite3")
        turn = asyncio.create_task(alice.say("s1", "two"))
        await asyncio.wait({turn}, timeout=0.5)
        assert not turn.done()
        locker.stdin.write(b"\n")  # type: ignore[union-attr]
        assert (await turn)["turn"]["status"] == "completed"
        await locker.wait()
        assert await alice.prompts_seen("s1") == ["one", "two"]


async def test_a_store_locked_for_long_is_told(acme: Host, tmp_path: Path) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    locker = await lock_from_outside(tmp_path / "state.sqlite3")
    problem = await alice.say("s1", "two", expect=503)
    assert problem["code"] == "store_unavailable"
    locker.stdin.write(b"\n")  # type: ignore[union-attr]
    await locker.wait()
    assert await alice.prompts_seen("s1") == ["one"]


async def lock_from_outside(path: Path) -> asyncio.subprocess.Process:
    """Another process that holds the database's write lock until it reads a line."""
    program = (
        "import sqlite3, sys\n"
        f"c = sqlite3.connect({str(path)!r}, isolation_level=None)\n"
        "c.execute('BEGIN EXCLUSIVE')\nprint('locked', flush=True)\nsys.stdin.readline()\nc.execute('ROLLBACK')\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"locked\n"
    return process


async def test_a_session_over_its_size_limit_is_told(tmp_path: Path, model: ModelServer) -> None:
    limits = {"max_file": "100 KiB", "max_session": "120 KiB"}
    async with host(tmp_path, model, state=limits) as running:
        alice = await running.user("alice")
        await alice.open("s1")
        await alice.say("s1", "one")
        problem = await alice.say("s1", "y" * 150_000, expect=413)
        assert problem["code"] == "too_large"
        assert await alice.prompts_seen("s1") == ["one"]


# --- the model ---


async def test_a_model_that_is_down_fails_the_turn_and_not_the_session(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    for directive in ("[[fail: 400]]", "[[fail: 401]]"):
        problem = await alice.say("s1", directive, expect=502)
        assert problem["code"] == "turn_failed"
        assert problem["turn"]["status"] == "failed"
    assert await alice.text("s1", "[[say: up again]]") == "up again"


async def test_a_model_that_cuts_its_stream_fails_the_turn_and_not_the_session(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    # The runtime itself tries five times more, a second apart.
    problem = await alice.say("s1", "[[cut: 2]] one two three four five", expect=502)
    assert problem["code"] == "turn_failed"
    assert len(model.requests) > 1
    assert await alice.text("s1", "[[say: whole]]") == "whole"


async def test_a_model_that_is_away_for_a_moment_is_waited_for(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    await model.down()
    turn = asyncio.create_task(alice.text("s1", "[[say: after all]]"))
    async with alice.events("s1", after="~") as events:
        async for event in events:
            if event["event"] == "user.message" and "after all" in event["data"]["data"]["content"]:
                break
    await model.up()
    assert await turn == "after all"


async def test_a_slow_model_can_be_aborted(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    turn = asyncio.create_task(alice.say("s1", "[[hang]] hello"))
    await until(lambda: len(model.requests) == 1)
    await alice.http.post("/sessions/s1/abort")
    assert (await turn)["turn"]["status"] == "aborted"


async def test_a_turn_over_its_time_is_ended(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model, sessions={"turn_timeout": "5s"}) as running:
        alice = await running.user("alice")
        await alice.open("s1")
        problem = await alice.say("s1", "[[hang]] hello", expect=502)
        assert problem["code"] == "turn_failed"
        assert "longer than 5 s" in problem["detail"]
        assert await alice.text("s1", "[[say: fine]]") == "fine"


# --- callers ---


async def test_a_caller_that_goes_away_leaves_its_turn_running(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    turn = asyncio.create_task(alice.say("s1", "[[gate: held]] [[say: for later]]"))
    await model.gate_reached("held")
    turn.cancel()
    await asyncio.wait({turn})
    model.open_gate("held")
    async with alice.events("s1", after="~") as events:
        async for event in events:
            if event["event"] == "session.idle":
                break
    assert ("assistant", "for later") in await alice.history("s1")


async def test_on_disconnect_cancel_aborts_the_turn(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model, sessions={"on_disconnect": "cancel"}) as running:
        alice = await running.user("alice")
        await alice.open("s1")
        turn = asyncio.create_task(alice.say("s1", "[[gate: held]] hello"))
        await model.gate_reached("held")
        turn.cancel()
        await asyncio.wait({turn})
        await model.gate_left("held")
        await until(lambda: not running.node.sessions.live[0].busy)
        assert (await alice.http.get("/sessions/s1")).json()["last_turn"]["status"] == "aborted"


async def test_200_simultaneous_first_requests(tmp_path: Path, model: ModelServer) -> None:
    """Of 200 users of one tenant, on a cold node: one runtime's worth of places, and all are served."""
    # So many at once keep a runtime from answering pings for a while, where there is little to run it on.
    runtime = {"max_sessions": 60, "max_runtimes": 2, "capacity_timeout": "240s", "ping_timeout": "60s"}
    async with host(tmp_path, model, runtime=runtime) as running:
        users = [await running.user(f"user{number}") for number in range(200)]

        async def first_turn(number: int) -> str:
            await users[number].open(f"mine-{number}")
            return await users[number].text(f"mine-{number}", f"[[say: answer {number}]]")

        answers = await asyncio.gather(*(first_turn(number) for number in range(200)))
        assert answers == [f"answer {number}" for number in range(200)]
        assert len(running.node.pool.runtimes) <= 2
        assert all(runtime.reserved <= 60 for runtime in running.node.pool.runtimes)


# --- strange input ---


async def test_strange_prompts(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    empty = await alice.say("s1", "", expect=400)
    assert empty["code"] == "invalid"
    every_plane = (
        "\u0000\u0001\x7f\u00e9 e\u0301 \u202e\u200b\ufeff \u2028\u2029 \U0001f468\u200d\U0001f469\u200d\U0001f467 "
        "\u4e2d\u6587 \u0627\u0644 \U0010ffff \ufffe" + string.printable
    )
    await alice.say("s1", every_plane)
    assert (await alice.history("s1"))[0] == ("user", every_plane)
    # A lone surrogate is not Unicode, but JSON can spell it: refused or kept, never a crash.
    raw = b'{"prompt": "half \\ud83d"}'
    odd = await alice.http.post("/sessions/s1/messages", content=raw, headers={"Content-Type": "application/json"})
    assert odd.status_code in (200, 400)
    # 5 MB is over what the scripted model takes in, which the runtime says: a failed turn, and the session goes on.
    big = await alice.http.post("/sessions/s1/messages", json={"prompt": "word " * 1_000_000})
    assert big.status_code == 502, big.text[:300]
    assert big.json()["code"] == "turn_failed"
    assert "budget" in big.json()["detail"]
    too_big = await alice.http.post("/sessions/s1/messages", json={"prompt": "x" * (7 << 20)})
    assert too_big.status_code == 413
    assert await alice.text("s1", "[[say: still here]]") == "still here"


@pytest.mark.parametrize(
    "session_id",
    ["../../etc/passwd", "a/../b", "'; DROP TABLE session; --", "x" * 10_000, "a b", "ünï", "a\x00b", "%2e%2e"],
)
async def test_hostile_session_ids_are_refused_everywhere(acme: Host, session_id: str) -> None:
    alice = await acme.user("alice")
    created = await alice.http.post("/sessions", json={"id": session_id})
    assert created.status_code == 400, created.text
    assert created.json()["code"] == "invalid"
    read = await alice.http.get("/sessions/" + quote(session_id, safe=""))
    assert read.status_code in (404, 414), (session_id, read.status_code, read.text[:200])
    assert await acme.node.stores.directory.count() == 0
