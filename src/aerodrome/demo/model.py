"""A scripted model: an OpenAI-compatible server that the Copilot CLI talks to, without network and keys.

In this process, on its own loop or thread, or as a program::

    async with ModelServer() as model: ...            # on the running loop
    with ModelServer.in_thread(delay=0.2) as model: ...  # on a loop of its own; every method works from any thread
    python -m aerodrome.demo.model --port 8081

Give `model.base_url` to the CLI as its provider. Prompts say how they are to be answered: `aerodrome.demo.script`
has the directives. Answers depend on the request alone, so that a conversation that goes on proves that its history
was sent. The server counts what it was asked (`requests`, `asked`, ``GET /stats``), and tests may hold answers at
gates, make the next requests fail, or take the server down and up again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypedDict, TypeVar, Unpack

import uvloop

from aerodrome._util.tasks import TaskOwner
from aerodrome.demo import script
from aerodrome.demo.answer import Answerer
from aerodrome.demo.completions import BadRequest, ChatRequest, error_body, models_body
from aerodrome.demo.connection import Connection, HttpRequest
from aerodrome.demo.gates import Gates

T = TypeVar("T")

MODELS = ["gpt-4.1"]
#: How many requests are kept for tests to look at, and how many different prompts are counted.
KEPT_REQUESTS = 256
COUNTED_PROMPTS = 10_000
# Longest prompt that is told apart in the counts, in characters.
_COUNTED_LENGTH = 500


class Options(TypedDict, total=False):
    """What `ModelServer` takes."""

    host: str
    port: int
    delay: float
    rate: float | None
    tokens: int | None


class ModelServer:
    """The server; use it as an async context manager or through `in_thread`.

    Args:
        host: Address to listen on.
        port: 0 takes a free one.
        delay: Seconds before each answer, unless the prompt says otherwise.
        rate: Tokens a second of streamed answers; ``None`` sends them at once.
        tokens: Length of each answer; ``None`` leaves it as it is.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        delay: float = 0.0,
        rate: float | None = None,
        tokens: int | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._gates = Gates()
        self._answerer = Answerer(self._gates, delay=delay, rate=rate, tokens=tokens)
        self._lock = threading.Lock()
        self._requests: deque[ChatRequest] = deque(maxlen=KEPT_REQUESTS)
        self._prompts: Counter[str] = Counter()
        self._received = 0
        self._failures: deque[script.Failure] = deque()
        self._connections: set[Connection] = set()
        self._running = TaskOwner("model")
        self._listener: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        # Bound and never listening: the port stays ours while the server is down, and connecting to it is refused.
        self._reservation = _bound(self.host, self.port)
        self.port = self._reservation.getsockname()[1]
        await self._up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._down()
        await self._running.aclose()
        self._reservation.close()

    @classmethod
    @contextmanager
    def in_thread(cls, **options: Unpack[Options]) -> Iterator[Self]:
        """A server on a thread and loop of its own, so that it takes no time of the loop under test."""
        server = cls(**options)
        with _loop_in_thread() as loop:
            asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result()
            try:
                yield server
            finally:
                asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result()

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"

    # What was asked.

    @property
    def requests(self) -> list[ChatRequest]:
        """The latest chat completion requests (`KEPT_REQUESTS`), oldest first."""
        with self._lock:
            return list(self._requests)

    def asked(self, prompt: str) -> int:
        """How many requests opened a turn with this prompt; each retry of the client counts."""
        with self._lock:
            return self._prompts[prompt[:_COUNTED_LENGTH]]

    def stats(self) -> dict[str, Any]:
        """What ``GET /stats`` answers: `requests`, `connections` (open now), `prompts` (prompt -> times asked)."""
        with self._lock:
            prompts = dict(self._prompts)
            received = self._received
        return {"requests": received, "connections": len(self._connections), "prompts": prompts}

    def forget(self) -> None:
        """Drop all counts and kept requests."""
        with self._lock:
            self._requests.clear()
            self._prompts.clear()
            self._received = 0

    # What tests do to it.

    def open_gate(self, name: str) -> None:
        """Let the requests held at the gate pass, and all later ones until `close_gate`."""
        self._gates.open(name)

    def close_gate(self, name: str) -> None:
        """Hold requests at the gate again; `gate_reached` counts from here."""
        self._gates.close(name)

    async def gate_reached(self, name: str, times: int = 1) -> None:
        """Wait until so many requests have come to the gate since it was last closed."""
        await self._gates.reached(name, times)

    async def gate_left(self, name: str) -> None:
        """Wait until no request is held at the gate, be it that it was opened or that the clients have gone."""
        await self._gates.left(name)

    def fail_next(self, times: int = 1, status: int = 500, retry_after: int | None = None) -> None:
        """Answer the next `times` completions with this HTTP status, whatever they ask; 0 takes it back."""
        with self._lock:
            self._failures = deque([script.Failure(status, retry_after)] * times)

    async def down(self) -> None:
        """Refuse connections and drop those that are open, as if the server had died."""
        await self._on_own_loop(self._down())

    async def up(self) -> None:
        """Listen again, on the same port."""
        await self._on_own_loop(self._up())

    async def _up(self) -> None:
        if self._listener is None:
            self._listener = await self._loop.create_server(
                lambda: Connection(self._handle, self._running, self._connections),
                sock=_bound(self.host, self.port),
                backlog=1024,
            )

    async def _down(self) -> None:
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        listener.close()
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.lost for connection in connections))

    async def _on_own_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if asyncio.get_running_loop() is self._loop:
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    # Answering.

    async def _handle(self, request: HttpRequest, out: Connection) -> None:
        if self._listener is None:
            # Accepted just before the server went down.
            out.abort()
            return
        match request.method, request.path:
            case "POST", "/v1/chat/completions":
                await self._complete(request, out)
            case "GET", "/v1/models":
                await out.respond(200, models_body(MODELS))
            case "GET", "/stats":
                await out.respond(200, json.dumps(self.stats()).encode())
            case _:
                await out.respond(404, error_body(f"no route {request.method} {request.path}", "not_found_error"))

    async def _complete(self, http: HttpRequest, out: Connection) -> None:
        try:
            request = ChatRequest.decode(http.body, http.headers)
            failure = self._received_one(request)
            reply = script.read(request.messages)
        except (BadRequest, script.ScriptError) as error:
            await out.respond(400, error_body(str(error), "invalid_request_error"))
            return
        await self._answerer.answer(request, reply, failure, out)

    def _received_one(self, request: ChatRequest) -> script.Failure | None:
        """Count a request; the failure that `fail_next` has set for it."""
        prompt = request.prompt[:_COUNTED_LENGTH] if request.asks else None
        with self._lock:
            self._received += 1
            self._requests.append(request)
            if prompt is not None and (prompt in self._prompts or len(self._prompts) < COUNTED_PROMPTS):
                self._prompts[prompt] += 1
            return self._failures.popleft() if self._failures else None


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError):
        bound.close()
        raise
    return bound


@contextmanager
def _loop_in_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="model", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _serve(server: ModelServer) -> None:
    async with server:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        print(f"model listening on {server.base_url}", flush=True)
        await stop.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m aerodrome.demo.model", description="A scripted model server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--rate", type=float, help="tokens a second of streamed answers")
    parser.add_argument("--tokens", type=int, help="length of each answer")
    options = parser.parse_args(arguments)
    try:
        uvloop.run(_serve(ModelServer(**vars(options))))
    except (OSError, OverflowError) as error:  # the latter of a port that there is not
        why = str(error).removesuffix(".")
        parser.error(f"cannot listen on {options.host}:{options.port}: {why}; choose another --host or --port")


if __name__ == "__main__":
    main()
