"""What users notice of a runtime that is recycled or drained under their sessions: nothing but a moment's wait."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.errors import NotFound
from aerodrome.runtime.supervisor import ManagedRuntime
from support.host import Host, host, until

pytestmark = pytest.mark.cli


async def states(running: Host) -> dict[str, str]:
    alice = await running.user("alice")
    return {s["id"]: s["state"] for s in (await alice.http.get("/sessions")).json()["sessions"]}


async def talking(running: Host, *names: str) -> ManagedRuntime:
    """Sessions of alice that have taken a turn, all in one runtime."""
    alice = await running.user("alice")
    for name in names:
        await alice.open(name)
        await alice.say(name, f"I am {name}")
    return running.runtime()


async def test_sessions_in_use_are_loaded_in_the_next_runtime_and_know_everything(
    acme: Host, model: ModelServer
) -> None:
    worn = await talking(acme, "a", "b", "c")
    alice = await acme.user("alice")
    async with alice.events("a") as events:
        await acme.node.pool.recycle(worn.id, "turns")
        successor = acme.runtime()
        assert successor is not worn
        assert successor.describe()["reasons"] == ["turns"]
        assert await states(acme) == {"a": "resident", "b": "resident", "c": "resident"}
        assert successor.reserved == 3
        assert await alice.prompts_seen("a") == ["I am a"]
        # Its readers stay, and hear of no move.
        heard = await anext(event["data"] async for event in events if event["event"] == "user.message")
        assert heard["data"]["content"] == "[[turns]]"
    assert await alice.prompts_seen("b") == ["I am b"]
    assert acme.runtime() is successor


async def test_sessions_that_nobody_has_used_for_a_while_hibernate(acme: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    worn = await talking(acme, "a", "b")
    monkeypatch.setattr("aerodrome.sessions.registry._IN_USE", 0.0)
    await acme.node.pool.recycle(worn.id, "turns")
    assert await states(acme) == {"a": "hibernated", "b": "hibernated"}
    assert acme.node.sessions.live == []
    alice = await acme.user("alice")
    assert await alice.prompts_seen("a") == ["I am a"]


async def test_a_session_in_a_turn_moves_when_the_turn_ends(acme: Host, model: ModelServer) -> None:
    worn = await talking(acme, "a", "b")
    alice = await acme.user("alice")
    turn = asyncio.create_task(alice.say("a", "[[gate: held]] long"))
    await model.gate_reached("held")
    recycling = asyncio.create_task(acme.node.pool.recycle(worn.id, "turns"))
    # The other one has moved and is served while this goes on.
    await until(lambda: worn.reserved == 1)
    assert await alice.prompts_seen("b") == ["I am b"]
    assert not turn.done()
    queued = asyncio.create_task(alice.say("a", "[[gate: next]] queued"))
    await until(lambda: any(live.turns.busy and len(live.turns.all) == 2 for live in acme.node.sessions.live))
    model.open_gate("held")
    answer = await turn
    assert answer["turn"]["status"] == "completed"
    assert answer["turn"]["retried"] is False
    # The prompt behind it finds the session in the next runtime, and does not keep the worn one.
    await model.gate_reached("next")
    await recycling
    assert not queued.done()
    model.open_gate("next")
    assert (await queued)["turn"]["retried"] is False
    assert await alice.prompts_seen("a") == ["I am a", "[[gate: held]] long", "[[gate: next]] queued"]


async def test_prompts_that_come_while_their_sessions_move_wait_a_moment(acme: Host) -> None:
    names = [f"s{n}" for n in range(6)]
    await talking(acme, *names)
    alice = await acme.user("alice")
    stop = asyncio.Event()
    said = dict.fromkeys(names, 0)

    async def talk(name: str) -> None:
        while not stop.is_set():
            answer = await alice.say(name, f"{name} {said[name]}")
            assert answer["turn"]["status"] == "completed"
            assert answer["turn"]["retried"] is False
            said[name] += 1

    talks = [asyncio.create_task(talk(name)) for name in names]
    for _ in range(3):
        await acme.node.pool.recycle(acme.runtime().id, "turns")
    stop.set()
    await asyncio.gather(*talks)
    assert acme.runtime().describe()["recycles"] == 3
    for name in names:
        assert await alice.prompts_seen(name) == [f"I am {name}", *(f"{name} {n}" for n in range(said[name]))]


async def test_a_drained_runtime_stops_and_its_sessions_sleep(acme: Host, model: ModelServer) -> None:
    drained = await talking(acme, "a", "b")
    alice = await acme.user("alice")
    turn = asyncio.create_task(alice.say("a", "[[gate: held]] long"))
    await model.gate_reached("held")
    draining = asyncio.create_task(acme.node.pool.drain(drained.id))
    await until(lambda: drained.reserved == 1)
    async with asyncio.timeout(60):
        while (await states(acme))["b"] != "hibernated":  # the directory is told behind what happens
            await asyncio.sleep(0.01)
    assert not draining.done()
    model.open_gate("held")
    assert (await turn)["turn"]["status"] == "completed"
    await draining
    assert acme.node.pool.runtimes == []
    assert await alice.prompts_seen("b") == ["I am b"]
    with pytest.raises(NotFound):
        await acme.node.pool.drain(drained.id)


async def test_at_the_ceiling_sessions_sleep_until_there_is_room(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model, runtime={"max_runtimes": 1}) as running:
        worn = await talking(running, "a", "b")
        await asyncio.wait_for(running.node.pool.recycle(worn.id, "turns"), 60)
        alice = await running.user("alice")
        assert await alice.prompts_seen("a") == ["I am a"]
        assert running.runtime() is not worn


async def test_a_node_recycles_what_is_worn_by_itself_and_tells(tmp_path: Path, model: ModelServer) -> None:
    recycle = {"turns": 4, "interval": "50ms"}
    async with host(tmp_path, model, runtime={"warm": 1, "recycle": recycle}) as running:
        alice = await running.user("alice")
        await alice.open("a")
        for number in range(10):
            answer = await alice.say("a", f"turn {number}")
            assert (answer["turn"]["status"], answer["turn"]["retried"]) == ("completed", False)
        await until(lambda: running.node.pool.retirements.recycled["turns"] >= 1)
        assert await alice.prompts_seen("a") == [f"turn {number}" for number in range(10)]
        while True:  # until it is told with a heartbeat
            (node,) = await running.node.stores.coordination.nodes()
            told = [reason for row in node.load["runtimes"] if row["recycles"] for reason in row["reasons"]]
            if told and node.load["recycles"]:
                break
        assert set(told) == set(node.load["recycles"]) == {"turns"}


async def test_a_turn_that_does_not_end_fails_over_when_patience_is_over(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model, runtime={"warm": 1, "recycle": {"patience": "200ms"}}) as running:
        worn = await talking(running, "a")
        alice = await running.user("alice")
        turn = asyncio.create_task(alice.say("a", "[[gate: held]] long"))
        await model.gate_reached("held")
        await running.node.pool.recycle(worn.id, "memory")
        assert "its turns did not end within 0.2 s" in worn.lost_reason
        model.open_gate("held")
        answer = await turn
        assert (answer["turn"]["status"], answer["turn"]["retried"]) == ("completed", True)
        # That was our doing, and not the session's.
        assert not running.runtime().alone


async def test_what_sessions_ask_of_a_runtime_is_timed(acme: Host) -> None:
    alice = await acme.user("alice")
    await alice.open("a")
    for number in range(11):
        await alice.say("a", f"turn {number}")
    (first,) = acme.runtime().latency._first  # those before it are passed over
    assert 0 < first < 30
