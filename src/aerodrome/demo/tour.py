"""The guided tour: two tenants, three users, both isolation levels, and what a node does when things go wrong.

Everything is real but the language model: the node, its HTTP API, and the Copilot CLI processes.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aerodrome.app.node import Node
from aerodrome.config.settings import Settings
from aerodrome.demo.model import ModelServer
from aerodrome.model import RuntimeKey, SessionKey
from aerodrome.runtime.machine import RuntimeState

_COLOURS = {"alice": "cyan", "bob": "green", "carol": "magenta"}


class TourFailed(Exception):
    """The demo did not show what it promises."""


class Person:
    """One user with an API key, at the HTTP API."""

    def __init__(self, name: str, tenant: str, key: str, http: httpx.AsyncClient) -> None:
        self.name = name
        self.tenant = tenant
        self.key = key
        self.http = http

    async def open(self, session: str) -> None:
        _check(await self.http.post("/sessions", json={"id": session, "title": "Demo"}))

    async def say(self, session: str, prompt: str) -> dict[str, Any]:
        response = await self.http.post(f"/sessions/{session}/messages", json={"prompt": prompt})
        return dict(_check(response).json())


class Tour:
    def __init__(self, *, keep: bool = False, console: Console | None = None) -> None:
        self._keep = keep
        self._console = console or Console(highlight=False, soft_wrap=True)

    async def run(self) -> None:
        """Play it. Raises `TourFailed` when something does not come out as told."""
        directory = Path(tempfile.mkdtemp(prefix="aerodrome-demo-"))
        # Before the node starts: it is a large module, and would hold up the loop.
        sdk = _sdk()
        try:
            async with AsyncExitStack() as stack:
                model = stack.enter_context(ModelServer.in_thread())
                self._tell("A scripted model server stands in for the language model: no network, no keys.")
                node = await self._timed(
                    "the node listens, with its first Copilot CLI process being warmed",
                    stack.enter_async_context(Node(_settings(directory, model.base_url))),
                )
                await self._timed("one warm runtime is ready for whoever comes first", _ready(node))
                alice, bob, carol = [
                    await stack.enter_async_context(_person(node, name, tenant))
                    for name, tenant in (("alice", "acme"), ("bob", "acme"), ("carol", "bank"))
                ]
                await self._talk(node, alice, bob, carol)
                await self._look(alice, bob, carol)
                await self._sleep(node, alice)
                await self._kill(node, model, carol)
                await self._native(node, model, carol, sdk)
                self._runtimes(node)
        finally:
            if self._keep:
                self._tell(f"What is stored is in {directory}")
            else:
                shutil.rmtree(directory, ignore_errors=True)
        self._farewell()

    # --- the acts ---

    async def _talk(self, node: Node, alice: Person, bob: Person, carol: Person) -> None:
        self._act("Three users of two tenants talk at once")
        self._tell("acme has isolation 'tenant': alice and bob share a Copilot CLI process, each with an own session.")
        self._tell("bank has isolation 'user': carol gets a process of her own.")
        for person, session in ((alice, "alice-1"), (bob, "bob-1"), (carol, "carol-1")):
            await person.open(session)
        await asyncio.gather(
            self._exchange(alice, "alice-1", "My name is Ada"),
            self._exchange(bob, "bob-1", "My name is Bob"),
            self._exchange(carol, "carol-1", "remember the word plum"),
        )
        self._act("Each session remembers its own conversation")
        await self._exchange(alice, "alice-1", "What is my name?", expect="Ada")
        await self._exchange(bob, "bob-1", "What is my name?", expect="Bob")
        await self._exchange(carol, "carol-1", "which word did I ask you to remember?", expect="plum")
        keys = {runtime.key for runtime in node.pool.runtimes if runtime.key}
        _expect(keys == {RuntimeKey("acme", None), RuntimeKey("bank", "carol")}, f"two runtimes, not {keys}")

    async def _look(self, alice: Person, bob: Person, carol: Person) -> None:
        self._act("Nobody sees anybody else's session")
        for person in (bob, carol):
            response = await person.http.get("/sessions/alice-1")
            _expect(response.status_code == 404, f"404, not {response.status_code}")
            self._tell(f"{person.name}@{person.tenant} asks for alice's session: 404, as if there were none")
        sessions = (await alice.http.get("/sessions")).json()["sessions"]
        _expect([s["id"] for s in sessions] == ["alice-1"], "alice's list has her session only")

    async def _sleep(self, node: Node, alice: Person) -> None:
        self._act("An idle session is hibernated and wakes by itself")
        live = node.sessions.find_live(SessionKey("acme", "alice-1"))
        _expect(live is not None, "alice's session is loaded")
        assert live is not None
        await self._timed("alice's session left the runtime's memory; its files stay", node.sessions.hibernate(live))
        await self._exchange(alice, "alice-1", "What is my name?", expect="Ada", note="woken, ")

    async def _kill(self, node: Node, model: ModelServer, carol: Person) -> None:
        self._act("kill -9 of carol's Copilot CLI process, in the middle of a turn")
        pid = _pid_of(node, carol)
        answer = asyncio.create_task(
            self._exchange(carol, "carol-1", "[[gate: thinking]] which word did I ask you to remember?", expect="plum")
        )
        await model.gate_reached("thinking")
        psutil.Process(pid).kill()
        self._tell(f"process {pid} is dead; carol is still waiting for her answer")
        model.open_gate("thinking")
        result = await answer
        _expect(result["turn"]["retried"] is True, "the turn was taken up again")
        self._tell("The turn was taken up again in another process. Her connection stayed; nothing was lost.")
        await self._exchange(carol, "carol-1", "which word did I ask you to remember?", expect="plum")

    async def _native(self, node: Node, model: ModelServer, carol: Person, sdk: Any) -> None:
        self._act("The same to an unmodified client of GitHub's SDK")
        if sdk is None:
            self._tell("Not shown, because the SDK is not installed: pip install 'aerodrome[sdk]'")
            return
        host, port = node.gateway_address
        connection = sdk.RuntimeConnection.for_uri(f"{host}:{port}", connection_token=carol.key)
        client = sdk.CopilotClient(connection=connection)
        try:
            await self._timed("carol connects her SDK to the native gateway, with her key", client.start())
            session = await self._timed(
                "she resumes the session that she had over HTTP", client.resume_session("carol-1")
            )
            await self._kill_under(node, model, carol, session)
        finally:
            await client.force_stop()  # `stop` would hold up the loop for a second

    async def _kill_under(self, node: Node, model: ModelServer, carol: Person, session: Any) -> None:
        """Carol's runtime is killed while her SDK waits for an answer of this session."""
        question = "which word did I ask you to remember?"
        before = await _prompts(session)
        await self._exchange_native(carol, session, question, expect="plum")
        await self._timed("a warm runtime stands by again", _warm(node))
        connections = node.gateway.clients
        _expect(len(connections) == 1, f"one connection, not {len(connections)}")
        process = psutil.Process(_pid_of(node, carol))
        prompt = f"[[gate: native]] {question}"
        answer = asyncio.create_task(self._exchange_native(carol, session, prompt, expect="plum"))
        await model.gate_reached("native")
        process.kill()
        killed = time.perf_counter()
        self._tell(f"kill -9 of process {process.pid}, in mid-turn; her SDK is still waiting")
        await model.gate_reached("native", 2)
        self._tell("another process has taken the turn up again", seconds=time.perf_counter() - killed)
        model.open_gate("native")
        await answer
        _expect(node.gateway.clients == connections, "the connection is the same")
        _expect(_pid_of(node, carol) != process.pid, "the process is another one")
        after = await _prompts(session)
        _expect(after == [*before, question, prompt], f"each prompt once in the history, not {after}")
        self._tell("The same connection, the same session object, the whole history; her program has seen nothing.")

    def _runtimes(self, node: Node) -> None:
        self._act("What runs now")
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 2))
        for column in ("PID", "STATE", "TENANT", "USER", "SESSIONS", "TURNS", "RSS MiB"):
            table.add_column(column)
        for row in (runtime.describe() for runtime in node.pool.runtimes):
            cells = (row["pid"], row["state"], row["tenant"], row["user"], row["sessions"], row["turns"])
            table.add_row(*("-" if cell is None else str(cell) for cell in cells), str(row["rss_bytes"] >> 20))
        self._console.print(table)

    def _farewell(self) -> None:
        self._act("Now the real thing")
        for command, what in (
            ("aerodrome init", "writes aerodrome.toml: set your provider or GitHub token there"),
            ("aerodrome doctor", "checks this machine and says what is missing"),
            ("aerodrome keys create --tenant acme --user alice", "prints alice's API key, once"),
            ("aerodrome serve", "serves; docs/quickstart.md goes on from here"),
        ):
            self._console.print(Text(f"  {command:52}", style="bold").append(Text(what, style="default not bold")))

    # --- telling ---

    async def _exchange(
        self, person: Person, session: str, prompt: str, *, expect: str = "", note: str = ""
    ) -> dict[str, Any]:
        began = time.perf_counter()
        result = await person.say(session, prompt)
        content = str(result["message"]["content"])
        self._answered(person, prompt, content, began, expect=expect, note=note)
        return result

    async def _exchange_native(self, person: Person, session: Any, prompt: str, *, expect: str) -> None:
        began = time.perf_counter()
        answer = await session.send_and_wait(prompt, timeout=120)
        self._answered(person, prompt, str(answer.data.content), began, expect=expect, note="SDK, ")

    def _answered(self, person: Person, prompt: str, content: str, began: float, *, expect: str, note: str) -> None:
        taken = (time.perf_counter() - began) * 1000
        _expect(expect in content, f"an answer with {expect!r}, not {content!r}")
        line = Text(f"  {person.name}@{person.tenant:5}", style=_COLOURS[person.name])
        line.append(Text(f" {prompt.rpartition(']] ')[2]}", style="default"))
        line.append(Text(f"  →  {content}", style="bold default"))
        line.append(Text(f"  ({note}{taken:.0f} ms)", style="not bold dim"))
        self._console.print(line)

    async def _timed(self, what: str, work: Awaitable[Any]) -> Any:
        began = time.perf_counter()
        result = await work
        self._tell(what, seconds=time.perf_counter() - began)
        return result

    def _act(self, title: str) -> None:
        self._console.print()
        self._console.print(Text(title, style="bold underline"))

    def _tell(self, text: str, seconds: float | None = None) -> None:
        line = Text(f"  {text}")
        if seconds is not None:
            line.append(Text(f"  ({seconds * 1000:.0f} ms)", style="dim"))
        self._console.print(line)


@asynccontextmanager
async def _person(node: Node, name: str, tenant: str) -> AsyncIterator[Person]:
    _, key = await node.stores.keys.create(tenant, name)
    host, port = node.http_address
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}/api/v1", headers=headers, timeout=120) as http:
        yield Person(name, tenant, key, http)


async def _ready(node: Node) -> None:
    host, port = node.http_address
    async with httpx.AsyncClient() as http:
        while (await http.get(f"http://{host}:{port}/ready")).status_code != 200:
            if (reason := node.pool.unavailable_reason) is not None:
                raise TourFailed(reason)
            await asyncio.sleep(0.1)


async def _warm(node: Node) -> None:
    while not any(runtime.state is RuntimeState.WARM for runtime in node.pool.runtimes):
        if (reason := node.pool.unavailable_reason) is not None:
            raise TourFailed(reason)
        await asyncio.sleep(0.05)


def _pid_of(node: Node, person: Person) -> int:
    """Of the runtime that serves this user alone."""
    key = RuntimeKey(person.tenant, person.name)
    # One that was killed may not be cleared away yet.
    found = [r.pid for r in node.pool.runtimes if r.key == key and r.state.serves and r.pid is not None]
    _expect(len(found) == 1, f"{person.name} has one runtime, not {len(found)}")
    return found[0]


async def _prompts(session: Any) -> list[str]:
    """What stands in the history of an SDK's session as the user's words."""
    return [event.data.content for event in await session.get_events() if event.type.value == "user.message"]


def _sdk() -> Any:
    """GitHub's SDK, if it is installed."""
    try:
        import copilot
    except ImportError:
        return None
    return copilot


def _settings(directory: Path, model_url: str) -> Settings:
    return Settings.model_validate(
        {
            "server": {
                "http": "127.0.0.1:0",
                "gateway": "127.0.0.1:0",
                "data_dir": str(directory),
                "drain_timeout": "5s",
            },
            "provider": {"type": "openai", "base_url": model_url, "api_key": "demo", "model": "gpt-4.1"},
            "isolation": {"default": "tenant", "tenants": {"bank": "user"}},
        }
    )


def _check(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        raise TourFailed(f"{response.request.method} {response.request.url.path}: {response.text}")
    return response


def _expect(held: bool, what: str) -> None:
    if not held:
        raise TourFailed(f"expected {what}")
