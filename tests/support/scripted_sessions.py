"""A `Sessions` double in memory: it does what a test tells it to, and remembers what it was asked.

Its event streams are bounded and cut off a reader that falls behind, as the protocol demands.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from aerodrome.coordination.ports import Node, Page
from aerodrome.errors import AerodromeError, NotFound, Unauthenticated
from aerodrome.events import SessionEvent
from aerodrome.model import Principal, Role, SessionKey, SessionRow, TurnRow, TurnStatus
from aerodrome.operators.administration import Retirement
from aerodrome.operators.requests import Operation, State, Verb
from aerodrome.operators.view import node_rows
from aerodrome.sessions.api import Ask, Lagging, Message, MessagePage, OpenSession, SendMessage

KEYS = {
    "aero_alice": Principal("acme", "alice"),
    "aero_bob": Principal("acme", "bob"),
    "aero_root": Principal("operators", "root", frozenset({"admin"})),
}

RUNTIME = {
    "id": "rt-1",
    "pid": 4711,
    "state": "claimed",
    "tenant": "acme",
    "user": None,
    "sessions": 3,
    "turns": 7,
    "rss_bytes": 300_000_000,
    "started_at": 1.0,
    "node": "n1",
}


class Keys:
    """An `Authenticator` with `KEYS`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.revoked: set[str] = set()
        self.failure: Exception | None = None

    async def authenticate(self, key: str) -> Principal:
        self.asked.append(key)
        if self.failure is not None:
            raise self.failure
        if key not in KEYS or key in self.revoked:
            raise Unauthenticated("nobody issued this key")
        return KEYS[key]


class Probe:
    """A `Readiness`."""

    def __init__(self) -> None:
        self.answer = (True, "accepting work")

    def ready(self) -> tuple[bool, str]:
        return self.answer


class ScriptedAdministration:
    """An `Administration`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.failure: Exception | None = None
        self.state = State.DONE

    def _called(self, *call: str) -> None:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure

    async def nodes(self) -> list[dict[str, Any]]:
        self._called("nodes")
        load = {"runtimes": [RUNTIME], "sessions": 3, "started_at": 1.0, "rss_bytes": 10}
        return node_rows([Node("n1", "n1-1", "127.0.0.1:4321", load)], 61.0)

    async def runtimes(self) -> list[dict[str, Any]]:
        self._called("runtimes")
        return [RUNTIME]

    async def retire(self, runtime_id: str, verb: Verb, *, wait: float | None = None) -> Retirement:
        self._called(verb.value, runtime_id, str(wait))
        ended_at = 12.5 if self.state is State.DONE else None
        return Retirement(runtime_id, "n1", Operation("op-1", verb, runtime_id, self.state, 10.0, ended_at))

    async def drain_node(self, wanted: str) -> Node:
        self._called("drain node", wanted)
        return Node("n1", "n1-1")


def event(number: int, kind: str = "assistant.message_delta", *, ephemeral: bool = False, **data: Any) -> SessionEvent:
    envelope = {"type": kind, "data": data, "id": f"e{number}", "timestamp": "2026-01-01T00:00:00Z", "parentId": None}
    return SessionEvent(f"e{number}", kind, json.dumps(envelope).encode(), ephemeral)


class ScriptedStream:
    """A bounded subscription."""

    def __init__(self, capacity: int = 1000) -> None:
        self._capacity = capacity
        self._events: deque[SessionEvent] = deque()
        self._changed = asyncio.Event()
        self._failure: Exception | None = None
        self._last_words: Exception | None = None
        self._ended = False
        self.position = ""
        self.taken = 0
        self.closes = 0
        self.closed = asyncio.Event()

    def put(self, *events: SessionEvent) -> None:
        for item in events:
            if len(self._events) >= self._capacity:
                self.fail(Lagging())
            elif not self._ended:
                self._events.append(item)
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    def fail(self, error: Exception) -> None:
        self._failure = error
        self._changed.set()

    def fail_at_end(self, error: Exception) -> None:
        """Raise the error behind what is there."""
        self._last_words = error
        self.end()

    def close(self) -> None:
        self.closes += 1
        self.closed.set()
        self.end()

    async def __aiter__(self) -> AsyncIterator[SessionEvent]:
        while True:
            if self._failure is not None:
                raise self._failure
            if self._events:
                self.taken += 1
                yield self._events.popleft()
            elif self._ended:
                if self._last_words is not None:
                    raise self._last_words
                return
            else:
                self._changed.clear()
                await self._changed.wait()


class ScriptedTurn:
    def __init__(self, row: TurnRow) -> None:
        self.row = row
        self.stream = ScriptedStream()
        self.abandons = 0
        self.abandoned = asyncio.Event()
        self._final = asyncio.Event()

    async def wait(self, reader: str | None = None) -> TurnRow:
        await self._final.wait()
        return self.row

    def events(self, reader: str | None = None) -> ScriptedStream:
        return self.stream

    def abandon(self) -> None:
        self.abandons += 1
        self.abandoned.set()

    def finish(self, status: TurnStatus = TurnStatus.COMPLETED, **changes: Any) -> None:
        self.row = replace(self.row, status=status, ended_at=3.5, **changes)
        self._final.set()
        self.stream.end()


class ScriptedSessions:
    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], SessionRow] = {}
        self.messages: list[Message] = []
        self.calls: list[tuple[Any, ...]] = []
        #: Raised by the next call, once.
        self.failure: Exception | None = None
        #: What a new turn does at once; a test that wants to act itself sets it to ``None``.
        self.autofinish: dict[str, Any] | None = {"answer": {"id": "a1", "content": "Titan."}, "usage": {"tokens": 4}}
        self.turns: list[ScriptedTurn] = []
        self.streams: list[ScriptedStream] = []
        self.stream_capacity = 1000
        self.stream_position = ""
        self.called = asyncio.Event()

    def _call(self, *call: Any) -> None:
        self.calls.append(call)
        self.called.set()
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def _find(self, who: Principal, session_id: str) -> SessionRow:
        row = self.rows.get((who.tenant, session_id))
        if row is None or row.role_of(who) is None:
            raise NotFound(f"there is no session {session_id!r}")
        return row

    async def open_session(self, who: Principal, request: OpenSession) -> tuple[SessionRow, bool]:
        self._call("open", who, request)
        session_id = request.id or f"made-{len(self.rows)}"
        if (who.tenant, session_id) in self.rows:
            return self._find(who, session_id), False
        row = SessionRow(
            SessionKey(who.tenant, session_id),
            who.user,
            kind=request.kind,
            model=request.model,
            title=request.title,
            created_at=1.0,
            last_used_at=2.0,
        )
        self.rows[row.key] = row
        return row, True

    async def get(self, who: Principal, session_id: str) -> SessionRow:
        self._call("get", who, session_id)
        return self._find(who, session_id)

    async def list(self, who: Principal, *, cursor: str | None = None, limit: int = 50) -> Page:
        self._call("list", who, cursor, limit)
        rows = [row for row in self.rows.values() if row.key.tenant == who.tenant and row.owner == who.user]
        start = int(cursor or 0)
        end = start + limit
        return Page(rows[start:end], str(end) if end < len(rows) else None)

    async def retitle(self, who: Principal, session_id: str, title: str) -> SessionRow:
        self._call("retitle", who, session_id, title)
        row = replace(self._find(who, session_id), title=title)
        self.rows[row.key] = row
        return row

    async def delete(self, who: Principal, session_id: str) -> None:
        self._call("delete", who, session_id)
        del self.rows[self._find(who, session_id).key]

    async def set_member(self, who: Principal, session_id: str, user: str, role: Role) -> SessionRow:
        self._call("set_member", who, session_id, user, role)
        row = self._find(who, session_id)
        self.rows[row.key] = replace(row, members={**row.members, user: role})
        return self.rows[row.key]

    async def remove_member(self, who: Principal, session_id: str, user: str) -> None:
        self._call("remove_member", who, session_id, user)
        row = self._find(who, session_id)
        self.rows[row.key] = replace(row, members={name: known for name, known in row.members.items() if name != user})

    async def send(self, who: Principal, session_id: str, message: SendMessage) -> ScriptedTurn:
        self._call("send", who, session_id, message)
        return self._turn(self._find(who, session_id).key, who, message.prompt)

    async def ask(self, who: Principal, request: Ask) -> ScriptedTurn:
        self._call("ask", who, request)
        return self._turn(SessionKey(who.tenant, "ephemeral"), who, request.prompt)

    def _turn(self, key: SessionKey, who: Principal, prompt: str) -> ScriptedTurn:
        row = TurnRow(key, f"turn_{len(self.turns)}", who.user, TurnStatus.RUNNING, prompt, started_at=2.5)
        turn = ScriptedTurn(row)
        self.turns.append(turn)
        if self.autofinish is not None:
            turn.stream.put(event(1, content="Ti"), event(2, "model.log"), event(3, "assistant.message"))
            turn.finish(**self.autofinish)
        return turn

    async def history(
        self, who: Principal, session_id: str, *, cursor: str | None = None, limit: int = 200
    ) -> MessagePage:
        self._call("history", who, session_id, cursor, limit)
        self._find(who, session_id)
        return MessagePage(self.messages[:limit], "more" if len(self.messages) > limit else None)

    async def events(self, who: Principal, session_id: str, *, after: str | None = None) -> ScriptedStream:
        self._call("events", who, session_id, after)
        self._find(who, session_id)
        stream = ScriptedStream(self.stream_capacity)
        stream.position = self.stream_position
        self.streams.append(stream)
        return stream

    async def abort(self, who: Principal, session_id: str) -> bool:
        self._call("abort", who, session_id)
        self._find(who, session_id)
        running = [turn for turn in self.turns if not turn.row.status.is_final]
        for turn in running:
            turn.finish(TurnStatus.ABORTED)
        return bool(running)

    async def answer(self, who: Principal, session_id: str, request_id: str, answer: dict[str, Any]) -> None:
        self._call("answer", who, session_id, request_id, answer)
        self._find(who, session_id)
        if request_id != "req-1":
            raise NotFound(f"no request {request_id!r} is open")

    def fail_next(self, error: AerodromeError) -> None:
        self.failure = error
