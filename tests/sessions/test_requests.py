"""Open permission and user-input requests: answered once, or expired, never both."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from aerodrome.events import SessionEvent
from aerodrome.sessions.requests import MAX_HELD, PERMISSION, USER_INPUT, OpenRequest, OpenRequests, denial


def event(kind: str, **data: Any) -> SessionEvent:
    return SessionEvent("e", kind, json.dumps({"type": kind, "data": data}).encode())


@pytest.fixture
async def troubles() -> list[dict[str, Any]]:
    """What goes wrong in callbacks, where nobody sees it."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


async def test_a_request_is_open_until_it_is_answered_or_its_time_is_up(troubles: list[dict[str, Any]]) -> None:
    expired: list[OpenRequest] = []
    requests = OpenRequests(0.01, expired.append)
    for number in range(3):
        requests.see(event("permission.requested", requestId=f"r{number}"))
    assert requests.take("r0") is not None
    assert requests.take("r0") is None
    requests.see(event("permission.completed", requestId="r1"))
    await asyncio.sleep(0.03)
    assert [request.id for request in expired] == ["r2"]
    taken = requests.take("r2")
    assert taken is not None
    assert taken.kind == PERMISSION
    assert troubles == []


async def test_what_a_hook_has_resolved_is_not_open() -> None:
    requests = OpenRequests(60, lambda _: None)
    requests.see(event("permission.requested", requestId="r1", resolvedByHook=True))
    assert requests.take("r1") is None


async def test_the_call_of_a_question_is_held_until_it_is_answered_or_the_session_goes() -> None:
    requests = OpenRequests(60, lambda _: None)
    first, second = asyncio.create_task(requests.hold()), asyncio.create_task(requests.hold())
    await asyncio.sleep(0)
    requests.see(event("user_input.requested", requestId="r1"))
    requests.see(event("user_input.completed", requestId="r1"))
    await first
    assert not second.done()
    requests.close()
    await second


async def test_no_more_questions_are_held_than_fit() -> None:
    requests = OpenRequests(60, lambda _: None)
    held = [asyncio.create_task(requests.hold()) for _ in range(MAX_HELD)]
    await asyncio.sleep(0)
    assert not await requests.hold()
    requests.see(event("user_input.completed", requestId="the one that was not held"))
    await asyncio.sleep(0)
    assert not any(task.done() for task in held)
    requests.see(event("user_input.completed", requestId="another"))
    assert await held[0]
    requests.close()
    await asyncio.wait(held)


async def test_after_the_end_nothing_expires(troubles: list[dict[str, Any]]) -> None:
    expired: list[OpenRequest] = []
    requests = OpenRequests(0.01, expired.append)
    requests.see(event("permission.requested", requestId="r1"))
    requests.close()
    await asyncio.sleep(0.03)
    assert expired == []
    assert troubles == []


@pytest.mark.parametrize(
    ("kind", "answer", "result"),
    [
        (PERMISSION, {"decision": "approve"}, {"kind": "approve-once"}),
        (PERMISSION, {"decision": "deny", "feedback": "no"}, {"kind": "reject", "feedback": "no"}),
        (PERMISSION, {"decision": "deny"}, {"kind": "reject", "feedback": "denied by the user"}),
        (PERMISSION, {"decision": "something else"}, {"kind": "reject", "feedback": "denied by the user"}),
        (PERMISSION, denial(PERMISSION, "late"), {"kind": "reject", "feedback": "late"}),
        (USER_INPUT, {"answer": "left", "free_form": False}, {"answer": "left", "wasFreeform": False}),
        (USER_INPUT, denial(USER_INPUT, "late"), {"answer": "late", "wasFreeform": True}),
    ],
)
async def test_answers_are_put_into_the_runtimes_words(kind: str, answer: dict[str, Any], result: Any) -> None:
    requests = OpenRequests(60, lambda _: None)
    requests.put("r1", kind)
    request = requests.take("r1")
    assert request is not None
    method, params = request.call("s1", answer)
    assert (params["sessionId"], params["requestId"]) == ("s1", "r1")
    assert params["result" if kind == PERMISSION else "response"] == result
    assert method.startswith("session.")
