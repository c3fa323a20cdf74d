"""Who calls is known before anything else of the request is looked at."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.errors import StoreUnavailable
from aerodrome.model import Principal, Role
from support.http_front import ALICE, EVENTS, MESSAGES, Front, request
from support.scripted_sessions import ScriptedStream, event
from support.waiting import until


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "aero_alice",
        "Basic YWxpY2U6eA==",
        "Bearer",
        "Bearer ",
        "Bearer aero_alice aero_bob",
        "Bearer a\u00fc",
        "Bearer a\x7f",
    ],
)
async def test_a_missing_or_garbled_header_is_told_how_to_send_it(front: Front, value: str | None) -> None:
    headers = [] if value is None else [f"Authorization: {value}"]
    client = await front.raw(request("GET", "/api/v1/sessions", *headers, key=None))
    status, response_headers, document = await client.response()
    assert (status, document["code"]) == (401, "unauthenticated")
    assert response_headers["www-authenticate"] == 'bearer realm="aerodrome"'
    assert "'Authorization: Bearer KEY'" in document["detail"]
    assert front.keys.asked == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
async def test_the_scheme_is_read_as_the_standard_says(front: Front, scheme: str) -> None:
    response = await front.client.get("/api/v1/sessions", headers={"Authorization": f"{scheme} aero_alice"})
    assert response.status_code == 200


async def test_an_unknown_key_is_refused(front: Front) -> None:
    response = await front.client.get("/api/v1/sessions", headers={"Authorization": "Bearer aero_mallory"})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="aerodrome"'
    assert "aero_mallory" not in response.text
    assert front.sessions.calls == []


@pytest.mark.parametrize("path", ["/", "/docs", "/api/v1/nothing", "/health/", "/openapi.json/x"])
async def test_a_stranger_learns_nothing_of_other_paths(front: Front, path: str) -> None:
    assert (await front.client.get(path, headers={"Authorization": ""})).status_code == 401


async def test_the_body_of_a_stranger_is_not_read(front: Front) -> None:
    # `Expect: 100-continue` makes it visible: whoever reads the body first asks the client to send it.
    head = request("POST", MESSAGES, "Content-Length: 1000", "Expect: 100-continue", key="aero_mallory")
    client = await front.raw(head)
    assert (await client.head())[0] == 401

    head = request("POST", MESSAGES, "Content-Length: 1000", "Expect: 100-continue")
    client = await front.raw(head)
    assert (await client.head())[0] == 100


async def test_a_key_that_can_not_be_looked_up_is_not_a_wrong_key(front: Front) -> None:
    front.keys.failure = StoreUnavailable("the database is locked", retry_after=1)
    response = await front.client.get("/api/v1/sessions", headers=ALICE)
    assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")


async def test_a_stream_of_events_ends_with_the_key_that_it_began_with(front: Front) -> None:
    await front.sessions.set_member(Principal("acme", "alice"), "s1", "bob", Role.READER)
    alice = await front.raw(request("GET", EVENTS))
    bob = await front.raw(request("GET", EVENTS, key="aero_bob"))
    assert [(await reader.head())[0] for reader in (alice, bob)] == [200, 200]
    front.keys.revoked.add("aero_bob")
    await front.readers.recheck()
    assert [(kind, data["code"]) for _, kind, data in await bob.events()] == [("error", "unauthenticated")]
    front.sessions.streams[0].put(event(1))
    assert (await alice.event())[0] == "e1"


async def test_a_key_that_is_revoked_while_its_reader_is_let_in_ends_the_stream(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on until somebody looks at all keys again."""
    find, found = front.sessions.events, asyncio.Event()

    async def events(who: Principal, session_id: str, *, after: str | None = None) -> ScriptedStream:
        await found.wait()
        return await find(who, session_id, after=after)

    monkeypatch.setattr(front.sessions, "events", events)
    reader = await front.raw(request("GET", EVENTS))
    await until(lambda: front.readers.count == 1)
    front.keys.revoked.add("aero_alice")
    await front.readers.recheck()
    found.set()
    assert (await reader.head())[0] == 200
    async with asyncio.timeout(30):
        assert [(kind, data["code"]) for _, kind, data in await reader.events()] == [("error", "unauthenticated")]


async def test_a_store_that_is_away_ends_no_stream(front: Front) -> None:
    reader = await front.raw(request("GET", EVENTS))
    assert (await reader.head())[0] == 200
    front.keys.failure = StoreUnavailable("the database is locked")
    await front.readers.recheck()
    front.sessions.streams[0].put(event(1))
    assert (await reader.event())[0] == "e1"


async def test_nobody_is_looked_after_who_has_gone(front: Front) -> None:
    reader = await front.raw(request("GET", EVENTS))
    assert (await reader.head())[0] == 200
    reader.abort()
    await front.sessions.streams[0].closed.wait()
    front.keys.asked.clear()
    await front.readers.recheck()
    assert front.keys.asked == []
