"""Several `aerodrome serve` processes on the same stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from support.host import User
from support.sdk_clients import Client, Endpoint, connected
from support.server import Server, aerodrome, new_key, serve, user_of


class Nodes:
    def __init__(self, config: Path, stack: AsyncExitStack) -> None:
        self.config = config
        self.servers: dict[str, Server] = {}
        self._stack = stack
        self._keys: dict[tuple[str, str], str] = {}
        self._environments: dict[str, Mapping[str, str]] = {}

    async def start(self, name: str, environment: Mapping[str, str] | None = None) -> Server:
        """Args:
        environment: Settings of this node alone, and of what is started again under its name.
        """
        if environment is not None:
            self._environments[name] = environment
        self.servers[name] = await self._stack.enter_async_context(
            serve(self.config, environment={"AERODROME_SERVER__NODE_NAME": name, **self._environments.get(name, {})})
        )
        return self.servers[name]

    async def key(self, user: str = "alice", tenant: str = "acme") -> str:
        if (tenant, user) not in self._keys:
            self._keys[tenant, user] = await new_key(self.config, user, tenant)
        return self._keys[tenant, user]

    async def user(self, node: str, name: str = "alice", tenant: str = "acme") -> User:
        """HTTP calls of this user at this node."""
        return await self._stack.enter_async_context(user_of(self.servers[node], await self.key(name, tenant)))

    async def sdk(self, node: str, name: str = "alice", tenant: str = "acme") -> Client:
        """An official client of this user at this node."""
        endpoint = Endpoint("gateway", self.servers[node].gateway, await self.key(name, tenant))
        return await self._stack.enter_async_context(connected(endpoint))

    async def kill(self, name: str) -> None:
        server = self.servers.pop(name)
        server.process.kill()
        await server.process.wait()

    async def session(self, session_id: str) -> dict[str, Any]:
        listed = await aerodrome("sessions", "ls", "--config", str(self.config), "--json")
        return next(row for row in listed if row["id"] == session_id)


@asynccontextmanager
async def nodes(config: Path, *names: str) -> AsyncIterator[Nodes]:
    async with AsyncExitStack() as stack:
        fleet = Nodes(config, stack)
        await asyncio.gather(*(fleet.start(name) for name in names))
        yield fleet


async def eventually(condition: Callable[[], Any], timeout: float = 60.0) -> Any:
    """The condition's first true value; it may be a coroutine function."""
    async with asyncio.timeout(timeout):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            await asyncio.sleep(0.02)
