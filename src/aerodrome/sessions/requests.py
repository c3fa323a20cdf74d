"""What a session's runtime asks of people: permissions, and answers to the agent's questions.

A request is open from its `...requested` event until it is answered, by us or by somebody else, or its time is up:
whoever waits for an answer for ever would hold its turn for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aerodrome.events import SessionEvent

PERMISSION = "permission"
USER_INPUT = "user_input"

#: Questions of one session that wait for people at the same time.
MAX_HELD = 32

_REQUESTED = {"permission.requested": PERMISSION, "user_input.requested": USER_INPUT}
_COMPLETED = frozenset({"permission.completed", "user_input.completed"})


@dataclass(frozen=True, slots=True)
class OpenRequest:
    id: str
    kind: str
    #: Ends the time in which it may be answered.
    timer: asyncio.TimerHandle

    def call(self, session_id: str, answer: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The method and the parameters that answer it (`Sessions.answer` has the answer's shapes)."""
        params: dict[str, Any] = {"sessionId": session_id, "requestId": self.id}
        if self.kind == PERMISSION:
            return "session.permissions.handlePendingPermissionRequest", {**params, "result": _decision(answer)}
        return "session.ui.handlePendingUserInput", {**params, "response": _reply(answer)}


class OpenRequests:
    """The open requests of one activation.

    Args:
        timeout: Seconds.
        on_expired: Called with a request whose time is up; it is still open.
    """

    def __init__(self, timeout: float, on_expired: Callable[[OpenRequest], None]) -> None:
        self._timeout = timeout
        self._on_expired = on_expired
        self._open: dict[str, OpenRequest] = {}
        #: What is asked in those that are questions.
        self._questions: dict[str, str] = {}
        #: `userInput.request` calls of the runtime that are under way, and what they ask.
        self._held: dict[asyncio.Future[None], str] = {}

    def see(self, event: SessionEvent) -> None:
        """Every event of the session comes by here."""
        if (kind := _REQUESTED.get(event.type)) is not None:
            data = event.data
            if not data.get("resolvedByHook"):
                self.put(str(data.get("requestId")), kind)
            if kind == USER_INPUT:
                self._questions[str(data.get("requestId"))] = str(data.get("question"))
        elif event.type in _COMPLETED:
            request_id = str(event.data.get("requestId"))
            self.take(request_id)
            if (question := self._questions.pop(request_id, None)) is not None:
                self._let_go(question)

    def put(self, request_id: str, kind: str) -> None:
        timer = asyncio.get_running_loop().call_later(self._timeout, self._expired, request_id)
        self._open[request_id] = OpenRequest(request_id, kind, timer)

    def take(self, request_id: str) -> OpenRequest | None:
        """The request, which is not open any more; ``None`` when it was not."""
        request = self._open.pop(request_id, None)
        if request is not None:
            request.timer.cancel()
        return request

    async def hold(self, question: str) -> bool:
        """Wait until a question is answered. The call of the runtime that asks it does not name the request which
        its event names, and whose answer is the one that counts.

        Returns:
            ``False``, at once: so many wait already that this one is to be answered without asking anybody.
        """
        if len(self._held) >= MAX_HELD:
            return False
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held[held] = question
        await asyncio.wait({held})
        return True

    def _let_go(self, question: str) -> None:
        """The question was answered. An answer to the call of another one would count as the answer to that: calls of
        several questions that are asked at the same time come in any order, and all stay as long as the same is asked
        once more."""
        if question not in self._questions.values():
            for held in [held for held, asked in self._held.items() if asked == question]:
                del self._held[held]
                held.cancel()

    def close(self) -> None:
        for request in self._open.values():
            request.timer.cancel()
        self._open.clear()
        self._questions.clear()
        for held in self._held:
            held.cancel()
        self._held.clear()

    def _expired(self, request_id: str) -> None:
        self._on_expired(self._open[request_id])


def denial(kind: str, said: str) -> dict[str, Any]:
    """The safe answer to a request that nobody answers."""
    return {"decision": "deny", "feedback": said} if kind == PERMISSION else {"answer": said}


def _decision(answer: dict[str, Any]) -> dict[str, Any]:
    if answer.get("decision") == "approve":
        return {"kind": "approve-once"}
    return {"kind": "reject", "feedback": str(answer.get("feedback") or "denied by the user")}


def _reply(answer: dict[str, Any]) -> dict[str, Any]:
    return {"answer": str(answer.get("answer", "")), "wasFreeform": bool(answer.get("free_form", True))}
