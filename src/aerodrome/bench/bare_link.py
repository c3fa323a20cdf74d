"""A link to a CLI, and nothing behind it: what is left of a turn's price when nobody does anything with it.

`python -m aerodrome.bench.bare_link` (see `children`):

==================================================== =================================================
``{"do": "connect", "host", "port", "token"}``       connect to a CLI
``{"do": "create", "params"}``                       create a session in it
``{"do": "turns", "session", "count", "prompt"}``    take turns, each until the session is idle
==================================================== =================================================
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from msgspec import Raw, UnsetType

from aerodrome.bench.children import serve
from aerodrome.events import SessionEvent
from aerodrome.runtime.control import PROTOCOL_VERSION
from aerodrome.runtime.link import Link, RequestRefused
from aerodrome.wire.envelope import METHOD_NOT_FOUND

_TIMEOUT = 30.0


class _Bare:
    """A `LinkHandler` that waits for a session to be idle, and has nothing to say."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._idle = asyncio.Event()

    async def perform(self, command: dict[str, Any]) -> Any:
        match command["do"]:
            case "connect":
                self._link = await Link.connect(
                    command["host"], command["port"], self, timeout=_TIMEOUT, on_event=self._on_event
                )
                hello = await self._ask("connect", {"token": command["token"], "supportedTaskKinds": []})
                assert hello["protocolVersion"] == PROTOCOL_VERSION, hello
            case "create":
                await self._ask("session.create", command["params"])
            case "turns":
                for _ in range(command["count"]):
                    self._idle.clear()
                    await self._ask("session.send", {"sessionId": command["session"], "prompt": command["prompt"]})
                    async with asyncio.timeout(_TIMEOUT):
                        await self._idle.wait()
        return {}

    async def aclose(self) -> None:
        if self._link is not None:
            await self._link.aclose()

    async def _ask(self, method: str, params: dict[str, Any]) -> Any:
        assert self._link is not None, "connect comes first"
        return await self._link.request(method, params, timeout=_TIMEOUT)

    def _on_event(self, session_id: str, event: SessionEvent) -> None:
        if event.type == "session.idle":
            self._idle.set()

    # --- LinkHandler ---

    def on_notification(self, method: str, params: Raw | UnsetType) -> None:
        pass

    async def on_request(self, method: str, params: Raw | UnsetType) -> Any:
        raise RequestRefused(METHOD_NOT_FOUND, method)

    def on_oversized(self, session_id: str | None, complaint: str) -> None:
        pass

    def on_closed(self, reason: str) -> None:
        pass


async def main() -> None:
    bare = _Bare()
    await serve(bare.perform)
    await bare.aclose()


if __name__ == "__main__":
    uvloop.run(main())
