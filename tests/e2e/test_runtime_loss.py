"""A runtime dies or hangs: between turns, in mid-turn, after a tool, at its start. No client ever hangs or notices
more than a slower turn, and no prompt stands in the history twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from support.cli import hold_for_hung
from support.host import LASTING, Host, host, until

pytestmark = pytest.mark.cli


async def test_a_kill_between_turns_is_not_noticed(acme: Host) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "My name is Ada")
    before = acme.process().pid
    os.kill(before, signal.SIGKILL)
    assert "Ada" in await alice.text("s1", "What is my name?")
    assert acme.process().pid != before
    assert await alice.prompts_seen("s1") == ["My name is Ada", "What is my name?"]


async def test_a_kill_in_mid_turn_repeats_the_turn_once(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    async with alice.events("s1") as events:
        turn = asyncio.create_task(alice.say("s1", "[[gate: held]] two"))
        await model.gate_reached("held")
        acme.process().kill()
        model.open_gate("held")
        result = await turn
        assert result["turn"] == {**result["turn"], "status": "completed", "retried": True}
        async for event in events:
            if event["event"] == "aerodrome.turn_retried":
                assert event["data"]["data"]["turn"] == result["turn"]["id"]
                break
    assert await alice.prompts_seen("s1") == ["one", "[[gate: held]] two"]


async def test_two_kills_in_one_turn_are_told_as_interrupted(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    turn = asyncio.create_task(alice.say("s1", "[[gate: held]] two", expect=503))
    for times in (1, 2):
        await model.gate_reached("held", times)
        acme.process().kill()
    problem = await turn
    assert problem["code"] == "turn_interrupted"
    assert problem["turn"]["status"] == "interrupted"
    model.open_gate("held")
    assert await alice.prompts_seen("s1") == ["one"]


async def test_a_turn_in_which_a_tool_ran_is_not_repeated(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    question = json.dumps({"question": "Sure?"})
    async with alice.events("s1") as events:
        turn = asyncio.create_task(alice.say("s1", f"[[tool: ask_user {question}]]", expect=503))
        async for event in events:
            if event["event"] == "user_input.requested":
                break
        acme.process().kill()
        problem = await turn
    assert problem["code"] == "turn_interrupted"
    assert await alice.prompts_seen("s1") == ["one"]


async def test_a_hung_runtime_is_replaced_and_the_turn_repeated(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    turn = asyncio.create_task(alice.say("s1", "[[gate: held]] two"))
    await model.gate_reached("held")
    hold_for_hung(acme.runtime())
    process = acme.process()
    process.suspend()
    model.open_gate("held")
    assert (await turn)["turn"]["retried"] is True
    await until(lambda: not process.is_running())


async def test_an_answer_that_was_stored_before_the_loss_is_not_asked_for_again(
    acme: Host, model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime dies between storing the answer and saying so."""
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    store = acme.node.stores.files
    append, process = store.append, acme.process()

    async def append_then_die(key: Any, epoch: int, path: str, content: str, *, durable: bool) -> None:
        await append(key, epoch, path, content, durable=durable)
        if '"assistant.message"' in content:
            process.kill()
            process.wait()

    monkeypatch.setattr(type(store), "append", lambda _self, *args, **how: append_then_die(*args, **how))
    model.forget()
    result = await alice.say("s1", "[[say: stored]]")
    monkeypatch.undo()
    assert result["message"]["content"] == "stored"
    assert result["turn"]["status"] == "completed"
    assert len(model.requests) == 1
    assert await alice.prompts_seen("s1") == ["one", "[[say: stored]]"]


async def test_a_session_moves_to_another_runtime_with_its_whole_history(acme: Host) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    for number in range(3):
        await alice.say("s1", f"prompt {number}")
    live = acme.node.sessions.live[0]
    assert await acme.node.sessions.hibernate(live)
    old = acme.runtime()
    await acme.node.pool.retire(old)
    assert await alice.prompts_seen("s1") == [f"prompt {number}" for number in range(3)]
    assert acme.runtime().id != old.id


async def test_a_runtime_that_does_not_start_is_told_at_once_and_recovers(tmp_path, model: ModelServer) -> None:  # type: ignore[no-untyped-def]
    from aerodrome.runtime.binary import resolve

    real = resolve("auto").path
    wrapper = tmp_path / "copilot"
    broken = tmp_path / "broken"
    broken.touch()
    # A real CLI behind a switch: as long as `broken` exists it cannot start.
    wrapper.write_text(
        f'#!/bin/sh\n[ -e {broken} ] && [ "$1" = --headless ] && echo "no space left on device" && exit 1\n'
        f'exec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    async with host(tmp_path / "data", model, coordination=LASTING, runtime={"command": str(wrapper)}) as running:
        alice = await running.user("alice")
        await alice.open("s1")
        for _ in range(4):
            problem = await alice.say("s1", "hello", expect=503)
            assert problem["code"] == "runtime_unavailable"
            assert "no space left on device" in problem["detail"]
        ready = await alice.http.get(f"{running.url}/ready")
        assert ready.status_code == 503
        assert "no space left on device" in ready.text
        broken.unlink()
        async with asyncio.timeout(60):
            while (await alice.http.post("/sessions/s1/messages", json={"prompt": "again"})).status_code != 200:
                await asyncio.sleep(0.2)
        # What failed before it was sent is not in the history.
        assert await alice.prompts_seen("s1") == ["again"]
