"""Turns over HTTP, against the real CLI: the ordinary day."""

from __future__ import annotations

import asyncio
import json

import pytest

from aerodrome.demo.model import ModelServer
from support.host import Host, sse_events, tables_of

pytestmark = pytest.mark.cli


async def test_a_session_remembers_across_turns_and_reports_usage(acme: Host) -> None:
    alice = await acme.user("alice")
    session = await alice.open("s1", title="Names")
    assert session["owner"] == "alice"
    assert session["state"] == "hibernated"

    first = await alice.say("s1", "My name is Ada")
    assert first["turn"]["status"] == "completed"
    assert first["turn"]["retried"] is False
    assert first["usage"]["model_calls"] == 1
    assert "Ada" in await alice.text("s1", "What is my name?")

    assert (await alice.http.get("/sessions/s1")).json()["state"] == "resident"
    messages = (await alice.http.get("/sessions/s1/messages")).json()["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    assert messages[0]["author"] == "alice"
    assert messages[0]["turn_id"] == messages[1]["turn_id"] == first["turn"]["id"]
    assert messages[1]["id"] == first["message"]["id"]


async def test_history_is_paged(acme: Host) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    for number in range(3):
        await alice.say("s1", f"prompt {number}")
    page = (await alice.http.get("/sessions/s1/messages", params={"limit": 4})).json()
    rest = (await alice.http.get("/sessions/s1/messages", params={"limit": 4, "cursor": page["next"]})).json()
    contents = [m["content"] for m in page["messages"] + rest["messages"] if m["role"] == "user"]
    assert contents == ["prompt 0", "prompt 1", "prompt 2"]
    assert rest["next"] is None


async def test_a_streamed_turn_carries_the_sdks_events_and_ends_with_the_result(acme: Host) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    async with alice.http.stream(
        "POST",
        "/sessions/s1/messages",
        json={"prompt": "[[tokens: 20]] tell me"},
        headers={"Accept": "text/event-stream"},
    ) as response:
        assert response.status_code == 200
        events = [event async for event in sse_events(response)]
    types = [event["event"] for event in events]
    assert types.count("user.message") == 1
    assert types.count("assistant.message_delta") > 3
    assert types[-1] == "end"
    deltas = "".join(e["data"]["data"]["deltaContent"] for e in events if e["event"] == "assistant.message_delta")
    end = events[-1]["data"]
    assert end["turn"]["status"] == "completed"
    assert end["message"]["content"] == deltas
    assert not any(name.startswith("model.messages") for name in types)
    for event in events[:-1]:
        assert event["data"]["type"] == event["event"]
        assert set(event["data"]) >= {"id", "timestamp", "type", "data"}


async def test_ask_answers_and_leaves_nothing(acme: Host) -> None:
    alice = await acme.user("alice")
    answer = (await alice.http.post("/ask", json={"prompt": "[[say: forty-two]]"})).json()
    assert answer["message"]["content"] == "forty-two"
    assert answer["turn"]["status"] == "completed"
    assert (await alice.http.get("/sessions")).json()["sessions"] == []
    stores = acme.node.stores
    assert await stores.directory.count() == 0
    assert await stores.ledger.unfinished() == []
    assert await tables_of(acme) == {}


async def test_an_ephemeral_session_is_gone_when_its_turn_ends(acme: Host) -> None:
    alice = await acme.user("alice")
    await alice.open("once", kind="ephemeral")
    assert await alice.text("once", "[[say: hello]]") == "hello"
    assert (await alice.http.get("/sessions/once")).status_code == 404
    assert await tables_of(acme) == {}


async def test_queued_prompts_are_answered_in_order(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    first = asyncio.create_task(alice.text("s1", "[[gate: first]] zero"))
    await model.gate_reached("first")
    later = [asyncio.create_task(alice.text("s1", "one")), asyncio.create_task(alice.text("s1", "two"))]
    model.open_gate("first")
    await asyncio.gather(first, *later)
    users = [content for role, content in await alice.history("s1") if role == "user"]
    assert users[0] == "[[gate: first]] zero"
    assert sorted(users[1:]) == ["one", "two"]


async def test_on_busy_reject_steer_and_interrupt(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    running = asyncio.create_task(alice.say("s1", "[[gate: held]] long"))
    await model.gate_reached("held")

    refused = await alice.say("s1", "no", expect=409, on_busy="reject")
    assert refused["code"] == "session_busy"
    assert refused["turn"]

    steering = asyncio.create_task(alice.say("s1", "steer", on_busy="steer"))
    while not any(len(live.turns.delivered) > 1 for live in acme.node.sessions.live):
        await asyncio.sleep(0.01)
    model.open_gate("held")
    assert (await running)["turn"]["status"] == "completed"
    assert (await steering)["turn"]["status"] == "completed"

    model.close_gate("held")
    running = asyncio.create_task(alice.say("s1", "[[gate: held]] again"))
    await model.gate_reached("held")
    instead = await alice.say("s1", "[[say: instead]]", on_busy="interrupt")
    assert instead["message"]["content"] == "instead"
    assert (await running)["turn"]["status"] == "aborted"


async def test_abort_ends_the_running_turn(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    assert (await alice.http.post("/sessions/s1/abort")).status_code in (200, 204)
    running = asyncio.create_task(alice.say("s1", "[[gate: held]] long"))
    await model.gate_reached("held")
    assert (await alice.http.post("/sessions/s1/abort")).status_code in (200, 204)
    assert (await running)["turn"]["status"] == "aborted"
    assert await alice.text("s1", "[[say: still here]]") == "still here"


async def test_a_repeated_idempotency_key_never_asks_the_model_twice(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    both = [asyncio.create_task(alice.say("s1", "[[gate: once]] pay", key="k1")) for _ in range(2)]
    await model.gate_reached("once")
    model.open_gate("once")
    first, second = await asyncio.gather(*both)
    later = await alice.say("s1", "[[gate: once]] pay", key="k1")
    assert first == second == later
    assert sum("pay" in str(request) for request in model.requests) == 1
    assert (await alice.say("s1", "something else", key="k1", expect=409))["code"] == "conflict"
    # A repeated prompt is not refused as busy because of itself.
    assert await alice.say("s1", "[[gate: once]] pay", key="k1", on_busy="reject") == first


async def test_user_input_is_asked_for_and_answered_over_http(acme: Host) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    question = json.dumps({"question": "Which one?", "choices": ["left", "right"]})
    async with alice.events("s1") as events:
        turn = asyncio.create_task(alice.text("s1", f"[[tool: ask_user {question}]]"))
        asked = await anext_of(events, "user_input.requested")
        request_id = asked["data"]["data"]["requestId"]
        answered = await alice.http.post(f"/sessions/s1/requests/{request_id}", json={"answer": "right"})
        assert answered.status_code in (200, 204), answered.text
        assert "right" in await turn
        again = await alice.http.post(f"/sessions/s1/requests/{request_id}", json={"answer": "left"})
        assert again.status_code == 404


async def test_questions_that_are_asked_at_once_are_answered_in_any_order(acme: Host) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    questions = ["one?", "two?", "three?"]
    calls = "".join(f"[[tool: ask_user {json.dumps({'question': question})}]]" for question in questions)
    async with alice.events("s1") as events:
        turn = asyncio.create_task(alice.text("s1", calls))
        asked: dict[str, str] = {}
        while len(asked) < len(questions):
            data = (await anext_of(events, "user_input.requested"))["data"]["data"]
            asked[data["question"]] = data["requestId"]
        for question in ("two?", "three?", "one?"):
            answer = {"answer": f"to {question}"}
            answered = await alice.http.post(f"/sessions/s1/requests/{asked[question]}", json=answer)
            assert answered.status_code in (200, 204), answered.text
            assert (await anext_of(events, "user_input.completed"))["data"]["data"]["answer"] == f"to {question}"
        said = " | ".join(f"User responded: to {question}" for question in questions)
        assert await turn == f"tool said: {said}"


async def test_the_events_of_a_session_resume_behind_the_last_id(acme: Host) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    async with alice.events("s1") as events:
        await alice.say("s1", "one")
        seen = [event async for event in until_idle(events)]
    await alice.say("s1", "two")
    async with alice.events("s1", after=seen[-1]["id"]) as events:
        missed = [event async for event in until_idle(events)]
    assert [e["data"]["data"]["content"] for e in missed if e["event"] == "user.message"] == ["two"]
    # The same id twice, also across a hibernation that forgets what was kept in memory.
    live = acme.node.sessions.live[0]
    assert await acme.node.sessions.hibernate(live)
    await alice.say("s1", "three")
    async with alice.events("s1", after=missed[-1]["id"]) as events:
        late = [event async for event in until_idle(events)]
    assert [e["data"]["data"]["content"] for e in late if e["event"] == "user.message"] == ["three"]
    ids = [e["data"]["id"] for e in [*seen, *missed, *late]]
    assert len(ids) == len(set(ids))


async def test_an_unknown_last_event_id_is_told_as_a_gap(acme: Host) -> None:
    alice = await acme.user("alice")
    await alice.open("s1")
    await alice.say("s1", "one")
    async with alice.events("s1", after="0000-never") as events:
        assert (await anext(events))["event"] == "aerodrome.gap"


async def anext_of(events: object, event_type: str) -> dict:  # type: ignore[type-arg]
    async for event in events:  # type: ignore[attr-defined]
        if event["event"] == event_type:
            return dict(event)
    raise AssertionError(f"the stream ended without {event_type}")


async def until_idle(events: object):  # type: ignore[no-untyped-def]
    async for event in events:  # type: ignore[attr-defined]
        yield event
        if event["event"] == "session.idle":
            return
