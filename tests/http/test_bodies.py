"""Bodies that are too large, broken, or not what the route takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aerodrome.http.limits import HttpLimits
from support.http_front import MESSAGES, Front, request, serving

LIMIT = 10_000
#: For who is to be given up: others shall have all the time that a busy machine takes.
IMPATIENT = HttpLimits(max_body=LIMIT, read_timeout=0.3)
JSON = "Content-Type: application/json"


@pytest.fixture
def limits() -> HttpLimits:
    return HttpLimits(max_body=LIMIT)


@pytest.fixture
async def roomy() -> AsyncIterator[Front]:
    async with serving(HttpLimits()) as front:
        yield front


def prompt_of(size: int) -> bytes:
    """A valid body of that many bytes."""
    frame = b'{"prompt":""}'
    return frame[:-2] + b"x" * (size - len(frame)) + frame[-2:]


async def post(front: Front, content: bytes, path: str = MESSAGES, **headers: str) -> tuple[int, dict[str, Any]]:
    response = await front.client.post(path, content=content, headers={"Content-Type": "application/json", **headers})
    return response.status_code, response.json()


async def test_a_body_of_the_limit_is_taken_and_one_byte_more_is_not(front: Front) -> None:
    assert (await post(front, prompt_of(LIMIT)))[0] == 200
    status, document = await post(front, prompt_of(LIMIT + 1))
    assert (status, document["code"], document["limit"]) == (413, "too_large", LIMIT)
    assert len(front.sessions.turns) == 1


async def test_a_declared_length_is_refused_before_the_body_is_sent(front: Front) -> None:
    client = await front.raw(request("POST", MESSAGES, JSON, f"Content-Length: {10**12}", "Expect: 100-continue"))
    assert (await client.response())[0] == 413


async def test_a_refused_body_that_is_sent_nevertheless_does_not_harm_the_connection(front: Front) -> None:
    client = await front.raw(request("POST", MESSAGES, JSON, body=prompt_of(3 * LIMIT)))
    assert (await client.response())[0] == 413
    await client.send(request("GET", "/api/v1/sessions/s1"))
    assert (await client.response())[0] == 200


@pytest.mark.parametrize("limits", [IMPATIENT])
async def test_a_refused_body_that_never_ends_is_cut(front: Front) -> None:
    client = await front.raw(request("POST", MESSAGES, JSON, f"Content-Length: {10**9}") + b"x" * 1000)
    assert (await client.response())[0] == 413
    assert await client.is_closed()


@pytest.mark.parametrize("limits", [IMPATIENT])
async def test_a_refused_body_that_goes_on_for_ever_is_cut(front: Front) -> None:
    client = await front.raw(request("POST", MESSAGES, JSON, "Transfer-Encoding: chunked"))

    async def send_for_ever() -> None:
        while True:
            await client.send(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
            await asyncio.sleep(0.01)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(send_for_ever(), 20)


@pytest.mark.parametrize("limits", [IMPATIENT])
async def test_a_head_that_never_ends_is_cut(front: Front) -> None:
    client = await front.raw(b"GET /api/v1/sessions HTTP/1.1\r\nX-Slow: ")

    async def send_for_ever() -> None:
        while True:
            await client.send(b"x")
            await asyncio.sleep(0.01)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(send_for_ever(), 20)


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(front: Front) -> None:
    client = await front.raw(request("POST", MESSAGES, JSON, "Transfer-Encoding: chunked"))
    chunk = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
    for _ in range(LIMIT // 0x1000 + 1):
        await client.send(chunk)
    status, _, document = await client.response()
    assert (status, document["code"]) == (413, "too_large")


@pytest.mark.parametrize("key", ["aero_alice", None])
async def test_a_body_of_two_lengths_is_refused_and_what_follows_is_not_read(front: Front, key: str | None) -> None:
    hidden = request("DELETE", "/api/v1/sessions/s1")
    client = await front.raw(
        request("POST", MESSAGES, JSON, "Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n", key=key)
        + hidden
    )
    status, headers, document = await client.response()
    assert (status, document["code"], headers["connection"]) == (400, "invalid", "close")
    assert await client.is_closed()
    assert front.sessions.calls == []


async def test_a_chunked_body_within_the_limit_is_taken(front: Front) -> None:
    client = await front.raw(request("POST", MESSAGES, JSON, "Transfer-Encoding: chunked"))
    for part in (b'{"pro', b'mpt":"Hi"}'):
        await client.send(b"%x\r\n%b\r\n" % (len(part), part))
    await client.send(b"0\r\n\r\n")
    assert (await client.response())[0] == 200


@pytest.mark.parametrize("limits", [HttpLimits(max_body=LIMIT, max_incoming=2 * LIMIT)])
async def test_one_user_s_bodies_that_come_in_are_not_without_end(front: Front) -> None:
    """Each may be as large as one may be, and be sent as slowly."""
    slow = request("POST", MESSAGES, JSON, f"Content-Length: {LIMIT}") + b'{"prompt":"' + b"x" * 8_000
    answers = {asyncio.create_task(client.response()): client for client in [await front.raw(slow) for _ in range(3)]}
    [refused], waiting = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
    status, headers, document = refused.result()
    assert (status, document["code"], headers["retry-after"]) == (429, "rate_limited", "1")
    first, second = waiting
    # Somebody else's are something else, and so is what has come in.
    bob = await front.raw(request("POST", "/api/v1/ask", JSON, key="aero_bob", body=prompt_of(LIMIT)))
    assert (await bob.response())[0] == 200
    rest = b"x" * (LIMIT - 8_011 - 2) + b'"}'
    await answers[first].send(rest)
    assert (await first)[0] == 200
    answers[second].abort()
    with pytest.raises(asyncio.IncompleteReadError):
        await second
    await front.client.get("/health")
    for _ in range(3):
        assert (await post(front, prompt_of(LIMIT)))[0] == 200


@pytest.mark.parametrize("limits", [IMPATIENT])
async def test_a_body_that_stalls_is_given_up(front: Front) -> None:
    client = await front.raw(request("POST", MESSAGES, JSON, "Content-Length: 100") + b'{"prompt"')
    status, _, document = await client.response()
    assert (status, document["code"]) == (400, "invalid")
    assert "incomplete" in document["detail"]
    assert await client.is_closed()


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b'{"prompt": "Hi"', "line 1 column 15"),
        (b'{\n"prompt": Hi}', "line 2 column 11"),
        (b'{"prompt": "Hi"} x', "trailing characters"),
        (b'{"prompt": "\xff\xfe"}', "line 1 column"),
        (b'{"prompt": "\\ud800"}', "line 1 column"),
        (b'{"prompt": NaN}', "line 1 column 12"),
        (b"\xef\xbb\xbf{}", "line 1 column 1"),
        (b"[" * 5000, "recursion limit"),
        (b'{"prompt":"Hi","attachments":[{"a":' + b'{"a":' * 1500, "recursion limit"),
        (b"{'prompt': 'Hi'}", "line 1 column 2"),
        (b"prompt=Hi", "line 1 column 1"),
    ],
)
async def test_broken_json_is_told_where(front: Front, content: bytes, where: str) -> None:
    status, document = await post(front, content)
    assert (status, document["code"]) == (400, "invalid")
    assert "not valid JSON" in document["detail"]
    assert where in document["detail"]
    assert front.sessions.calls == []


@pytest.mark.parametrize(
    ("body", "field", "detail"),
    [
        ({}, "body.prompt", "Field required"),
        ({"prompt": ""}, "body", "prompt is empty"),
        ({"prompt": 5}, "body.prompt", "string"),
        ({"prompt": None}, "body.prompt", "string"),
        ({"prompt": "Hi", "promt": "Hi"}, "body.promt", "unknown field"),
        ({"prompt": "Hi", "on_busy": "wait"}, "body.on_busy", "'enqueue', 'reject', 'steer' or 'interrupt'"),
        ({"prompt": "Hi", "attachments": {}}, "body.attachments", "list"),
        ({"prompt": "Hi", "attachments": [{}, 5]}, "body.attachments[1]", "dictionary"),
        ({"prompt": "Hi", "attachments": [{}] * 101}, "body.attachments", "at most 100"),
        ([], "body", "dictionary"),
        (None, "body", "dictionary"),
        ("Hi", "body", "dictionary"),
    ],
)
async def test_a_wrong_field_is_named(front: Front, body: Any, field: str, detail: str) -> None:
    status, document = await post(front, json.dumps(body).encode())
    assert (status, document["code"]) == (400, "invalid")
    assert [error["field"] for error in document["errors"]] == [field]
    assert detail in document["errors"][0]["detail"]
    assert document["detail"] == f"{field}: {document['errors'][0]['detail']}"
    assert front.sessions.calls == []


async def test_every_wrong_field_is_named(front: Front) -> None:
    status, document = await post(front, b'{"a":1,"b":2}')
    assert status == 400
    assert {error["field"] for error in document["errors"]} == {"body.prompt", "body.a", "body.b"}
    assert "(and 2 more, see errors)" in document["detail"]


@pytest.mark.parametrize(
    "content",
    [
        b"{%s}" % b",".join(b'"a%d":1' % number for number in range(60_000)),
        b'{"tools":[%s1]}' % (b"1," * 60_000),
        b'{"tools":[%s""]}' % (b"[]," * 60_000),
        b"[" * 60_000,
    ],
)
async def test_a_body_of_very_many_values_is_not_even_decoded(
    roomy: Front, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sixteen megabytes of them took the event loop for 13 s: longer than other nodes hold this one for alive.
    monkeypatch.setattr("aerodrome.http.encoding.from_json", None)
    for path in ("/api/v1/sessions", MESSAGES):
        status, document = await post(roomy, content, path)
        assert (status, document["code"]) == (400, "invalid")
        assert document["detail"] == "the body has more than 50000 values"
    assert roomy.sessions.calls == []


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({f"a{number}": 1 for number in range(1000)}, "the body has more than 100 fields"),
        ({"tools": [1] * 40_000}, "body.tools[0]: Input should be a valid string"),
        ({"tools": ["x"] * 201}, "body.tools: List should have at most 200 items after validation, not 201"),
        ({"tools": ["x" * 201]}, "body.tools[0]: String should have at most 200 characters"),
    ],
)
async def test_not_each_of_very_many_mistakes_is_named(roomy: Front, value: Any, complaint: str) -> None:
    status, document = await post(roomy, json.dumps(value).encode(), "/api/v1/sessions")
    assert (status, document["detail"]) == (400, complaint)


async def test_what_looks_like_many_values_in_a_prompt_is_text(roomy: Front) -> None:
    prompt = json.dumps({'\\"': ["{[,]}"] * 60_000})
    status, _ = await post(roomy, json.dumps({"prompt": prompt}).encode())
    assert status == 200
    assert roomy.sessions.calls[0][3].prompt == prompt


async def test_what_the_caller_sent_is_not_repeated_in_the_error(front: Front) -> None:
    _, document = await post(front, b'{"prompt":["a secret"]}')
    assert "secret" not in json.dumps(document)


@pytest.mark.parametrize("session_id", ["", "a b", "../x", "ü", "x" * 201, "a\n", "a'; DROP TABLE x;--", "x" * 9000])
async def test_a_session_id_that_is_no_id_is_told_the_rule(front: Front, session_id: str) -> None:
    status, document = await post(front, json.dumps({"id": session_id}).encode(), "/api/v1/sessions")
    assert (status, document["code"]) == (400, "invalid")
    assert document["errors"][0]["field"] == "body.id"
    assert "[A-Za-z0-9_-]{1,200}" in document["detail"]
    assert front.sessions.calls == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "forever"}, "body.kind"),
        ({"title": ""}, "body.title"),
        ({"title": "x" * 201}, "body.title"),
        ({"tools": "view"}, "body.tools"),
        ({"model": ""}, "body.model"),
        ({"owner": "bob"}, "body.owner"),
    ],
)
async def test_a_session_is_not_opened_with_a_wrong_field(front: Front, body: Any, field: str) -> None:
    status, document = await post(front, json.dumps(body).encode(), "/api/v1/sessions")
    assert (status, document["errors"][0]["field"]) == (400, field)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body.decision"),
        ({"decision": "maybe"}, "body.decision"),
        ({"decision": "approve", "answer": "x"}, "body.decision"),
        ({"answer": 1}, "body.answer"),
        ({"answer": "x", "free_form": []}, "body.free_form"),
        ([], "body"),
    ],
)
async def test_an_answer_that_is_none_is_refused(front: Front, body: Any, field: str) -> None:
    status, document = await post(front, json.dumps(body).encode(), "/api/v1/sessions/s1/requests/req-1")
    assert (status, document["errors"][0]["field"]) == (400, field)
    assert front.sessions.calls == []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/v1/sessions?limit=0", "query.limit"),
        ("/api/v1/sessions?limit=201", "query.limit"),
        ("/api/v1/sessions?limit=ten", "query.limit"),
        (f"/api/v1/sessions?cursor={'x' * 1001}", "query.cursor"),
        (f"{MESSAGES}?limit=1001", "query.limit"),
        ("/api/v1/sessions/s1/events?trace=perhaps", "query.trace"),
        (f"/api/v1/sessions/s1/events?after={'x' * 201}", "query.after"),
        ("/api/v1/sessions/s1/events?after=a%0Ab", "query.after"),
    ],
)
async def test_a_wrong_parameter_is_named(front: Front, path: str, field: str) -> None:
    response = await front.client.get(path)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (400, field)


@pytest.mark.parametrize("key", ["", "x" * 201, "a\u00fc", "a\tb"])
async def test_an_idempotency_key_is_1_to_200_printable_characters(front: Front, key: str) -> None:
    client = await front.raw(request("POST", MESSAGES, JSON, f"Idempotency-Key: {key}", body=b'{"prompt":"Hi"}'))
    status, _, document = await client.response()
    assert (status, document["errors"][0]["field"]) == (400, "header.Idempotency-Key")


@pytest.mark.parametrize("key", ["x", "x" * 200, "! ~", "e\\'\"1"])
async def test_other_idempotency_keys_are_passed_on(front: Front, key: str) -> None:
    assert (await post(front, b'{"prompt":"Hi"}', **{"Idempotency-Key": key}))[0] == 200
    assert front.sessions.calls[0][3].idempotency_key == key


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "", "application/jsonx"])
async def test_a_body_that_is_not_declared_as_json_is_told_how(front: Front, kind: str) -> None:
    status, document = await post(front, b'{"prompt":"Hi"}', **{"Content-Type": kind})
    assert (status, document["code"]) == (400, "invalid")
    assert "'Content-Type: application/json'" in document["detail"]


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
async def test_a_json_body_may_be_declared_in_more_than_one_way(front: Front, kind: str) -> None:
    assert (await post(front, b'{"prompt":"Hi"}', **{"Content-Type": kind}))[0] == 200


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        (b'{"prompt":"first","prompt":"last"}', "last"),
        (b'{"prompt":"\\u0000\\u202e\\ud83d\\ude00\\u2028"}', "\x00\u202e\U0001f600\u2028"),
        ('{"prompt":"日本語 e\u0301 🏳️‍🌈"}'.encode(), "日本語 e\u0301 🏳️‍🌈"),
        (b'{"prompt":"   "}', "   "),
    ],
)
async def test_unusual_prompts_arrive_as_they_are(front: Front, content: bytes, prompt: str) -> None:
    assert (await post(front, content))[0] == 200
    assert front.sessions.calls[0][3].prompt == prompt


async def test_attachments_may_come_without_words(front: Front) -> None:
    assert (await post(front, b'{"prompt":"","attachments":[{"type":"blob"}]}'))[0] == 200


async def test_a_route_without_a_body_does_not_mind_one(front: Front) -> None:
    assert (await post(front, b"not json", "/api/v1/sessions/s1/abort"))[0] == 200
