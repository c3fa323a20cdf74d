"""A prompt's answer as JSON: every way a turn ends, and callers that do not wait for it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from aerodrome.model import TurnStatus
from support.http_front import MESSAGES, Front, request
from support.scripted_sessions import ScriptedTurn

PROMPT = request("POST", MESSAGES, "Content-Type: application/json", body=b'{"prompt":"Hi"}')


async def running_turn(front: Front) -> ScriptedTurn:
    """The turn of a prompt that was just sent."""
    while not front.sessions.turns:
        front.sessions.called.clear()
        await front.sessions.called.wait()
    return front.sessions.turns[-1]


async def ended(front: Front, status: TurnStatus, **changes: Any) -> httpx.Response:
    front.sessions.autofinish = {"status": status, **changes}
    return await front.client.post(MESSAGES, json={"prompt": "Hi"})


async def test_the_answer_waits_for_the_end_of_the_turn(front: Front) -> None:
    front.sessions.autofinish = None
    pending = asyncio.create_task(front.client.post(MESSAGES, json={"prompt": "Hi"}))
    turn = await running_turn(front)
    assert not pending.done()
    turn.finish(answer={"id": "a1", "content": "Later.", "model": "m"}, retried=True)
    response = await pending
    assert response.json()["message"] == {"id": "a1", "content": "Later."}
    assert response.json()["turn"]["retried"] is True
    assert turn.abandons == 0


async def test_a_failed_turn_is_a_bad_gateway(front: Front) -> None:
    response = await ended(front, TurnStatus.FAILED, error={"code": "turn_failed", "detail": "the provider said 500"})
    document = response.json()
    assert (response.status_code, document["code"], document["retryable"]) == (502, "turn_failed", False)
    assert document["detail"] == "the provider said 500"
    assert document["turn"] == {
        "id": "turn_0",
        "status": "failed",
        "started_at": 2.5,
        "ended_at": 3.5,
        "retried": False,
    }


async def test_an_interrupted_turn_may_be_tried_again(front: Front) -> None:
    response = await ended(front, TurnStatus.INTERRUPTED, retried=True)
    document = response.json()
    assert (response.status_code, document["code"], document["retryable"]) == (503, "turn_interrupted", True)
    assert document["turn"]["status"] == "interrupted"


@pytest.mark.parametrize(
    ("code", "status"), [("runtime_unavailable", 503), ("store_unavailable", 503), ("unheard_of", 502)]
)
async def test_a_turn_that_failed_for_a_known_reason_says_so(front: Front, code: str, status: int) -> None:
    response = await ended(front, TurnStatus.FAILED, error={"code": code, "detail": "no CLI"})
    assert response.status_code == status
    assert response.json()["code"] == (code if status == 503 else "turn_failed")


@pytest.mark.parametrize("answer", [None, {"id": "a1", "content": "So f"}])
async def test_an_aborted_turn_is_what_somebody_wanted(front: Front, answer: dict[str, Any] | None) -> None:
    response = await ended(front, TurnStatus.ABORTED, answer=answer)
    assert response.status_code == 200
    assert response.json()["turn"]["status"] == "aborted"
    assert response.json()["message"] == answer


async def test_a_caller_that_goes_away_abandons_its_turn_once(front: Front) -> None:
    front.sessions.autofinish = None
    client = await front.raw(PROMPT)
    turn = await running_turn(front)
    client.abort()
    await asyncio.wait_for(turn.abandoned.wait(), 20)
    assert turn.abandons == 1


async def test_a_caller_that_goes_away_after_the_answer_abandons_nothing(front: Front) -> None:
    client = await front.raw(PROMPT)
    assert (await client.response())[0] == 200
    client.abort()
    # The next request is served after the lost connection has been noticed.
    await front.client.get("/health")
    assert front.sessions.turns[0].abandons == 0


async def test_a_caller_that_goes_away_while_it_sends_is_not_an_error(front: Front) -> None:
    with capture_logs() as logs:
        client = await front.raw(PROMPT[:-5])
        await front.client.get("/health")
        client.abort()
        async with asyncio.timeout(20):
            while not (seen := [entry for entry in logs if entry.get("path") == MESSAGES]):
                await front.client.get("/health")
    assert [(entry["event"], entry["status"]) for entry in seen] == [("http.request", 499)]
    assert front.sessions.calls == []


async def test_a_turn_that_outlives_the_grace_period_is_not_abandoned(front: Front) -> None:
    front.sessions.autofinish = None
    pending = asyncio.create_task(front.client.post(MESSAGES, json={"prompt": "Hi"}))
    turn = await running_turn(front)
    await front.server.stop(0.05)
    response = await pending
    document = response.json()
    assert (response.status_code, document["code"], document["retryable"]) == (503, "draining", True)
    assert document["turn"]["status"] == "running"
    assert response.headers["Retry-After"] == "1"
    assert turn.abandons == 0


async def test_a_turn_that_ends_within_the_grace_period_is_answered(front: Front) -> None:
    front.sessions.autofinish = None
    pending = asyncio.create_task(front.client.post(MESSAGES, json={"prompt": "Hi"}))
    turn = await running_turn(front)
    stopping = asyncio.create_task(front.server.stop(10))
    await asyncio.sleep(0)
    turn.finish()
    assert (await pending).status_code == 200
    await asyncio.wait_for(stopping, 9)
