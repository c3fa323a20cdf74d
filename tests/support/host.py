"""A whole node in this process, over real runtimes, with HTTP clients for its users."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from aerodrome.app.node import Node
from aerodrome.config.settings import Settings
from aerodrome.demo.model import ModelServer
from aerodrome.runtime.supervisor import ManagedRuntime
from aerodrome.sessions.janitor import LEASE

#: What `coordination` is where no node dies, none is cut off and none is new: a machine that stands still for a while
#: must not make a dead one of it.
LASTING = {"heartbeat": "100ms", "ttl": "60s"}


def make_settings(data_dir: Path, model_url: str, **sections: dict[str, Any]) -> Settings:
    """Settings for tests; each keyword is a section whose keys go over these."""
    values: dict[str, dict[str, Any]] = {
        "server": {"http": "127.0.0.1:0", "gateway": "127.0.0.1:0", "data_dir": str(data_dir), "drain_timeout": "5s"},
        "provider": {"type": "openai", "base_url": model_url, "api_key": "test-key", "model": "gpt-4.1"},
        "runtime": {"warm": 0, "ping_interval": "500ms", "ping_timeout": "20s"},
    }
    for name, keys in sections.items():
        values[name] = {**values.get(name, {}), **keys}
    return Settings.model_validate(values)


class Host:
    """A running node and what tests do with it."""

    def __init__(self, node: Node, stack: AsyncExitStack) -> None:
        self.node = node
        self._stack = stack
        self._users: dict[tuple[str, str], User] = {}

    @property
    def url(self) -> str:
        host, port = self.node.http_address
        return f"http://{host}:{port}"

    @property
    def gateway_address(self) -> str:
        """Where SDKs connect."""
        host, port = self.node.gateway_address
        return f"{host}:{port}"

    async def key(self, name: str = "alice", tenant: str = "acme") -> str:
        """A new key of this user."""
        _, key = await self.node.stores.keys.create(tenant, name, frozenset())
        return key

    async def user(self, name: str = "alice", tenant: str = "acme") -> User:
        """A client with a key of its own for this user."""
        if (tenant, name) not in self._users:
            _, key = await self.node.stores.keys.create(tenant, name, frozenset())
            client = httpx.AsyncClient(
                base_url=f"{self.url}/api/v1",
                headers={"Authorization": f"Bearer {key}"},
                timeout=240,
                limits=httpx.Limits(max_connections=400),
            )
            await self._stack.enter_async_context(client)
            self._users[tenant, name] = User(client)
        return self._users[tenant, name]

    def runtime(self, tenant: str = "acme", user: str | None = None) -> ManagedRuntime:
        """The one runtime of this tenant, or of this user, that serves: one that was killed may not be cleared away
        yet."""
        found = [r for r in self.node.pool.runtimes if r.key == (tenant, user) and r.state.serves]
        assert len(found) == 1, [r.describe() for r in self.node.pool.runtimes]
        return found[0]

    def process(self, tenant: str = "acme", user: str | None = None) -> psutil.Process:
        pid = self.runtime(tenant, user).pid
        assert pid is not None
        return psutil.Process(pid)


class User:
    """One user's calls, with the checks every test would repeat."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.http = client

    async def open(self, session_id: str, **body: Any) -> dict[str, Any]:
        response = await self.http.post("/sessions", json={"id": session_id, **body})
        assert response.status_code in (200, 201), response.text
        return dict(response.json())

    async def say(self, session_id: str, prompt: str, *, expect: int = 200, **body: Any) -> dict[str, Any]:
        headers = {"Idempotency-Key": body.pop("key")} if "key" in body else {}
        response = await self.http.post(
            f"/sessions/{session_id}/messages", json={"prompt": prompt, **body}, headers=headers
        )
        assert response.status_code == expect, response.text
        return dict(response.json())

    async def text(self, session_id: str, prompt: str, **body: Any) -> str:
        """The answer's text."""
        return str((await self.say(session_id, prompt, **body))["message"]["content"])

    async def prompts_seen(self, session_id: str) -> list[str]:
        """The user prompts that the model is sent with this one, without this one."""
        seen = json.loads(await self.text(session_id, "[[turns]]"))
        assert seen[-1] == "[[turns]]"
        return list(seen[:-1])

    async def history(self, session_id: str) -> list[tuple[str, str]]:
        response = await self.http.get(f"/sessions/{session_id}/messages")
        assert response.status_code == 200, response.text
        return [(message["role"], message["content"]) for message in response.json()["messages"]]

    @asynccontextmanager
    async def events(
        self, session_id: str, after: str | None = None, **params: Any
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        headers = {"Last-Event-ID": after} if after else {}
        async with self.http.stream(
            "GET", f"/sessions/{session_id}/events", headers=headers, params=params
        ) as response:
            assert response.status_code == 200, await response.aread()
            yield sse_events(response)


async def sse_events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream: `{"id": ..., "event": ..., "data": ...}`, the data decoded."""
    event: dict[str, Any] = {}
    async for line in response.aiter_lines():
        if not line:
            if event:
                yield event
            event = {}
        elif not line.startswith(":"):
            field, _, value = line.partition(": ")
            event[field] = json.loads(value) if field == "data" else value


@asynccontextmanager
async def host(data_dir: Path, model: ModelServer, **sections: dict[str, Any]) -> AsyncIterator[Host]:
    """Its lease is `LASTING` unless the test says something of the coordination."""
    sections.setdefault("coordination", LASTING)
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(Node(make_settings(data_dir, model.base_url, **sections)))
        yield Host(node, stack)


async def until(condition: Callable[[], bool], timeout: float = 60.0) -> None:
    """Wait for something that has no event to wait for. Polls; fails after `timeout` seconds."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


async def tables_of(running: Host) -> dict[str, int]:
    """Rows of every table of the node's databases that has any, but for those that are about no session."""
    rows: dict[str, int] = {}
    for path in running.node.settings.server.data_dir.glob("*.sqlite3"):
        with sqlite3.connect(path) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            for name in names:
                # The lease of whoever cleans up is about no session.
                besides = f" WHERE tenant != '{LEASE.tenant}'" if name == "lease" else ""
                (count,) = connection.execute(f"SELECT count(*) FROM {name}{besides}").fetchone()
                if (
                    count
                    and name not in ("aerodrome_schema", "api_key", "node", "epoch_floor")
                    and not name.startswith("sqlite_")
                ):
                    rows[name] = count
        connection.close()
    return rows
