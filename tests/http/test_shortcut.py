"""The shortcut for prompts leads where the framework's way does, and is taken for what may take it."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from aerodrome.http.shortcut import PromptShortcut
from support.http_front import MESSAGES, Front, RawClient, request

#: A query goes the framework's way.
LONG_WAY = f"{MESSAGES}?trace=false"
PLAIN = b'{"prompt":"Hi"}'
JSON = "Content-Type: application/json"


async def outcome(front: Front, client: RawClient, path: str, headers: tuple[str, ...], body: bytes) -> Any:
    """What the caller is told, and what the sessions were asked."""
    front.sessions.calls.clear()
    front.sessions.turns.clear()
    await client.send(request("POST", path, *headers, body=body))
    status, answered, document = await client.response()
    return status, answered["content-type"], document, list(front.sessions.calls)


@pytest.mark.parametrize(
    "body",
    [
        PLAIN,
        b'{"prompt":"\\u00e9 \\ud83d\\ude00","on_busy":"reject","attachments":[]}',
        b'{"prompt":""}',
        b'{"prompt":1}',
        b'{"prompt":"Hi","more":1}',
        b'{"prompt":"Hi","on_busy":"never"}',
        b'{"prompt":"Hi"',
        b'{"prompt":NaN}',
        b"[]",
        b"\xff",
        b"",
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        (JSON,),
        (JSON, "Idempotency-Key: k 1"),
        (JSON, "Idempotency-Key: " + "k" * 201),
        (JSON, "Idempotency-Key: \xe9"),
        (JSON, "Idempotency-Key: a", "Idempotency-Key: b"),
        ("Content-Type: application/json; charset=utf-8",),
        ("Content-Type: Application/JSON",),
        ("Content-Type: text/plain",),
        (),
    ],
)
async def test_both_ways_lead_to_the_same(front: Front, headers: tuple[str, ...], body: bytes) -> None:
    client = await front.raw()
    short = await outcome(front, client, MESSAGES, headers, body)
    assert short == await outcome(front, client, LONG_WAY, headers, body)


async def test_ids_that_are_none_are_the_same_both_ways(front: Front) -> None:
    for session in ("nobody", "s%31", "a%2Fb", "a.b", "x" * 201):
        path = f"/api/v1/sessions/{session}/messages"
        client = await front.raw()
        short = await outcome(front, client, path, (JSON,), PLAIN)
        assert short == await outcome(front, client, f"{path}?trace=false", (JSON,), PLAIN)


def scope(**changes: Any) -> dict[str, Any]:
    raw_path = changes.pop("raw_path", MESSAGES.encode())
    headers = [(b"content-type", b"application/json")]
    values = {"type": "http", "method": "POST", "query_string": b"", "raw_path": raw_path, "headers": headers}
    return values | changes


class Framework:
    """Takes what does not take the shortcut."""

    def __init__(self) -> None:
        self.received: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.received = [await receive(), await receive()]


async def never(message: Message) -> None:
    raise AssertionError(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "GET"},
        {"query_string": b"trace=true"},
        {"raw_path": b"/api/v1/sessions/s1/abort"},
        {"headers": []},
        {"type": "lifespan"},
    ],
)
async def test_what_is_not_a_plain_prompt_passes_untouched(changes: dict[str, Any]) -> None:
    framework, pieces = Framework(), [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return pieces.pop(0)

    await PromptShortcut(framework)(scope(**changes), receive, never)
    assert [message["type"] for message in framework.received] == ["http.request", "http.disconnect"]


async def test_a_body_that_was_read_in_vain_is_read_again() -> None:
    framework = Framework()
    pieces: list[Message] = [
        {"type": "http.request", "body": b'{"pro', "more_body": True},
        {"type": "http.request", "body": b'mpt":1}', "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return pieces.pop(0)

    await PromptShortcut(framework)(scope(), receive, never)
    first, second = framework.received
    assert json.loads(first["body"]) == {"prompt": 1}
    assert second == {"type": "http.disconnect"}


async def test_a_prompt_is_kept_once_while_its_turn_runs(front: Front) -> None:
    front.sessions.autofinish = None
    size = 4_000_000
    client = await front.raw()
    body = b'{"prompt":"' + b"x" * size + b'"}'
    tracemalloc.start()
    try:
        client.writer.write(request("POST", MESSAGES, "Content-Type: application/json", body=body))
        del body
        await asyncio.wait_for(front.sessions.called.wait(), 60)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    front.sessions.turns[0].finish()
    assert (await client.response())[0] == 200
    assert size < kept < 1.5 * size


async def test_a_plain_prompt_takes_the_shortcut(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    async def parse(self: Any) -> None:
        raise AssertionError("the framework's way")

    monkeypatch.setattr("aerodrome.http.routing._JsonRequest.parse", parse)
    for headers in ({}, {"Idempotency-Key": "k"}):
        answer = await front.client.post(MESSAGES, json={"prompt": "Hi"}, headers=headers)
        assert answer.status_code == 200
    assert [call[3].idempotency_key for call in front.sessions.calls] == [None, "k"]
