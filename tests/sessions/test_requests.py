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


def asked(request_id: str, question: str) -> SessionEvent:
    return event("user_input.requested", requestId=request_id, question=question)


async def test_the_call_of_a_question_is_held_until_it_is_answered_or_the_session_goes() -> None:
    requests = OpenRequests(60, lambda _: None)
    requests.see(asked("r1", "left?"))
    requests.see(asked("r2", "right?"))
    first, second = asyncio.create_task(requests.hold("left?")), asyncio.create_task(requests.hold("right?"))
    await asyncio.sleep(0)
    requests.see(event("user_input.completed", requestId="r1"))
    await first
    assert not second.done()
    requests.close()
    await second


@pytest.mark.parametrize("calls", [("left?", "right?"), ("right?", "left?")])
@pytest.mark.parametrize("answered", ["r1", "r2"])
@pytest.mark.parametrize("told_first", [True, False])
async def test_no_question_is_answered_with_the_answer_to_another(
    calls: tuple[str, ...], answered: str, told_first: bool
) -> None:
    """The calls of two that are asked at the same time come in any order, and people answer in any order."""
    requests = OpenRequests(60, lambda _: None)
    questions = {"r1": "left?", "r2": "right?"}
    if told_first:
        for request_id, question in questions.items():
            requests.see(asked(request_id, question))
    held = {question: asyncio.create_task(requests.hold(question)) for question in calls}
    await asyncio.sleep(0)
    if not told_first:
        for request_id, question in questions.items():
            requests.see(asked(request_id, question))
    requests.see(event("user_input.completed", requestId=answered))
    await held.pop(questions[answered])
    (other,) = held.values()
    assert not other.done()
    requests.close()
    await other


async def test_calls_of_the_same_question_are_held_until_it_is_asked_no_more() -> None:
    requests = OpenRequests(60, lambda _: None)
    for request_id in ("r1", "r2"):
        requests.see(asked(request_id, "sure?"))
    held = [asyncio.create_task(requests.hold("sure?")) for _ in range(2)]
    await asyncio.sleep(0)
    requests.see(event("user_input.completed", requestId="r2"))
    await asyncio.sleep(0)
    assert not any(task.done() for task in held)
    requests.see(event("user_input.completed", requestId="r1"))
    await asyncio.gather(*held)


async def test_no_more_questions_are_held_than_fit() -> None:
    requests = OpenRequests(60, lambda _: None)
    for number in range(MAX_HELD + 1):
        requests.see(asked(f"r{number}", f"{number}?"))
    held = [asyncio.create_task(requests.hold(f"{number}?")) for number in range(MAX_HELD)]
    await asyncio.sleep(0)
    assert not await requests.hold(f"{MAX_HELD}?")
    requests.see(event("user_input.completed", requestId=f"r{MAX_HELD}"))
    await asyncio.sleep(0)
    assert not any(task.done() for task in held)
    requests.see(event("user_input.completed", requestId="r0"))
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
