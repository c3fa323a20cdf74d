"""A CLI that keeps the files of its sessions with us, as the runtimes of a node do, and nothing else of ours.

It tells what of the SDKs' features depends on where the files are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Raw, UnsetType

from aerodrome.demo.model import ModelServer
from aerodrome.model import SessionKey
from aerodrome.runtime.link import Link
from aerodrome.statestore.backends.sqlite import SqliteFileStore
from aerodrome.statestore.provider import STATE_PATH, SessionFs
from aerodrome.wire import envelope
from support.databases import database
from support.sdk_clients import Endpoint, direct_endpoint


class _Provider:
    """Serves the files of whatever session the CLI names."""

    def __init__(self, store: SqliteFileStore, home: str) -> None:
        self._store = store
        self._home = home
        self._sessions: dict[str, SessionFs] = {}

    def on_notification(self, method: str, params: Raw | UnsetType) -> None:
        pass

    def on_oversized(self, session_id: str | None, complaint: str) -> None:
        raise AssertionError(complaint)

    def on_closed(self, reason: str) -> None:
        pass

    async def on_request(self, method: str, params: Raw | UnsetType) -> Any:
        values = envelope.decode_value(params)
        session_id = values["sessionId"]
        if session_id not in self._sessions:
            key = SessionKey("acme", session_id)
            await self._store.raise_epoch(key, 1)
            files = SessionFs(self._store, key, 1, home=self._home, on_failed_write=lambda _: None)
            self._sessions.setdefault(session_id, files)
        return await self._sessions[session_id].handle(method.removeprefix("sessionFs."), values)


@asynccontextmanager
async def stored_endpoint(directory: Path, command: Path, model: ModelServer) -> AsyncIterator[Endpoint]:
    async with direct_endpoint(directory, command, model) as endpoint, database(directory / "s.db") as db:
        store = SqliteFileStore(db)
        await store.open()
        host, _, port = endpoint.address.rpartition(":")
        home = directory / "homes" / "rt-1"
        link = await Link.connect(host, int(port), _Provider(store, str(home / "copilot")), timeout=30)
        try:
            await link.request("connect", {"token": endpoint.token, "supportedTaskKinds": []}, timeout=30)
            provider = {
                "initialCwd": str(home / "workspace"),
                "sessionStatePath": STATE_PATH,
                "conventions": "posix",
                "capabilities": {},
            }
            await link.request("sessionFs.setProvider", provider, timeout=30)
            yield Endpoint("stored", endpoint.address, endpoint.token, endpoint.credentials)
        finally:
            await link.aclose()
