"""Streams: their format, how they end, and readers that leave, stop or lag."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.types import Message

from aerodrome.errors import Capacity, Draining, StoreUnavailable
from aerodrome.events import SessionEvent
from aerodrome.http.limits import HttpLimits
from aerodrome.http.shutdown import Signal
from aerodrome.http.sse import Outbox, SseResponse, event_frame, frame
from aerodrome.model import TurnStatus
from aerodrome.sessions.api import Lagging
from support.http_front import EVENTS, MESSAGES, STREAM, Front, RawClient, parse_events, request
from support.scripted_sessions import ScriptedStream, ScriptedTurn, event

FOLLOW = request("GET", EVENTS)
PROMPT = request(
    "POST", MESSAGES, "Content-Type: application/json", "Accept: text/event-stream", body=b'{"prompt":"Hi"}'
)


async def follow(front: Front, data: bytes = FOLLOW) -> tuple[RawClient, ScriptedStream]:
    """A reader of the session's events, connected."""
    client = await front.raw(data)
    status, headers = await client.head()
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    return client, front.sessions.streams[-1]


async def prompted(front: Front) -> tuple[RawClient, ScriptedTurn]:
    """A reader of a turn that runs until the test ends it."""
    front.sessions.autofinish = None
    client = await front.raw(PROMPT)
    assert (await client.head())[0] == 200
    return client, front.sessions.turns[-1]


# Format


def test_the_envelope_s_bytes_are_passed_on_unchanged() -> None:
    raw = b'{"type": "x",  "data":{"text":"\\u00fc \xc3\xbc"}, "id":"e1"}'
    assert event_frame(SessionEvent("e1", "x", raw)) == b"id: e1\nevent: x\ndata: " + raw + b"\n\n"


def test_line_breaks_between_tokens_do_not_end_the_data() -> None:
    raw = b'{"id":"e1",\r\n "data":{"text":"a\\nb"}\n}'
    data = event_frame(SessionEvent("e1", "x", raw))
    assert data.count(b"\n") == 4
    assert b"\r" not in data
    assert json.loads(data.split(b"data: ")[1]) == json.loads(raw)


@pytest.mark.parametrize("text", ["e\nevent: end", "e\r\ndata: {}", "e\0x", "e\u2028x", "\ud800"])
def test_an_id_or_type_can_not_forge_a_field(text: str) -> None:
    lines = event_frame(SessionEvent(text, text, b"{}")).split(b"\n")
    assert [line.split(b":")[0] for line in lines] == [b"id", b"event", b"data", b"", b""]
    assert b"\0" not in lines[0]


async def test_a_session_s_events_arrive_with_id_and_type(front: Front) -> None:
    client, stream = await follow(front)
    happened = [event(1, "user.message"), event(2, ephemeral=True, text="ü\n"), event(3, "session.idle")]
    stream.put(*happened)
    stream.end()
    assert await client.events() == [(item.id, item.type, json.loads(item.raw)) for item in happened]
    await stream.closed.wait()
    assert stream.closes == 1


async def test_no_proxy_may_buffer_or_keep_a_stream(front: Front) -> None:
    client = await front.raw(FOLLOW)
    _, headers = await client.head()
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert headers["transfer-encoding"] == "chunked"
    assert "x-request-id" in headers


async def test_the_trace_is_sent_on_demand_only(front: Front) -> None:
    happened = [event(1, "model.messages_snapshot"), event(2, "assistant.message"), event(3, "model.telemetry")]
    for query, wanted in [("", ["e2"]), ("?trace=false", ["e2"]), ("?trace=true", ["e1", "e2", "e3"])]:
        client, stream = await follow(front, request("GET", EVENTS + query))
        stream.put(*happened)
        stream.end()
        assert [item[0] for item in await client.events()] == wanted

    for path in (MESSAGES, "/api/v1/ask"):
        response = await front.client.post(path + "?trace=true", json={"prompt": "Hi"}, headers=STREAM)
        assert "model.log" in [item[1] for item in parse_events(response.text)]


async def test_a_trace_that_is_no_json_is_sent_to_nobody(front: Front) -> None:
    client, stream = await follow(front, request("GET", EVENTS + "?trace=true"))
    for raw in (b'{"data":"\xff"}', b'{"data":[}'):
        stream.put(SessionEvent("broken", "model.message", raw))
    stream.put(event(1, "model.message"))
    stream.end()
    assert [item[0] for item in await client.events()] == ["e1"]


@pytest.mark.parametrize(
    ("path", "headers", "after"),
    [
        (EVENTS, [], None),
        (EVENTS, ["Last-Event-ID: e7"], "e7"),
        (EVENTS + "?after=e8", [], "e8"),
        (EVENTS + "?after=e8", ["Last-Event-ID: e9"], "e9"),
    ],
)
async def test_a_reader_goes_on_where_it_stopped(
    front: Front, path: str, headers: list[str], after: str | None
) -> None:
    await follow(front, request("GET", path, *headers))
    assert front.sessions.calls[-1][3] == after


@pytest.mark.parametrize("value", ["x" * 201, "a\u00fc"])
async def test_a_last_event_id_that_is_none_is_refused(front: Front, value: str) -> None:
    client = await front.raw(request("GET", EVENTS, f"Last-Event-ID: {value}"))
    status, _, document = await client.response()
    assert (status, document["errors"][0]["field"]) == (400, "header.Last-Event-ID")


@pytest.mark.parametrize("limits", [HttpLimits(heartbeat=0.2)])
async def test_a_quiet_stream_shows_signs_of_life(front: Front) -> None:
    client, stream = await follow(front)
    assert await client.chunk() == b":\n\n"
    assert await client.chunk() == b":\n\n"
    stream.put(event(1))
    assert (await client.event())[0] == "e1"


async def test_events_that_are_there_already_travel_together(front: Front) -> None:
    client, stream = await follow(front)
    stream.put(*[event(number) for number in range(20)])
    assert len(parse_events((await client.chunk()).decode())) == 20


# A turn's stream


@pytest.mark.parametrize("path", [MESSAGES, "/api/v1/ask"])
async def test_a_turn_s_stream_ends_with_what_the_plain_call_answers(front: Front, path: str) -> None:
    plain = (await front.client.post(path, json={"prompt": "Hi"})).json()
    response = await front.client.post(path, json={"prompt": "Hi"}, headers=STREAM)
    events = parse_events(response.text)
    assert [item[:2] for item in events] == [
        ("e1", "assistant.message_delta"),
        ("e3", "assistant.message"),
        (None, "end"),
    ]
    plain["turn"]["id"] = "turn_1"
    assert events[-1][2] == plain
    await front.sessions.turns[-1].stream.closed.wait()
    assert front.sessions.turns[-1].stream.closes == 1


async def test_the_events_of_a_turn_arrive_while_it_runs(front: Front) -> None:
    client, turn = await prompted(front)
    turn.stream.put(event(1))
    assert (await client.event())[0] == "e1"
    assert turn.row.status is TurnStatus.RUNNING


@pytest.mark.parametrize(
    ("status", "code"),
    [(TurnStatus.FAILED, "turn_failed"), (TurnStatus.INTERRUPTED, "turn_interrupted"), (TurnStatus.ABORTED, None)],
)
async def test_the_end_of_a_turn_that_did_not_complete_has_the_problem(
    front: Front, status: TurnStatus, code: str | None
) -> None:
    client, turn = await prompted(front)
    turn.finish(status)
    [(_, kind, end)] = await client.events()
    assert kind == "end"
    assert end["turn"]["status"] == status
    assert end["message"] is None
    if code is None:
        assert "error" not in end
    else:
        front.contract.validate({"$ref": "#/components/schemas/Problem"}, end["error"])
        assert end["error"]["code"] == code
        assert end["error"]["turn"] == end["turn"]


@pytest.mark.parametrize(
    ("accept", "streams"),
    [
        ("text/event-stream", True),
        ("application/json, Text/Event-Stream;q=0.9", True),
        ("*/*", False),
        ("application/json", False),
        ("text/event-streams", False),
    ],
)
async def test_a_stream_is_sent_to_those_who_ask_for_one(front: Front, accept: str, streams: bool) -> None:
    response = await front.client.post(MESSAGES, json={"prompt": "Hi"}, headers={"Accept": accept})
    assert response.headers["content-type"].startswith("text/event-stream" if streams else "application/json")


async def test_an_error_before_the_stream_is_an_ordinary_answer(front: Front) -> None:
    front.sessions.fail_next(Capacity("queue is full"))
    response = await front.client.get(EVENTS, headers=STREAM)
    assert (response.status_code, response.json()["code"]) == (503, "capacity")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreUnavailable("locked"), "store_unavailable"),
        (Lagging(), "capacity"),
        (RuntimeError("a secret"), "internal"),
    ],
)
async def test_an_error_within_the_stream_is_its_last_event(front: Front, error: Exception, code: str) -> None:
    client, stream = await follow(front)
    stream.put(event(1))
    await client.event()
    stream.fail(error)
    [(event_id, kind, document)] = await client.events()
    assert (event_id, kind, document["code"]) == (None, "error", code)
    front.contract.validate({"$ref": "#/components/schemas/Problem"}, document)
    assert "secret" not in str(document)
    await stream.closed.wait()
    assert stream.closes == 1


async def test_a_lagging_reader_of_a_turn_does_not_end_the_turn(front: Front) -> None:
    client, turn = await prompted(front)
    turn.stream.fail(Lagging())
    assert [item[1] for item in await client.events()] == ["error"]
    await turn.stream.closed.wait()
    assert (turn.stream.closes, turn.abandons) == (1, 0)


# Readers that leave


async def test_a_reader_that_leaves_lets_go_of_its_subscription(front: Front) -> None:
    client, stream = await follow(front)
    client.abort()
    await asyncio.wait_for(stream.closed.wait(), 20)
    assert stream.closes == 1


async def test_a_reader_that_leaves_a_turn_abandons_it_once(front: Front) -> None:
    client, turn = await prompted(front)
    turn.stream.put(event(1))
    await client.event()
    client.abort()
    await asyncio.wait_for(turn.abandoned.wait(), 20)
    await asyncio.wait_for(turn.stream.closed.wait(), 20)
    assert (turn.abandons, turn.stream.closes) == (1, 1)


async def test_a_reader_that_leaves_after_the_end_abandons_nothing(front: Front) -> None:
    client, turn = await prompted(front)
    turn.finish()
    await client.events()
    client.abort()
    await front.client.get("/health")
    assert (turn.abandons, turn.stream.closes) == (0, 1)


async def test_a_complete_response_is_not_a_reader_that_left() -> None:
    complete = asyncio.Event()
    disconnects: list[str] = []

    async def produce(outbox: Outbox) -> None:
        outbox.add(frame("end", {}))

    async def receive() -> Message:
        await complete.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("more_body") is False:
            complete.set()
            # The reader's side is told of the end before this one goes on.
            for _ in range(5):
                await asyncio.sleep(0)

    response = SseResponse(
        produce,
        on_close=lambda: disconnects.append("closed"),
        on_disconnect=lambda: disconnects.append("gone"),
        stop=Signal(),
        farewell=lambda: b"",
        limits=HttpLimits(),
    )
    await response({"type": "http"}, receive, send)
    assert disconnects == ["closed"]


async def test_the_connection_serves_another_request_after_a_stream(front: Front) -> None:
    client = await front.raw(PROMPT)
    await client.head()
    await client.events()
    await client.send(request("GET", "/api/v1/sessions/s1"))
    assert (await client.response())[0] == 200


# The server stops


async def test_readers_of_a_session_are_told_to_reconnect_when_the_server_stops(front: Front) -> None:
    client, stream = await follow(front)
    stream.put(event(1))
    await client.event()
    await asyncio.wait_for(front.server.stop(30), 20)
    assert await client.events() == [(None, "reconnect", {"last_event_id": "e1"})]


async def test_a_reader_is_told_to_reconnect_when_its_session_leaves_a_server_that_goes_on(front: Front) -> None:
    client, stream = await follow(front)
    stream.put(event(1), event(2))
    stream.fail_at_end(Draining("it has moved"))
    assert [(kind, data) for _, kind, data in await client.events()][-1] == ("reconnect", {"last_event_id": "e2"})
    await asyncio.wait_for(stream.closed.wait(), 20)


@pytest.mark.parametrize("limits", [HttpLimits(keep_alive=0.3)])
@pytest.mark.parametrize(("position", "told"), [("e7", "e7"), ("", None)])
async def test_a_reader_that_has_seen_nothing_is_told_where_it_began(
    front: Front, position: str, told: str | None
) -> None:
    front.sessions.stream_position = position
    client, stream = await follow(front)
    stream.fail_at_end(Draining("it has moved"))
    assert await client.events() == [(None, "reconnect", {"last_event_id": told})]
    await stream.closed.wait()
    assert stream.closes == 1
    assert await client.is_closed()


async def test_a_turn_s_stream_gets_the_grace_period(front: Front) -> None:
    client, turn = await prompted(front)
    stopping = asyncio.create_task(front.server.stop(30))
    turn.stream.put(event(1))
    await client.event()
    turn.finish()
    assert [item[1] for item in await client.events()] == ["end"]
    await asyncio.wait_for(stopping, 20)
    assert turn.abandons == 0


async def test_a_turn_s_stream_that_outlives_the_grace_period_says_so(front: Front) -> None:
    client, turn = await prompted(front)
    await asyncio.wait_for(front.server.stop(0.05), 20)
    [(_, kind, document)] = await client.events()
    assert (kind, document["code"], document["turn"]["status"]) == ("error", "draining", "running")
    assert (turn.abandons, turn.stream.closes) == (0, 1)


# The outbox


async def test_the_outbox_takes_no_more_than_its_limit() -> None:
    outbox = Outbox(10)
    await outbox.put(b"x" * 9)
    await outbox.put(b"y" * 9)
    blocked = asyncio.create_task(outbox.put(b"z"))
    await asyncio.sleep(0)
    assert not blocked.done()
    assert await outbox.take() == b"x" * 9 + b"y" * 9
    await blocked
    assert await outbox.take() == b"z"


async def test_what_comes_right_after_a_chunk_gathers_until_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome.http.sse.PACE", 3600)
    outbox = Outbox(10)
    outbox.add(b"first")
    assert await outbox.take() == b"first"
    taker = asyncio.create_task(outbox.take())
    for piece in (b"a", b"b", b"c"):
        outbox.add(piece)
        await asyncio.sleep(0)
    assert not taker.done()
    outbox.close()
    assert await taker == b"abc"


async def test_a_full_outbox_is_given_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome.http.sse.PACE", 3600)
    outbox = Outbox(10)
    outbox.add(b"first")
    assert await outbox.take() == b"first"
    taker = asyncio.create_task(outbox.take())
    outbox.add(b"a")
    await asyncio.sleep(0)
    outbox.add(b"x" * 10)
    assert await taker == b"a" + b"x" * 10


async def test_a_chunk_that_is_due_is_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome.http.sse.PACE", 0.001)
    outbox = Outbox(10)
    for piece in (b"a", b"b"):
        outbox.add(piece)
        assert await outbox.take() == piece


async def test_a_closed_outbox_gives_out_what_it_has_and_then_ends() -> None:
    outbox = Outbox(10)
    outbox.add(b"last")
    outbox.close()
    outbox.add(b"late")
    assert await outbox.take() == b"last"
    assert await outbox.take() == b""


async def test_closing_wakes_both_sides() -> None:
    outbox = Outbox(1)
    taker = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.close()
    assert await taker == b""

    outbox = Outbox(1)
    await outbox.put(b"x")
    putter = asyncio.create_task(outbox.put(b"y"))
    await asyncio.sleep(0)
    outbox.discard()
    await putter
    assert await outbox.take() == b""
