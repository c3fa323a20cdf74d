"""Many sessions of the official Python SDK that take turns at the same time, in a process of their own.

`python -m aerodrome.bench.load` (see `children`). First ``{"do": "open", "endpoint", "directory", "sessions"}``, then
``{"do": "turns", "count", "prompt"}`` as often as wanted: so many turns in all, of which each session takes another as
soon as its last one is answered. It answers with the seconds that took.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from aerodrome.bench import sdk
from aerodrome.bench.children import serve
from aerodrome.bench.sdk import Endpoint, SdkSession


class Load:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._sessions: list[SdkSession] = []

    async def perform(self, command: dict[str, Any]) -> dict[str, float]:
        if command["do"] == "open":
            await self._open(Endpoint(**command["endpoint"]), Path(command["directory"]), command["sessions"])
            return {}
        began = time.perf_counter()
        turns = iter(range(command["count"]))

        async def work(session: SdkSession) -> None:
            for _ in turns:
                await session.turn(command["prompt"])

        await asyncio.gather(*map(work, self._sessions))
        return {"seconds": time.perf_counter() - began}

    async def _open(self, endpoint: Endpoint, directory: Path, sessions: int) -> None:
        """All on one client, as a backend would that serves many users."""
        first = await self._stack.enter_async_context(sdk.connected(endpoint, directory))
        self._sessions = [first, *[await first.another() for _ in range(sessions - 1)]]


async def main() -> None:
    async with AsyncExitStack() as stack:
        await serve(Load(stack).perform)


if __name__ == "__main__":
    asyncio.run(main())
