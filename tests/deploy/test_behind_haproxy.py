"""What `deploy/compose` describes, as processes: two nodes with Valkey and PostgreSQL behind HAProxy, under load.

Both nodes are restarted, one after the other. No turn fails: HTTP callers notice nothing and repeat nothing; SDK
clients are let go between two turns and connect anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import pytest

from aerodrome.demo.model import ModelServer
from support.haproxy import Balancer, haproxy
from support.host import sse_events
from support.nodes import Nodes, eventually, nodes
from support.ports import free_port
from support.postgres import fresh_schema, shared_server
from support.sdk_clients import Chat, Endpoint, connected
from support.server import write_config
from support.stores import shared_valkey

pytestmark = [pytest.mark.cli, pytest.mark.timeout(400)]

#: Of each kind; `USERS=20` measures more.
USERS = int(os.environ.get("USERS", "3"))
THINKING = 0.2


@pytest.fixture
async def model() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


class Site:
    """The nodes, with ports that outlive them, and what is in front."""

    def __init__(self, fleet: Nodes, balancer: Balancer, ports: dict[str, tuple[int, int]]) -> None:
        self.fleet = fleet
        self.balancer = balancer
        self.ports = ports

    async def ready(self, name: str) -> bool:
        try:
            async with httpx.AsyncClient(timeout=60) as client:
                return (await client.get(f"http://127.0.0.1:{self.ports[name][0]}/ready")).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
async def site(tmp_path: Path, model: ModelServer) -> AsyncIterator[Site]:
    schema = fresh_schema()
    config = write_config(tmp_path, model.base_url, ttl="15s")
    text = config.read_text().replace("[coordination]\n", f'[coordination]\nurl = "{shared_valkey().url}"\n')
    # As in deploy/compose/aerodrome.toml, but for a drain that ends sooner.
    text = text.replace("[server]\n", '[server]\ndrain_delay = "5s"\n')
    text += f'key_prefix = "{schema}"\n[state]\nurl = "{shared_server().url}"\ndatabase_schema = "{schema}"\n'
    config.write_text(text)
    ports = {name: (free_port(), free_port()) for name in ("1", "2")}
    async with nodes(config) as fleet, haproxy(ports, tmp_path / "haproxy.log") as balancer:
        site = Site(fleet, balancer, ports)
        for name, (http, gateway) in ports.items():
            await fleet.start(
                name,
                {
                    "AERODROME_SERVER__HTTP": f"127.0.0.1:{http}",
                    "AERODROME_SERVER__GATEWAY": f"127.0.0.1:{gateway}",
                    "AERODROME_SERVER__DATA_DIR": str(tmp_path / f"data-{name}"),
                },
            )
        for name in ports:
            await eventually(partial(site.ready, name), 60)
        yield site


class Talk:
    """A user who says one thing after the other, and knows no node."""

    def __init__(self, site: Site, session: str, key: str) -> None:
        self.site = site
        self.session = session
        self.key = key
        self.said: list[str] = []
        #: Seconds that each turn took its user.
        self.took: list[float] = []
        #: How many turns it had when the restarts began, and when they had ended.
        self.phases: list[int] = []
        #: How often it had to connect anew.
        self.reconnected = 0
        self._numbers = count()

    def prompt(self) -> tuple[str, str]:
        """What to say, and what is answered."""
        answer = f"{self.session} {next(self._numbers)}"
        return f"[[say: {answer}]]", answer

    def heard(self, prompt: str, started: float) -> None:
        self.said.append(prompt)
        self.took.append(time.monotonic() - started)

    def client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(base_url=f"{self.site.balancer.url}/api/v1", headers=headers, timeout=240)

    async def history(self) -> list[str]:
        """Its prompts, as stored."""
        found: list[str] = []
        params: dict[str, str] = {}
        async with self.client() as client:
            while True:
                answer = (await client.get(f"/sessions/{self.session}/messages", params=params)).json()
                found += [message["content"] for message in answer["messages"] if message["role"] == "user"]
                if answer["next"] is None:
                    return found
                params = {"cursor": answer["next"]}


class HttpTalk(Talk):
    """Takes each answer once as JSON and once as a stream. Repeats nothing, whatever comes."""

    async def run(self, enough: asyncio.Event) -> None:
        async with self.client() as client:
            opened = await client.post("/sessions", json={"id": self.session})
            assert opened.status_code == 201, opened.text
            while not enough.is_set():
                prompt, expected = self.prompt()
                started = time.monotonic()
                said = self._streamed if len(self.said) % 2 else self._answered
                assert await said(client, prompt) == expected
                self.heard(prompt, started)
                await asyncio.sleep(THINKING)

    async def _answered(self, client: httpx.AsyncClient, prompt: str) -> str:
        answer = await client.post(f"/sessions/{self.session}/messages", json={"prompt": prompt})
        assert answer.status_code == 200, answer.text
        assert answer.json()["turn"]["status"] == "completed"
        return str(answer.json()["message"]["content"])

    async def _streamed(self, client: httpx.AsyncClient, prompt: str) -> str:
        answers: list[str] = []
        seen: list[dict[str, Any]] = []
        request = {"json": {"prompt": prompt}, "headers": {"Accept": "text/event-stream"}}
        async with client.stream("POST", f"/sessions/{self.session}/messages", **request) as response:  # type: ignore[arg-type]
            assert response.status_code == 200, await response.aread()
            async for event in sse_events(response):
                seen.append(event)
                if event["event"] == "assistant.message":
                    answers.append(event["data"]["data"]["content"])
        assert seen[-1]["event"] == "end", seen
        assert len(answers) == 1, seen
        return answers[0]


class SdkTalk(Talk):
    """With an official client, which does not connect anew by itself."""

    async def run(self, enough: asyncio.Event) -> None:
        async with self.client() as client:
            assert (await client.post("/sessions", json={"id": self.session})).status_code == 201
        pending: tuple[str, str] | None = None
        while not enough.is_set():
            async with connected(Endpoint("gateway", self.site.balancer.gateway, self.key)) as sdk:
                try:
                    chat = await sdk.resume(self.session)
                    while not enough.is_set():
                        pending = pending or self.prompt()
                        started = time.monotonic()
                        await asyncio.wait_for(chat.send(pending[0]), 60)
                        await self._hear(chat, pending[1])
                        self.heard(pending[0], started)
                        pending = None
                        await asyncio.sleep(THINKING)
                except AssertionError:
                    raise
                except Exception:
                    # Let go by its node, with a prompt that this has not taken.
                    sdk.forget()
                    self.reconnected += 1
                    assert self.reconnected < 50
                    if pending is not None:
                        assert pending[0] not in await self.history(), "sent and not answered"
                else:
                    sdk.forget()

    @staticmethod
    async def _hear(chat: Chat, expected: str) -> None:
        await chat.until("session.idle")
        assert chat.answer == expected
        assert not chat.data("session.error")


async def test_both_nodes_are_restarted_and_no_turn_fails(site: Site, model: ModelServer) -> None:
    talks: list[HttpTalk | SdkTalk] = []
    for number in range(USERS):
        for kind in (HttpTalk, SdkTalk):
            name = f"{kind.__name__.lower()}{number}"
            talks.append(kind(site, name, await site.fleet.key(name, f"tenant{number % 2}")))
    enough = asyncio.Event()
    talking = [asyncio.create_task(talk.run(enough)) for talk in talks]

    async def all_go_on(turns: int) -> None:
        goal = [len(talk.said) + turns for talk in talks]
        await eventually(
            lambda: (
                any(task.done() for task in talking)
                or all(len(talk.said) >= least for talk, least in zip(talks, goal, strict=True))
            ),
            120,
        )
        for task in talking:
            if task.done():
                task.result()

    try:
        await all_go_on(3)
        for talk in talks:
            talk.phases.append(len(talk.took))
        started = time.monotonic()
        for name in site.ports:
            server = site.fleet.servers[name]
            server.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(server.process.wait(), 120) == 0, server.log.read_text()[-2000:]
            await all_go_on(1)
            await site.fleet.start(name)
            await eventually(partial(site.ready, name), 60)
            await all_go_on(2)
        rolling = time.monotonic() - started
        for talk in talks:
            talk.phases.append(len(talk.took))
        await all_go_on(3)
    finally:
        enough.set()
        with suppress(AssertionError):
            await asyncio.wait(talking, timeout=60)
    for task in talking:
        await task
    for talk in talks:
        assert await talk.history() == talk.said
    report(talks, rolling)


def report(talks: Sequence[Talk], rolling: float) -> None:
    """Printed with `-s`; docs/deployment.md has a run of it."""
    for kind in (HttpTalk, SdkTalk):
        of_kind = [talk for talk in talks if isinstance(talk, kind)]
        quiet = [t for talk in of_kind for t in (*talk.took[: talk.phases[0]], *talk.took[talk.phases[1] :])]
        busy = [t for talk in of_kind for t in talk.took[talk.phases[0] : talk.phases[1]]]
        print(
            json.dumps(
                {
                    "door": kind.__name__,
                    "users": len(of_kind),
                    "turns": len(quiet) + len(busy),
                    "failed": 0,
                    "reconnected": sum(talk.reconnected for talk in of_kind),
                    "seconds_of_restarts": round(rolling, 1),
                    "turn_ms": figures(quiet),
                    "turn_ms_during_restarts": figures(busy),
                }
            )
        )


def figures(seconds: list[float]) -> dict[str, float]:
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {
        name: round(value * 1000) for name, value in {"p50": cuts[49], "p95": cuts[94], "max": max(seconds)}.items()
    }
