"""Three nodes are restarted one after the other under users who talk all the time: no turn fails, nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import signal
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from aerodrome.demo.model import ModelServer
from support.cli import has_ended
from support.host import User, sse_events
from support.nodes import Nodes, eventually, nodes
from support.postgres import fresh_schema, shared_server
from support.sdk_clients import Chat
from support.server import aerodrome, write_config
from support.stores import shared_valkey

pytestmark = pytest.mark.cli

NAMES = ("a", "b", "c")
#: Seconds between two turns of a user.
THINKING = 0.3


@pytest.fixture
async def fleet(tmp_path: Path, model: ModelServer) -> AsyncIterator[Nodes]:
    schema = fresh_schema()
    config = write_config(tmp_path, model.base_url, ttl="8s")
    text = config.read_text().replace("[coordination]\n", f'[coordination]\nurl = "{shared_valkey().url}"\n')
    text += f'key_prefix = "{schema}"\n[state]\nurl = "{shared_server().url}"\ndatabase_schema = "{schema}"\n'
    config.write_text(text)
    # The first makes the tables.
    async with nodes(config, "a") as running:
        await asyncio.gather(running.start("b"), running.start("c"))
        yield running


@pytest.fixture(autouse=True)
def _sockets_of_refused_clients() -> Iterator[None]:
    """The SDK leaves the socket of a client that was refused in `start` to the collector."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Talk:
    """One user with one session who says one thing after the other, and goes to the next node when one goes."""

    def __init__(self, fleet: Nodes, session: str, key: str, at: str) -> None:
        self.fleet = fleet
        self.session = session
        #: The node it is connected to.
        self.at = at
        #: How often each node has sent it away.
        self.sent_away: Counter[str] = Counter()
        self.said: list[str] = []
        self.headers = {"Authorization": f"Bearer {key}"}
        self._numbers = count()

    def url(self, path: str) -> str:
        return f"{self.fleet.servers[self.at].url}/api/v1/sessions{path}"

    def prompt(self) -> str:
        return f"[[say: {self.session} {next(self._numbers)}]]"

    def go_on(self) -> None:
        self.sent_away[self.at] += 1
        self.at = NAMES[(NAMES.index(self.at) + 1) % len(NAMES)]

    async def history(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        params: dict[str, str] = {}
        async with httpx.AsyncClient(timeout=60, headers=self.headers) as client:
            while True:
                answer = (await client.get(self.url(f"/{self.session}/messages"), params=params)).json()
                found += [(message["role"], message["content"]) for message in answer["messages"]]
                if answer["next"] is None:
                    return found
                params = {"cursor": answer["next"]}

    @property
    def expected(self) -> list[tuple[str, str]]:
        return [
            pair
            for prompt in self.said
            for pair in (("user", prompt), ("assistant", prompt.removeprefix("[[say: ").removesuffix("]]")))
        ]


class HttpTalk(Talk):
    async def run(self, enough: asyncio.Event) -> None:
        async with httpx.AsyncClient(timeout=60, headers=self.headers) as client:
            while not enough.is_set():
                prompt = self.prompt()
                answer = await self._send(client, prompt)
                assert answer.status_code == 200, answer.text
                assert answer.json()["turn"]["status"] == "completed"
                assert not answer.json()["turn"]["retried"]
                self.said.append(prompt)
                await asyncio.sleep(THINKING)

    async def _send(self, client: httpx.AsyncClient, prompt: str) -> httpx.Response:
        """Until a node takes it. The key keeps it from being said twice."""
        while True:
            try:
                answer = await client.post(
                    self.url(f"/{self.session}/messages"), json={"prompt": prompt}, headers={"Idempotency-Key": prompt}
                )
            except httpx.TransportError:
                self.go_on()
                continue
            if answer.status_code != 503 or answer.json()["code"] != "draining":
                return answer
            self.go_on()


class Reader(Talk):
    """Of the events of somebody's session, behind the last one it was told."""

    def __init__(self, fleet: Nodes, session: str, key: str, at: str) -> None:
        super().__init__(fleet, session, key, at)
        self.seen: list[dict[str, Any]] = []
        self.arrived = asyncio.Event()
        self._last: str | None = None

    @property
    def told(self) -> list[tuple[str, str]]:
        """What was said, by role."""
        return [
            (event["event"].removesuffix(".message"), event["data"]["data"]["content"])
            for event in self.seen
            if event["event"] in ("user.message", "assistant.message")
        ]

    def has_been_told(self, messages: int) -> bool:
        return len(self.told) >= messages

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=60, headers=self.headers) as client:
            while True:
                headers = {"Last-Event-ID": self._last} if self._last else {}
                try:
                    async with client.stream("GET", self.url(f"/{self.session}/events"), headers=headers) as response:
                        if response.status_code == 200:
                            self.arrived.set()
                            await self._read(response)
                        else:
                            assert response.status_code == 503, await response.aread()
                except httpx.ConnectError:
                    pass
                self.go_on()

    async def _read(self, response: httpx.Response) -> None:
        """Until the node says that it goes; a stream that ends without that is an error."""
        async for event in sse_events(response):
            if event["event"] == "reconnect":
                self._last = event["data"]["last_event_id"]
                return
            self.seen.append(event)
            self._last = event.get("id", self._last)
        raise AssertionError(f"{self.session}: the stream ended without a word, after {len(self.seen)} events")


class SdkTalk(Talk):
    """With an official client."""

    async def run(self, enough: asyncio.Event, user: str) -> None:
        chat = await self._connect(user)
        while not enough.is_set():
            prompt = self.prompt()
            while True:
                try:
                    await asyncio.wait_for(chat.send(prompt), 30)
                except Exception:
                    # The node has closed the connection.
                    self._client.forget()
                    self.go_on()
                    chat = await self._connect(user)
                    if ("user", prompt) in await self.history():
                        raise AssertionError(f"{prompt}: sent, but not answered") from None
                else:
                    break
            await chat.until("session.idle")
            assert chat.answer == prompt.removeprefix("[[say: ").removesuffix("]]")
            assert not chat.data("session.error")
            self.said.append(prompt)
            await asyncio.sleep(THINKING)
        self._client.forget()

    async def _connect(self, user: str) -> Chat:
        while True:
            try:
                self._client = await self.fleet.sdk(self.at, user)
                return await self._client.resume(self.session)
            except Exception:
                self.go_on()


async def test_no_turn_fails_and_nothing_is_lost(fleet: Nodes, model: ModelServer) -> None:
    enough = asyncio.Event()
    over_http, over_sdk, readers = [], [], []
    for number, name in enumerate(NAMES):
        key = await fleet.key(f"user{number}")
        user = await fleet.user(name, f"user{number}")
        for session in (f"http{number}", f"sdk{number}"):
            await user.open(session)
            await user.text(session, "hello")
        over_http.append(HttpTalk(fleet, f"http{number}", key, name))
        # Connected to other nodes than the one that runs the session now.
        readers.append(Reader(fleet, f"http{number}", key, NAMES[number - 1]))
        over_sdk.append(SdkTalk(fleet, f"sdk{number}", key, NAMES[number - 1]))
    talks: list[Talk] = [*over_http, *over_sdk]
    reading = [asyncio.create_task(reader.run()) for reader in readers]
    await asyncio.gather(*(reader.arrived.wait() for reader in readers))
    talking = [asyncio.create_task(talk.run(enough)) for talk in over_http]
    talking += [asyncio.create_task(talk.run(enough, f"user{number}")) for number, talk in enumerate(over_sdk)]

    async def all_go_on(turns: int) -> None:
        goal = [len(talk.said) + turns for talk in talks]
        failed = [task for task in [*talking, *reading] if task.done()]
        for task in failed:
            task.result()
        await eventually(
            lambda: (
                all(len(talk.said) >= least for talk, least in zip(talks, goal, strict=True))
                or any(task.done() for task in [*talking, *reading])
            ),
            60,
        )

    try:
        await all_go_on(2)
        for name in NAMES:
            before = {talk.session: (talk.at, talk.sent_away[name]) for talk in over_sdk}
            server = fleet.servers[name]
            runtimes = server.runtimes()
            if name == "b":
                await aerodrome("nodes", "drain", "--config", str(fleet.config), name, json_output=False)
            else:
                server.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(server.process.wait(), 40) == 0, server.log.read_text()[-2000:]
            await eventually(partial(all_ended, runtimes))
            await all_go_on(1)
            for talk in over_sdk:
                at, sent_away = before[talk.session]
                if at != name and talk.at == at:
                    # Wherever its session ran: connected to another node, it has noticed nothing.
                    assert talk.sent_away[name] == sent_away
            await fleet.start(name)
            await all_go_on(2)
        enough.set()
        await asyncio.gather(*talking)
        for each in talks:
            assert (await each.history())[2:] == each.expected
            assert {model.asked(prompt) for prompt in each.said} <= {0, 1}  # the model forgets the first of many
            assert each.sent_away.total() <= 6
        for reader, followed in zip(readers, over_http, strict=True):
            await eventually(partial(reader.has_been_told, len(followed.expected)))
            assert reader.told == followed.expected
            ids = Counter(event["id"] for event in reader.seen if "id" in event)
            assert [(event["id"], event["event"]) for event in reader.seen if ids[event.get("id")] > 1] == []
            assert reader.sent_away.total() > 0
    finally:
        for task in (*talking, *reading):
            task.cancel()
        await asyncio.gather(*talking, *reading, return_exceptions=True)


async def test_a_second_signal_in_a_drain_is_immediate_and_leaves_no_orphan(fleet: Nodes, model: ModelServer) -> None:
    """What was at work is reported, and goes on at another node."""
    at_a, at_b = await fleet.user("a"), await fleet.user("b")
    await at_a.open("s")
    assert await at_a.text("s", "[[say: one]]") == "one"
    held = asyncio.create_task(told_or_cut(at_a, "s", "[[gate: never]]"))
    await model.gate_reached("never")
    server = fleet.servers["a"]
    runtimes = server.runtimes()
    assert runtimes
    server.send_signal(signal.SIGTERM)
    await eventually(lambda: "node.draining" in server.log.read_text())
    assert server.process.returncode is None
    server.send_signal(signal.SIGTERM)
    # After the drain it would be 0.
    assert await asyncio.wait_for(server.process.wait(), 15) == 1
    await eventually(partial(all_ended, runtimes))
    assert await held in ("cut", "turn_interrupted")
    assert await at_b.text("s", "[[say: two]]") == "two"
    assert await at_b.prompts_seen("s") == ["[[say: one]]", "[[say: two]]"]


def all_ended(processes: list[psutil.Process]) -> bool:
    return all(map(has_ended, processes))


async def told_or_cut(user: User, session: str, prompt: str) -> str:
    try:
        answer = await user.http.post(f"/sessions/{session}/messages", json={"prompt": prompt})
    except httpx.TransportError:
        return "cut"
    return str(answer.json()["code"])
