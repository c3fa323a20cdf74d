"""Every route does what the reference says, and hands the sessions room what the caller meant."""

from __future__ import annotations

import pytest

from aerodrome.errors import SessionBusy
from aerodrome.model import LastTurn, OnBusy, Role, SessionKey, SessionKind, SessionRow, SessionState, TurnStatus
from aerodrome.sessions.api import Ask, Message, OpenSession, SendMessage
from support.http_front import ALICE, BOB, MESSAGES, Front
from support.scripted_sessions import KEYS

ALICE_IS = KEYS["aero_alice"]


async def test_a_session_is_opened_and_its_object_is_complete(front: Front) -> None:
    body = {
        "id": "support-42",
        "model": "gpt-4.1",
        "kind": "ephemeral",
        "title": "Ünïcode ✓ title",
        "system_message": "Be brief.",
        "tools": ["view"],
    }
    response = await front.client.post("/api/v1/sessions", json=body)

    assert response.status_code == 201
    assert response.json() == {
        "id": "support-42",
        "tenant": "acme",
        "owner": "alice",
        "kind": "ephemeral",
        "state": "hibernated",
        "model": "gpt-4.1",
        "title": "Ünïcode ✓ title",
        "members": [{"user": "alice", "role": "owner"}],
        "created_at": 1.0,
        "last_used_at": 2.0,
        "last_turn": None,
    }
    asked = OpenSession(
        id="support-42",
        model="gpt-4.1",
        kind=SessionKind.EPHEMERAL,
        title="Ünïcode ✓ title",
        system_message="Be brief.",
        tools=["view"],
    )
    assert front.sessions.calls == [("open", ALICE_IS, asked)]


async def test_opening_one_s_own_session_again_answers_200(front: Front) -> None:
    response = await front.client.post("/api/v1/sessions", json={"id": "s1"})
    assert response.status_code == 200
    assert response.json()["id"] == "s1"


@pytest.mark.parametrize("content", [None, "{}", "null"])
async def test_a_session_can_be_opened_without_saying_anything(front: Front, content: str | None) -> None:
    headers = {"Content-Type": "application/json"} if content else {}
    response = await front.client.post("/api/v1/sessions", content=content, headers=headers)
    assert response.status_code == 201
    assert front.sessions.calls == [("open", ALICE_IS, OpenSession())]


async def test_sessions_are_listed_page_by_page(front: Front) -> None:
    for number in range(5):
        await front.client.post("/api/v1/sessions", json={"id": f"n{number}"})

    first = (await front.client.get("/api/v1/sessions", params={"limit": 4})).json()
    second = (await front.client.get("/api/v1/sessions", params={"limit": 4, "cursor": first["next"]})).json()

    assert [row["id"] for row in first["sessions"] + second["sessions"]] == ["s1", "n0", "n1", "n2", "n3", "n4"]
    assert second["next"] is None
    assert (await front.client.get("/api/v1/sessions", headers=BOB)).json() == {"sessions": [], "next": None}


async def test_a_session_is_read(front: Front) -> None:
    row = SessionRow(
        SessionKey("acme", "s2"),
        "alice",
        state=SessionState.RUNNING,
        last_turn=LastTurn("turn_7", TurnStatus.INTERRUPTED),
    )
    front.sessions.rows[row.key] = row
    session = (await front.client.get("/api/v1/sessions/s2")).json()
    assert session["state"] == "running"
    assert session["last_turn"] == {"id": "turn_7", "status": "interrupted"}


async def test_a_session_gets_another_title(front: Front) -> None:
    response = await front.client.patch("/api/v1/sessions/s1", json={"title": "New"})
    assert response.json()["title"] == "New"


async def test_a_session_is_deleted(front: Front) -> None:
    response = await front.client.delete("/api/v1/sessions/s1")
    assert (response.status_code, response.content) == (204, b"")
    assert (await front.client.get("/api/v1/sessions/s1")).status_code == 404


async def test_a_prompt_is_answered_when_the_turn_is_done(front: Front) -> None:
    attachment = {"type": "blob", "data": "aGk=", "mimeType": "text/plain"}
    response = await front.client.post(
        MESSAGES,
        json={"prompt": "Which?", "attachments": [attachment], "on_busy": "steer"},
        headers={"Idempotency-Key": "try 1"},
    )
    assert response.status_code == 200
    assert response.json() == {
        "turn": {"id": "turn_0", "status": "completed", "started_at": 2.5, "ended_at": 3.5, "retried": False},
        "message": {"id": "a1", "content": "Titan."},
        "usage": {"tokens": 4},
    }
    sent = SendMessage("Which?", [attachment], OnBusy.STEER, "try 1", told_at_end=True)
    assert front.sessions.calls == [("send", ALICE_IS, "s1", sent)]


async def test_a_prompt_without_choices_leaves_them_to_the_configuration(front: Front) -> None:
    await front.client.post(MESSAGES, json={"prompt": "Hi"})
    assert front.sessions.calls == [("send", ALICE_IS, "s1", SendMessage("Hi", told_at_end=True))]


async def test_a_prompt_that_is_answered_as_a_stream_is_acknowledged_by_its_first_event(front: Front) -> None:
    await front.client.post(MESSAGES, json={"prompt": "Hi"}, headers={"Accept": "text/event-stream"})
    assert front.sessions.calls == [("send", ALICE_IS, "s1", SendMessage("Hi"))]


async def test_one_question_is_asked_without_a_session(front: Front) -> None:
    response = await front.client.post(
        "/api/v1/ask", json={"prompt": "Hi", "model": "gpt-4.1", "system_message": "Be brief."}
    )
    assert response.json()["message"]["content"] == "Titan."
    assert front.sessions.calls == [("ask", ALICE_IS, Ask("Hi", "gpt-4.1", "Be brief.", streaming=False))]


async def test_the_history_is_read(front: Front) -> None:
    front.sessions.messages = [
        Message("u1", "user", "Half a pair: \ud83d", 5.0, "turn_0", "alice"),
        Message("a1", "assistant", "Titan.", 6.0),
    ]
    page = (await front.client.get(MESSAGES, params={"limit": 2})).json()
    assert page == {
        "messages": [
            {
                "id": "u1",
                "role": "user",
                "content": "Half a pair: \ud83d",
                "author": "alice",
                "turn_id": "turn_0",
                "created_at": 5.0,
            },
            {"id": "a1", "role": "assistant", "content": "Titan.", "turn_id": None, "created_at": 6.0},
        ],
        "next": None,
    }
    await front.client.get(MESSAGES, params={"limit": 1, "cursor": "c"})
    assert front.sessions.calls[-1] == ("history", ALICE_IS, "s1", "c", 1)


async def test_a_running_turn_is_aborted(front: Front) -> None:
    assert (await front.client.post("/api/v1/sessions/s1/abort")).json() == {"aborted": False}


@pytest.mark.parametrize(
    "answer",
    [
        {"decision": "approve"},
        {"decision": "deny", "feedback": "Use a copy."},
        {"answer": "Version 2"},
        {"answer": "", "free_form": True},
    ],
)
async def test_a_request_of_the_runtime_is_answered(front: Front, answer: dict[str, object]) -> None:
    response = await front.client.post("/api/v1/sessions/s1/requests/req-1", json=answer)
    assert (response.status_code, response.content) == (204, b"")
    assert front.sessions.calls == [("answer", ALICE_IS, "s1", "req-1", answer)]


async def test_a_session_is_shared_and_shared_no_more(front: Front) -> None:
    response = await front.client.put("/api/v1/sessions/s1/members/bob@acme.example", json={"role": "reader"})
    assert response.status_code == 200
    assert response.json()["members"] == [
        {"user": "alice", "role": "owner"},
        {"user": "bob@acme.example", "role": "reader"},
    ]
    gone = await front.client.delete("/api/v1/sessions/s1/members/bob@acme.example")
    assert (gone.status_code, gone.content) == (204, b"")
    assert front.sessions.calls == [
        ("set_member", ALICE_IS, "s1", "bob@acme.example", Role.READER),
        ("remove_member", ALICE_IS, "s1", "bob@acme.example"),
    ]


@pytest.mark.parametrize(
    "body", [{}, {"role": "owner"}, {"role": "boss"}, {"role": "reader", "until": 1}, {"role": None}]
)
async def test_what_is_no_role_is_not_given(front: Front, body: dict[str, object]) -> None:
    response = await front.client.put("/api/v1/sessions/s1/members/bob", json=body)
    assert (response.status_code, response.json()["code"]) == (400, "invalid")
    assert front.sessions.calls == []


async def test_who_may_not_wait_is_told_who_holds_the_session(front: Front) -> None:
    front.sessions.fail_next(SessionBusy("a turn is running", turn="turn_7", author="bob"))
    said = (await front.client.post(MESSAGES, json={"prompt": "Hi", "on_busy": "reject"})).json()
    assert (said["code"], said["turn"], said["author"]) == ("session_busy", "turn_7", "bob")


async def test_someone_else_s_session_looks_like_none(front: Front) -> None:
    there = await front.client.get("/api/v1/sessions/s1", headers=BOB)
    gone = await front.client.get("/api/v1/sessions/s9", headers=BOB)
    assert there.status_code == gone.status_code == 404
    assert there.json()["detail"].replace("s1", "s9") == gone.json()["detail"]


async def test_probes_need_no_key(front: Front) -> None:
    front.client.headers.pop("Authorization")
    assert (await front.client.get("/health")).json() == {"status": "alive"}
    assert (await front.client.get("/ready")).json() == {"status": "ready", "detail": "accepting work"}
    assert (await front.client.get("/openapi.json")).json()["info"]["title"] == "Aerodrome"
    assert (await front.client.head("/health")).status_code == 200
    assert front.keys.asked == []


async def test_a_node_that_takes_no_work_says_why(front: Front) -> None:
    front.probe.answer = (False, "no Copilot CLI was found")
    response = await front.client.get("/ready")
    assert response.status_code == 503
    assert response.json()["detail"] == "no Copilot CLI was found"
    assert (await front.client.get("/health")).status_code == 200
    assert (await front.client.head("/ready")).status_code == 503


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_no_page_that_needs_the_internet_is_served(front: Front, path: str) -> None:
    assert (await front.client.get(path, headers=ALICE)).status_code == 404
