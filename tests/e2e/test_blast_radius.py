"""One session that is too much for its runtime: what it costs the others, and what becomes of it.

The runtimes here may have so little memory that a history of 40 MB ends them for want of it, and a small one does not.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.model import SessionKey
from aerodrome.runtime.binary import resolve
from aerodrome.sessions.blame import Charges
from aerodrome.statestore.provider import EVENTS_PATH
from support.host import Host, host, until
from support.server import aerodrome

pytestmark = [pytest.mark.cli, pytest.mark.timeout(400)]

HUGE = 40_000_000
STATE = {"max_file": "256MiB", "max_session": "512MiB"}
SESSIONS = {"max_history": "256MiB"}


def tight(tmp_path: Path) -> str:
    """The CLI with memory for small sessions (docs/facts.md, "Memory and wear")."""
    path = tmp_path / "copilot"
    path.write_text(f'#!/bin/sh\nulimit -d 950000\nexec "{resolve("auto").path}" "$@"\n')
    path.chmod(0o755)
    return str(path)


async def row_of(running: Host, session: str) -> Any:
    row = await running.node.stores.directory.get(SessionKey("acme", session))
    assert row is not None
    return row


async def charges(running: Host, session: str) -> int:
    found = Charges.of((await row_of(running, session)).options)
    return 0 if found is None else found.count


async def sleeping(running: Host, session: str, size: int = 0) -> None:
    """A session that has had a turn and hibernates, its history stretched to so many characters."""
    alice = await running.user("alice")
    await alice.open(session)
    await alice.say(session, f"I am {session}")
    service, key = running.node.sessions, SessionKey("acme", session)
    live = service.find_live(key)
    assert live is not None
    await until(lambda: live.evictable)
    assert await service.hibernate(live)
    if size:
        files = running.node.stores.files
        text = await files.read(key, EVENTS_PATH)
        longer = await asyncio.to_thread(stretched, text, size)
        await files.write(key, await files.epoch(key), EVENTS_PATH, longer)


def stretched(text: str, size: int) -> str:
    """The history with its turn repeated until it has so many characters."""
    events = [json.loads(line) for line in text.splitlines()]
    turn = [event for event in events if event["type"] in ("user.message", "assistant.message")]
    last, lines, length = events[-1]["id"], [text], len(text)
    while length < size:
        for event in turn:
            more = {"content": "all work and no play " * 1500}
            said = {**event, "id": str(uuid.uuid4()), "parentId": last, "data": {**event["data"], **more}}
            if "messageId" in event["data"]:
                said["data"]["messageId"] = str(uuid.uuid4())
            last = said["id"]
            lines.append(json.dumps(said) + "\n")
            length += len(lines[-1])
    return "".join(lines)


async def test_a_huge_session_takes_nobody_down_for_good_and_is_quarantined(tmp_path: Path, model: ModelServer) -> None:
    # While it reads 40 MB it answers no ping, for a long time on a slow machine: it shall die of something else.
    runtime = {"command": tight(tmp_path), "warm": 1, "max_runtimes": 4, "ping_timeout": "120s"}
    data = tmp_path / "data"
    async with host(data, model, runtime=runtime, state=STATE, sessions=SESSIONS) as running:
        alice, bob = await running.user("alice"), await running.user("bob")
        await sleeping(running, "huge", HUGE)
        await bob.open("idle")
        await bob.say("idle", "I am idle")
        await bob.open("busy")
        await bob.say("busy", "I am busy")
        turn = asyncio.create_task(bob.say("busy", "[[gate: held]] long"))
        await model.gate_reached("held")
        first = running.runtime()
        asked = asyncio.create_task(alice.http.post("/sessions/huge/messages", json={"prompt": "hello"}))
        await asyncio.wait_for(first.lost.wait(), 200)
        assert (await first.death).value == "memory"
        model.open_gate("held")
        # Bob's turn has been taken up again elsewhere, and his other session has lost nothing.
        answer = await turn
        assert (answer["turn"]["status"], answer["turn"]["retried"]) == ("completed", True)
        assert await bob.prompts_seen("idle") == ["I am idle"]
        # Loaded alone, the huge one ends another runtime, and after a last try no more.
        response = await asked
        while response.status_code == 503:
            assert response.json()["code"] == "runtime_unavailable"
            response = await alice.http.post("/sessions/huge/messages", json={"prompt": "hello"})
        problem = response.json()
        assert (response.status_code, problem["code"], problem["retryable"]) == (423, "quarantined", False)
        assert "aerodrome sessions release huge --tenant acme" in problem["detail"]
        assert await charges(running, "huge") == 2
        # Innocent neighbours are not charged, whoever they were.
        assert [await charges(running, name) for name in ("busy", "idle")] == [0, 0]
        assert await bob.text("busy", "[[say: well]]") == "well"
        # It is still there to be read.
        assert (await alice.http.get("/sessions/huge/messages", params={"limit": 1})).status_code == 200
    async with host(data, model, runtime=runtime, state=STATE, sessions=SESSIONS) as restarted:
        alice = await restarted.user("alice")
        response = await alice.http.post("/sessions/huge/messages", json={"prompt": "hello"})
        assert response.json()["code"] == "quarantined"
        assert not any(r.key for r in restarted.node.pool.runtimes)  # nothing was started for it


async def test_a_released_session_is_loaded_again(tmp_path: Path, model: ModelServer) -> None:
    config = tmp_path / "my.toml"
    config.write_text(f'[server]\ndata_dir = "{tmp_path / "data"}"\n')
    async with host(tmp_path / "data", model) as running:
        await sleeping(running, "a")
        row = await row_of(running, "a")
        held = Charges(2, running.node._clock.time(), "memory").stored()
        await running.node.stores.directory.update(row.key, options={**row.options, "charges": held})
        alice = await running.user("alice")
        assert (await alice.http.post("/sessions/a/messages", json={"prompt": "hi"})).status_code == 423
        arguments = ("--tenant", "acme", "--config", str(config))
        listed = await aerodrome("sessions", "ls", "--json", *arguments)
        assert [row["charges"]["count"] for row in listed] == [2]
        assert "quarantined" in await aerodrome("sessions", "ls", *arguments, json_output=False)
        said = await aerodrome("sessions", "release", "a", *arguments, json_output=False)
        assert said == "Released acme/a.\n"
        assert await alice.prompts_seen("a") == ["I am a"]
        assert (await row_of(running, "a")).options == row.options
        said = await aerodrome("sessions", "release", "a", *arguments, json_output=False)
        assert said == "acme/a is not held back.\n"


async def test_a_killed_runtime_is_no_session_s_fault(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("a")
    for number in range(3):
        turn = asyncio.create_task(alice.say("a", f"[[gate: g{number}]] {number}"))
        await model.gate_reached(f"g{number}")
        acme.process().kill()
        model.open_gate(f"g{number}")
        assert (await turn)["turn"]["retried"] is True
    assert await charges(acme, "a") == 0


async def test_large_histories_are_warned_of_and_larger_ones_not_loaded(tmp_path: Path, model: ModelServer) -> None:
    limits = {"large_history": "100KiB", "max_history": "400KiB"}
    async with host(tmp_path, model, sessions=limits) as running:
        alice = await running.user("alice")
        await sleeping(running, "large", 200_000)
        await sleeping(running, "larger", 500_000)
        async with alice.events("large") as events:
            await alice.say("large", "hello")
            warned = await anext(e["data"] async for e in events if e["event"] == "aerodrome.session_large")
        assert warned["data"]["limit"] == 400 << 10
        assert 200_000 < warned["data"]["characters"] < 300_000
        assert "infiniteSessions" in warned["data"]["hint"]
        response = await alice.http.post("/sessions/larger/messages", json={"prompt": "hello"})
        assert (response.status_code, response.json()["code"]) == (413, "too_large")
        assert "sessions.max_history" in response.json()["detail"]
        # Nothing was done to it, and nothing of it is held.
        assert (await alice.http.get("/sessions/larger/messages", params={"limit": 1})).status_code == 200
        assert running.runtime().reserved == 1
