"""A model that always answers `ready`, on loopback, for the readiness probe of new runtimes.

A runtime is ready when a session can be created in it and answers (liveness is less: a process and a ping). The
probe's session talks to this model, so that readiness depends on nobody's key, costs nobody's tokens and leaves
nothing anywhere. It also takes the cost of the CLI's first session and turn off the first user (docs/facts.md,
"Starting").
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aerodrome._util.tasks import first_of
from aerodrome.errors import RuntimeUnavailable
from aerodrome.events import SessionEvent
from aerodrome.policy.session_params import Credentials, session_params
from aerodrome.runtime.control import ControlLink
from aerodrome.runtime.link import LinkClosed, RemoteError

SESSION_ID = "aerodrome-readiness"
_MODEL = "gpt-4.1"
_HEAD = {"id": "ready", "model": _MODEL, "created": 0}
_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
#: A request of the probe's session is some 20 KB; anybody on this machine can connect.
_MAX_BODY = 1 << 20


class ProbeSession:
    """The probe's binding: every file is absent, every write succeeds and is forgotten."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.answered = False
        self.idle = asyncio.Event()

    def on_event(self, event: SessionEvent) -> None:
        if event.type == "session.error":
            self.error = str(event.data.get("message"))
        elif event.type == "assistant.message":
            self.answered = True
        elif event.type == "session.idle":
            self.idle.set()

    def on_oversized(self, complaint: str) -> None:
        """Nothing of the probe is large."""

    async def on_file_operation(self, operation: str, params: dict[str, Any]) -> Any:
        return _EMPTY_FILE_SYSTEM.get(operation)

    async def on_request(self, method: str, params: dict[str, Any]) -> Any:
        return None


_EPOCH = "1970-01-01T00:00:00.000Z"
_EMPTY_FILE_SYSTEM: dict[str, Any] = {
    "readFile": {"content": "", "error": {"code": "ENOENT", "message": "no such file"}},
    "exists": {"exists": False},
    "sqliteExists": {"exists": False},
    "stat": {"isFile": False, "isDirectory": True, "size": 0, "mtime": _EPOCH, "birthtime": _EPOCH},
    "readdir": {"entries": []},
    "readdirWithTypes": {"entries": []},
}


class ProbeModel:
    """An OpenAI-compatible server of one answer."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._connections):
                writer.transport.abort()
            await self._server.wait_closed()

    @property
    def base_url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def params(self, working_directory: str) -> dict[str, Any]:
        """Parameters for the probe's session."""
        provider = {"type": "openai", "baseUrl": self.base_url, "apiKey": "ready"}
        return session_params(
            SESSION_ID,
            model=_MODEL,
            system_message=None,
            tools=(),
            working_directory=working_directory,
            streaming=True,
            credentials=Credentials(provider=provider),
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(_content_length(head))
                writer.write(_response(body))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
            pass  # the runtime has closed the connection, or speaks something else
        finally:
            self._connections.discard(writer)
            writer.close()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
            if length > _MAX_BODY:
                raise ValueError(f"a body of {length} bytes")
            return length
    return 0


def _response(body: bytes) -> bytes:
    if not body:
        return _http("application/json", json.dumps({"object": "list", "data": [{"id": _MODEL}]}).encode())
    request = json.loads(body)
    if not isinstance(request, dict) or not request.get("stream"):
        message = {"role": "assistant", "content": "ready"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
        return _http("application/json", json.dumps(answer).encode())
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "ready"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": _USAGE},
    ]
    lines = [json.dumps({**_HEAD, "object": "chat.completion.chunk", **chunk}) for chunk in chunks] + ["[DONE]"]
    return _http("text/event-stream", "".join(f"data: {line}\n\n" for line in lines).encode())


def _http(content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def prove_ready(control: ControlLink, model: ProbeModel, working_directory: str, *, timeout: float) -> None:
    """Create a session, take one turn in it, and leave no trace.

    Raises:
        RuntimeUnavailable: The runtime cannot do it, or not within `timeout` seconds.
    """
    session = ProbeSession()
    control.bind(SESSION_ID, session)
    try:
        async with asyncio.timeout(timeout):
            await control.request("session.create", model.params(working_directory), timeout=timeout)
            await control.request("session.send", {"sessionId": SESSION_ID, "prompt": "ready?"}, timeout=timeout)
            await _either(session.idle, control.closed)
            await control.request("session.detach", {"sessionId": SESSION_ID}, timeout=timeout)
    except TimeoutError:
        raise RuntimeUnavailable(f"a session in the new Copilot CLI did not answer within {timeout:g} s") from None
    except (LinkClosed, RemoteError) as error:
        raise RuntimeUnavailable(f"no session can be created in the new Copilot CLI: {error}") from error
    finally:
        control.unbind(SESSION_ID, session)
    if not session.answered:
        raise RuntimeUnavailable(f"a session in the new Copilot CLI failed: {session.error or 'no answer'}")


async def _either(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await first_of(*waits)
    finally:
        for wait in waits:
            wait.cancel()
