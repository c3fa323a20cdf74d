"""Runtimes that do what a test tells them to, in this process and without a clock.

A `ScriptedRuntime` stands in for a `ManagedRuntime` and for the Copilot CLI behind its control link: it answers the
requests of the binding protocol as the CLI does (docs/facts.md), keeps its sessions' events in memory until it flushes
them through the binding's files, and can be lost at any moment. What it is asked to answer, it answers when told to
(`answer`), or by itself (`auto`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aerodrome.errors import Capacity
from aerodrome.events import SessionEvent
from aerodrome.model import RuntimeKey, SessionKey
from aerodrome.runtime.control import SessionBinding
from aerodrome.runtime.deaths import Death
from aerodrome.runtime.link import LinkClosed, RemoteError
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.wear import Latency
from aerodrome.statestore.provider import EVENTS_PATH

_numbers = itertools.count(1)


class LoadedSession:
    """A session in the memory of a scripted runtime."""

    def __init__(self, session_id: str, bindings: dict[str, SessionBinding]) -> None:
        self.id = session_id
        #: Those of the control link: what is not bound there is not heard.
        self._bindings = bindings
        #: Prompts that were sent and not taken up: (message id, prompt).
        self.pending: list[tuple[str, str]] = []
        #: Prompts of the running turn.
        self.turn: list[str] = []
        self._unflushed: list[str] = []
        self._closed = False

    def emit(self, kind: str, *, ephemeral: bool = False, agent: str | None = None, **data: Any) -> str:
        """Tell an event, as the runtime does before it stores it; returns its id."""
        event_id = f"e{next(_numbers)}"
        envelope: dict[str, Any] = {"type": kind, "data": data, "id": event_id, "timestamp": "2026-01-01T00:00:00Z"}
        if ephemeral:
            envelope["ephemeral"] = True
        if agent is not None:
            envelope["agentId"] = agent
        line = json.dumps(envelope)
        if not ephemeral:
            self._unflushed.append(line)
        if not self._closed and (binding := self._bindings.get(self.id)) is not None:
            binding.on_event(SessionEvent(event_id, kind, line.encode(), ephemeral))
        return event_id

    async def flush(self) -> None:
        lines, self._unflushed = self._unflushed, []
        binding = self._bindings.get(self.id)
        if lines and binding is not None and not self._closed:
            content = "".join(line + "\n" for line in lines)
            error = await binding.on_file_operation("appendFile", {"path": EVENTS_PATH, "content": content})
            if error is not None:
                self._unflushed = lines + self._unflushed  # kept, and written with the next that succeeds

    def begin(self) -> bool:
        """Take up the next prompt. In a turn it steers it."""
        if not self.pending:
            return False
        message_id, prompt = self.pending.pop(0)
        self.emit("user.message", messageId=message_id, content=prompt)
        if not self.turn:
            self.emit("assistant.turn_start")
        self.turn.append(prompt)
        return True

    def start_tool(self) -> None:
        self.emit("assistant.message", messageId=f"m{next(_numbers)}", content="", toolRequests=[{"name": "ask_user"}])
        self.emit("tool.execution_start", toolName="ask_user")

    async def answer(self) -> None:
        """End the running turn with an answer, or the next one, and all that were sent meanwhile."""
        while self.turn or self.begin():
            content = f"answer to {self.turn[-1]}"
            self.emit("assistant.message_delta", ephemeral=True, deltaContent=content)
            self.emit("assistant.usage", ephemeral=True, inputTokens=3, outputTokens=2, model="m1")
            self.emit("assistant.message", messageId=f"m{next(_numbers)}", content=content)
            self.emit("assistant.turn_end")
            self.turn.clear()
        await self.flush()
        self.emit("session.idle", ephemeral=True)

    async def fail(self, message: str = "the model is away") -> None:
        self.begin()
        self.emit("session.error", message=message, errorType="query")
        self.turn.clear()
        await self.flush()
        self.emit("session.idle", ephemeral=True)

    async def abort(self) -> None:
        if not self.turn and not self.begin():
            return
        self.pending.clear()
        self.turn.clear()
        self.emit("abort", reason="user initiated")
        self.emit("assistant.turn_end")
        await self.flush()
        self.emit("session.idle", ephemeral=True, aborted=True)

    def close(self) -> None:
        self._closed = True


class ScriptedControl:
    """Implements what the sessions room uses of `runtime.control.ControlLink`."""

    def __init__(self, runtime: ScriptedRuntime) -> None:
        self._runtime = runtime
        self._bindings: dict[str, SessionBinding] = {}

    def bind(self, session_id: str, binding: SessionBinding) -> None:
        if session_id in self._bindings:
            raise RuntimeError(f"session {session_id} is bound in this runtime already")
        self._bindings[session_id] = binding

    def unbind(self, session_id: str, binding: SessionBinding) -> None:
        if self._bindings.get(session_id) is binding:
            del self._bindings[session_id]

    async def request(self, method: str, params: dict[str, Any], *, timeout: float | None = None) -> Any:
        runtime = self._runtime
        runtime.calls.append((method, params))
        serving = asyncio.ensure_future(runtime.serve(method, params, self._bindings))
        lost = asyncio.ensure_future(runtime.lost.wait())
        try:
            await asyncio.wait({serving, lost}, return_when=asyncio.FIRST_COMPLETED)
            if runtime.lost.is_set():
                raise LinkClosed(f"{method}: {runtime.lost_reason}")
            return serving.result()
        finally:
            serving.cancel()
            lost.cancel()
            await asyncio.gather(serving, lost, return_exceptions=True)


class ScriptedRuntime:
    def __init__(self, runtime_id: str, key: RuntimeKey, pause: Callable[[], Awaitable[None]]) -> None:
        self.id = runtime_id
        self.key = key
        self.pid = 1
        self.reserved = 0
        self.turns = 0
        self.state = RuntimeState.CLAIMED
        self.latency = Latency()
        self.loading: Counter[SessionKey] = Counter()
        self.alone = False
        self.death: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
        self.lost = asyncio.Event()
        self.lost_reason = ""
        self.control = ScriptedControl(self)
        self.copilot_home = Path("/home") / runtime_id
        self.workspace = Path("/work") / runtime_id
        self.on_lost: Callable[[ScriptedRuntime], None] | None = None
        #: Answers every prompt by itself.
        self.auto = False
        #: Sessions that it was asked to load, and whether it did.
        self.loads: list[tuple[str, bool]] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        #: Sessions that were ever unloaded in mid-turn or found loaded at a resume: neither may happen unnoticed.
        self.attached_twice: list[str] = []
        self.sessions: dict[str, LoadedSession] = {}
        self.letting_go: set[str] = set()
        #: Methods that are refused, each as often as it stands here.
        self.refusals: list[str] = []
        #: Methods that are not answered until `release`.
        self.held: set[str] = set()
        #: Found out when it is about to get a prompt.
        self.hangs = False
        self.foreign = False
        self._released = asyncio.Event()
        self._pause = pause
        self._tasks: set[asyncio.Task[None]] = set()

    async def answers(self, unanswered: str) -> bool:
        return not self.lost.is_set()

    async def takes_prompts(self) -> bool:
        if self.hangs:
            self.kill("it hangs")
        return not self.lost.is_set()

    async def let_go(self, session_id: str) -> bool:
        if self.lost.is_set():
            return False
        try:
            answer = await self.control.request("session.detach", {"sessionId": session_id})
        except (LinkClosed, RemoteError):
            return False
        except TimeoutError:
            self.letting_go.add(session_id)
            return False
        return bool(answer["success"])

    def kill(self, reason: str, death: Death | None = Death.OUTSIDE) -> None:
        """Args:
        death: ``None``: it is not known as long as the test lives.
        """
        if self.lost.is_set():
            return
        self.lost_reason = reason
        self.state = RuntimeState.FAILED
        if death is not None:
            self.death.set_result(death)
        self.lost.set()
        for session in self.sessions.values():
            session.close()
        for task in self._tasks:
            task.cancel()
        if self.on_lost is not None:
            self.on_lost(self)

    def release(self, method: str) -> None:
        self.held.discard(method)
        self._released.set()
        self._released = asyncio.Event()

    def note_load(self, session_id: str, *, taken: bool) -> None:
        self.loads.append((session_id, taken))

    def asked(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)

    async def serve(self, method: str, params: dict[str, Any], bindings: dict[str, SessionBinding]) -> Any:
        await self._pause()
        while method in self.held:
            await self._released.wait()
        if method in self.refusals:
            self.refusals.remove(method)
            raise RemoteError(method, -32603, "refused by the script")
        session_id = params["sessionId"]
        session = self.sessions.get(session_id)
        match method:
            case "session.resume" if session is not None and params.get("disableResume"):
                return {"sessionId": session_id}
            case "session.create" | "session.resume":
                return await self._load(session_id, bindings, resume=method == "session.resume")
            case "session.detach":
                return await self._unload(session_id)
            case "session.options.update":
                return {"success": True}
        if session is None:
            raise RemoteError(method, -32603, f"Session not found: {session_id}")
        match method:
            case "session.send":
                return self._send(session, params)
            case "session.abort":
                await session.abort()
                return {"success": True}
            case "session.tools.handlePendingToolCall":
                session.emit("external_tool.completed", requestId=params["requestId"])
                return {"success": True}
            case "session.permissions.handlePendingPermissionRequest":
                session.emit("permission.completed", requestId=params["requestId"], result=params["result"])
                return {"success": True}
        raise RemoteError(method, -32601, "no such method")

    async def _load(self, session_id: str, bindings: dict[str, SessionBinding], *, resume: bool) -> Any:
        if session_id in self.sessions:
            self.attached_twice.append(session_id)
        if resume:
            read = await bindings[session_id].on_file_operation("readFile", {"path": EVENTS_PATH})
            if "error" in read:
                raise RemoteError("session.resume", -32603, f"Session not found: {session_id}")
        session = self.sessions[session_id] = LoadedSession(session_id, bindings)
        session.emit("session.resume" if resume else "session.start")
        return {"sessionId": session_id}

    async def _unload(self, session_id: str) -> Any:
        session = self.sessions.pop(session_id, None)
        if session is not None:
            session.emit("session.shutdown")
            await session.flush()
            session.close()
        return {"success": True}

    def _send(self, session: LoadedSession, params: dict[str, Any]) -> Any:
        message_id = f"m{next(_numbers)}"
        session.pending.append((message_id, params["prompt"]))
        if not session.turn:
            session.begin()  # its events come before the answer to the request
        if self.auto:
            task = asyncio.ensure_future(self._answer(session))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return {"messageId": message_id}

    async def _answer(self, session: LoadedSession) -> None:
        await self._pause()
        if session.turn or session.pending:
            await session.answer()


class ScriptedPool:
    """Implements what the sessions room uses of `runtime.pool.RuntimePool`; never waits for room.

    Args:
        pause: Awaited where the real one would wait for something.
    """

    def __init__(self, *, max_sessions: int, max_runtimes: int, pause: Callable[[], Awaitable[None]]) -> None:
        self.make_room: Callable[[RuntimeKey], Awaitable[bool]] | None = None
        self.empty_runtime: Callable[[str | None], Awaitable[bool]] | None = None
        self.move_sessions: Callable[[Any, bool], Awaitable[bool]] | None = None
        self.on_lost: Callable[[Any], None] | None = None
        self.auto = False
        self.runtimes: list[ScriptedRuntime] = []
        #: Every one that ever was.
        self.started: list[ScriptedRuntime] = []
        #: Raised by `reserve`, as long as it is set.
        self.failure: Exception | None = None
        self.held = False
        self._changed = asyncio.Event()
        self._max_sessions = max_sessions
        self._max_runtimes = max_runtimes
        self._pause = pause

    async def reserve(
        self, key: RuntimeKey, session_id: str | None = None, user: str | None = None, *, alone: bool = False
    ) -> ScriptedRuntime:
        await self._pause()
        while self.held:
            await self._changed.wait()
        if self.failure is not None:
            raise self.failure
        while True:
            mine = [runtime for runtime in self.runtimes if runtime.key == key and not runtime.alone]
            for runtime in mine:
                if runtime.reserved < (1 if alone else self._max_sessions):
                    runtime.reserved += 1
                    runtime.alone = alone
                    return runtime
            if (alone or not mine) and len(self.runtimes) < self._max_runtimes:
                self._start(key)
                continue
            assert self.make_room is not None
            assert self.empty_runtime is not None
            if not await (self.make_room(key) if mine else self.empty_runtime(None)):
                raise Capacity("no room")
            self.runtimes = [runtime for runtime in self.runtimes if runtime.reserved or runtime.key == key]

    def let_go(self) -> None:
        self.held = False
        self.notify()

    def release(self, runtime: ScriptedRuntime) -> None:
        assert runtime.reserved > 0, "a place was given back twice"
        runtime.reserved -= 1
        runtime.alone = runtime.alone and runtime.reserved > 0
        self.notify()

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def answer_by_themselves(self) -> None:
        self.auto = True
        for runtime in self.runtimes:
            runtime.auto = True

    def _start(self, key: RuntimeKey) -> None:
        runtime = ScriptedRuntime(f"rt-{len(self.started)}", key, self._pause)
        runtime.on_lost = self._lost
        runtime.auto = self.auto
        self.runtimes.append(runtime)
        self.started.append(runtime)

    def _lost(self, runtime: ScriptedRuntime) -> None:
        if runtime in self.runtimes:
            self.runtimes.remove(runtime)
        if self.on_lost is not None:
            self.on_lost(runtime)
        self.notify()
