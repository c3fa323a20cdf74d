"""Errors are problem documents with a stable code, whoever raises them and wherever."""

from __future__ import annotations

import httpx
import pytest
import structlog
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from aerodrome.errors import (
    AerodromeError,
    Capacity,
    Conflict,
    Fenced,
    Forbidden,
    Invalid,
    NotFound,
    RateLimited,
    RuntimeUnavailable,
    SessionBusy,
    StoreUnavailable,
    all_codes,
)
from aerodrome.http.problems import PROBLEMS, problem_of
from aerodrome.http.server import HttpServer
from aerodrome.observability.logging import add_trace
from support.http_front import BOB, MESSAGES, Front, request


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SessionBusy("a turn is running"), 409),
        (Conflict("other prompt"), 409),
        (Capacity("queue is full"), 503),
        (RateLimited("60 a minute"), 429),
        (RuntimeUnavailable("no CLI"), 503),
        (StoreUnavailable("locked"), 503),
        (Forbidden("readers may not send"), 403),
        (NotFound("no such session"), 404),
        (Invalid("no such tool"), 400),
    ],
    ids=lambda value: value.code if isinstance(value, AerodromeError) else "",
)
async def test_an_error_of_the_sessions_room_is_answered_with_its_code(
    front: Front, error: AerodromeError, status: int
) -> None:
    front.sessions.fail_next(error)
    response = await front.client.post(MESSAGES, json={"prompt": "Hi"}, headers={"Accept": "text/event-stream"})
    document = response.json()
    assert response.status_code == document["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert document["code"] == error.code
    assert document["detail"] == error.detail
    assert document["retryable"] is error.retryable
    assert document["type"] == f"urn:aerodrome:problem:{error.code}"
    assert "retry_after" not in document
    assert "Retry-After" not in response.headers


@pytest.mark.parametrize(("seconds", "header"), [(2.5, "3"), (0.01, "1"), (0, "1"), (30, "30")])
async def test_a_known_wait_is_in_the_document_and_in_the_header(front: Front, seconds: float, header: str) -> None:
    front.sessions.fail_next(Capacity("queue is full", retry_after=seconds, limit=20))
    response = await front.client.post(MESSAGES, json={"prompt": "Hi"})
    assert response.json()["retry_after"] == seconds
    assert response.json()["limit"] == 20
    assert response.headers["Retry-After"] == header


def test_extra_members_do_not_replace_those_of_the_standard() -> None:
    document = problem_of(Invalid("wrong", status=200, type="x", limit=3))
    assert document["status"] == 400
    assert document["type"] == "urn:aerodrome:problem:invalid"
    assert document["limit"] == 3


def test_every_code_that_a_user_may_see_has_a_status_and_the_same_retryable() -> None:
    ours = {code: cls for code, cls in all_codes().items() if code not in ("fenced", "invalid_configuration")}
    assert set(PROBLEMS) == {*ours, "internal"}
    assert {code: PROBLEMS[code].retryable for code in ours} == {code: cls.retryable for code, cls in ours.items()}


@pytest.mark.parametrize("error", [RuntimeError("the password is 123"), Fenced("epoch 3 is older than 4")])
async def test_a_defect_is_answered_without_its_details(front: Front, error: Exception) -> None:
    front.sessions.failure = error
    with capture_logs() as logs:
        response = await front.client.get("/api/v1/sessions/s1", headers={"X-Request-Id": "r-1"})
    assert response.status_code == 500
    assert response.json()["code"] == "internal"
    assert str(error) not in response.text
    if isinstance(error, RuntimeError):
        assert [entry["exc_info"] for entry in logs if entry["event"] == "http.unexpected_error"] == [True]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/v1",
        "/api/v1/nothing",
        "/api/v1/sessions/",
        "/api/v1/sessions/s1/nothing",
        "/api/v1/sessions/s1%2Fmessages",
        "/api/v1/sessions/../../etc/passwd",
        "/api/v1/sessions/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "//api/v1/sessions",
    ],
)
async def test_an_unknown_route_is_a_problem(front: Front, path: str) -> None:
    client = await front.raw(request("GET", path))
    status, _, document = await client.response()
    assert (status, document["code"]) == (404, "not_found")
    assert front.sessions.calls == []


@pytest.mark.parametrize(
    "session_id",
    ["..", "a b", "a%20b", "a'%20OR%201=1--", "ü", "a%00b", "a%0Ab", "s1;", "%252e", "x" * 201, "x" * 10_000],
)
async def test_an_impossible_id_is_an_unknown_session_and_nobody_is_asked(front: Front, session_id: str) -> None:
    encoded = session_id.replace(" ", "%20").encode().decode("latin-1")
    encoded = encoded if encoded.isascii() else "%C3%BC"
    for method, path, body in [
        ("GET", f"/api/v1/sessions/{encoded}", b""),
        ("GET", f"/api/v1/sessions/{encoded}/messages", b""),
        ("GET", f"/api/v1/sessions/{encoded}/events", b""),
        ("DELETE", f"/api/v1/sessions/{encoded}", b""),
        ("PATCH", f"/api/v1/sessions/{encoded}", b'{"title":"t"}'),
        ("POST", f"/api/v1/sessions/{encoded}/messages", b'{"prompt":"Hi"}'),
        ("POST", f"/api/v1/sessions/{encoded}/abort", b""),
        ("POST", f"/api/v1/sessions/{encoded}/requests/r", b'{"decision":"deny"}'),
    ]:
        client = await front.raw(request(method, path, "Content-Type: application/json", body=body))
        status, _, document = await client.response()
        assert (status, document["code"]) == (404, "not_found"), (method, path)
    assert front.sessions.calls == []


@pytest.mark.parametrize("request_id", ["a%20b", "%00", "x" * 201, "%C3%BC"])
async def test_an_impossible_request_id_is_an_unknown_request(front: Front, request_id: str) -> None:
    response = await front.client.post(f"/api/v1/sessions/s1/requests/{request_id}", json={"decision": "deny"})
    assert response.status_code == 404
    assert front.sessions.calls == []


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/v1/sessions", {"GET", "POST"}),
        ("HEAD", "/api/v1/sessions", {"GET", "POST"}),
        ("OPTIONS", "/api/v1/sessions", {"GET", "POST"}),
        ("GET", "/api/v1/ask", {"POST"}),
        ("POST", "/health", {"GET", "HEAD"}),
        ("TRACE", "/api/v1/sessions/s1/messages", {"GET", "POST"}),
        ("PUT", "/api/v1/sessions/s1", {"GET", "PATCH", "DELETE"}),
        ("POST", "/openapi.json", {"GET", "HEAD"}),
    ],
)
async def test_a_wrong_method_says_which_are_right(front: Front, method: str, path: str, allowed: set[str]) -> None:
    response = await front.client.request(method, path)
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == allowed
    if method != "HEAD":
        assert response.json()["code"] == "invalid"
        assert response.json()["detail"] == f"this route answers {', '.join(sorted(allowed))}, not {method}"


async def test_the_connection_goes_on_after_an_error(front: Front) -> None:
    client = await front.raw()
    for _ in range(3):
        await client.send(request("HEAD", "/api/v1/nothing"))
        assert (await client.head())[0] == 404
        await client.send(request("GET", "/api/v1/sessions/s1"))
        assert (await client.response())[0] == 200


async def test_what_is_not_http_is_answered_and_cut(front: Front) -> None:
    client = await front.raw(b"\x16\x03\x01 hello\r\n\r\n")
    status, headers, document = await client.response()
    assert (status, document["code"], headers["connection"]) == (400, "invalid", "close")
    assert headers["content-type"] == "application/problem+json"
    assert await client.is_closed()


async def test_strangers_do_not_fill_the_log(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    for odd in (
        b"\x16\x03\x01 hello\r\n\r\n",
        request("GET", "/health", "Connection: Upgrade", "Upgrade: websocket", key=None),
        request("GET", "/health", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", key=None),
    ):
        await (await front.raw(odd)).response()
    assert caplog.records == []


async def test_what_uvicorn_finds_wrong_with_us_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    server = HttpServer(broken, "127.0.0.1", 0)
    host, port = await server.start()
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"http://{host}:{port}/")).status_code == 500
    await server.stop(0)
    assert [(record.name, record.levelname) for record in caplog.records] == [("aerodrome.http.uvicorn", "ERROR")]


async def test_the_request_id_is_the_caller_s_if_it_is_sound(front: Front) -> None:
    kept = await front.client.get("/health", headers={"X-Request-Id": "trace:1.a_b-c"})
    assert kept.headers["X-Request-Id"] == "trace:1.a_b-c"
    for unsound in ("", "a b", "x" * 129, "a\tb"):
        made = await front.client.get("/health", headers={"X-Request-Id": unsound})
        assert len(made.headers["X-Request-Id"]) == 32
    refused = await front.client.get("/api/v1/sessions", headers={"Authorization": "Bearer no", "X-Request-Id": "r"})
    assert refused.headers["X-Request-Id"] == "r"


async def test_a_request_behind_another_one_has_nothing_of_it(front: Front) -> None:
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    with capture_logs(processors=[structlog.contextvars.merge_contextvars, add_trace]) as logs:
        client = await front.raw(
            request("GET", "/api/v1/sessions/s1", f"traceparent: {parent}") + request("GET", "/health", key=None)
        )
        assert [(await client.response())[0] for _ in range(2)] == [200, 200]
        await client.send(request("GET", "/health", key=None))
        await client.response()
    first, *others = [entry for entry in logs if entry["event"] == "http.request"]
    assert (first["user"], first["trace_id"]) == ("alice", "1" * 32)
    for other in others:
        assert not {"user", "tenant", "trace_id"} & other.keys()


async def test_a_request_is_logged_without_what_was_said(front: Front) -> None:
    with capture_logs() as logs:
        await front.client.post(MESSAGES, json={"prompt": "a secret"}, headers={"Idempotency-Key": "hidden"})
        await front.client.get("/api/v1/sessions/s1", headers=BOB)
    lines = [entry for entry in logs if entry["event"] == "http.request"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", MESSAGES, 200),
        ("GET", "/api/v1/sessions/s1", 404),
    ]
    assert "secret" not in str(logs)
    assert "hidden" not in str(logs)
    assert "aero_" not in str(logs)
