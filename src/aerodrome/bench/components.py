"""Two parts by themselves: an append to the state store, and a round trip on the link to a runtime."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

from msgspec import Raw, UnsetType

from aerodrome._util.sqlite import Database
from aerodrome.bench.lab import BareCli, Lab
from aerodrome.bench.report import Row, compare
from aerodrome.bench.rounds import interleave
from aerodrome.bench.scale import Scale
from aerodrome.model import SessionKey
from aerodrome.runtime.frames import FrameConnection, FrameOwner
from aerodrome.runtime.link import Link
from aerodrome.runtime.ports import connected
from aerodrome.statestore.backends.sqlite import SqliteFileStore

#: What a later turn of a session appends (docs/facts.md, "Session files": 2.5 to 10 KB).
APPEND_BYTES = 6_000
_TIMEOUT = 10.0
_WARM_UP = 3
#: The kernel acknowledges the first segments of a connection at once, whatever is asked.
_PING_WARM_UP = 10


async def store(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    """An append that survives a power cut, against writing the same bytes to a plain file and syncing it."""
    directory = lab.new_directory("store")
    text, key, epoch = "x" * APPEND_BYTES, SessionKey("acme", "session"), 1
    async with Database(directory / "state.sqlite3", synchronous="FULL") as database:
        files = SqliteFileStore(database)
        await files.open()
        await files.raise_epoch(key, epoch)
        with _PlainFile(directory / "plain") as plain:
            times = await interleave(
                {
                    "append": lambda: files.append(key, epoch, "/state/events.jsonl", text),
                    "plain_file": lambda: plain.append(text.encode()),
                },
                scale.appends,
                warm_up=_WARM_UP,
                pause=0,
                progress=progress,
            )
        await files.aclose()
    return [compare("store", "durable append of 6 KB / write and fdatasync of a file", ("append", "plain_file"), times)]


async def link(lab: Lab, scale: Scale, progress: Callable[[float], None]) -> list[Row]:
    """Several answers of the CLI in a row, with quick ACKs, as our links ask for, and with the kernel's delayed ones.

    In a row, because the CLI holds the second small message back until the first one is acknowledged.
    """
    async with lab.bare_cli() as cli:
        quick, delayed = await _connect(FrameConnection, cli), await _connect(_DelayedAcks, cli)
        times = await interleave(
            {
                "quick_ack": lambda: _bursts(quick),
                "delayed_ack": lambda: _bursts(delayed),
            },
            scale.pings,
            warm_up=_PING_WARM_UP,
            progress=progress,
        )
        await quick.aclose()
        await delayed.aclose()
    return [
        compare(
            "link", "five times three answers in a row, with quick ACKs / without", ("quick_ack", "delayed_ack"), times
        )
    ]


class _PlainFile:
    """The least that storing durably can cost on this disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    async def append(self, content: bytes) -> None:
        os.write(self._descriptor, content)
        os.fdatasync(self._descriptor)


class _DelayedAcks(FrameConnection):
    def _quick_ack(self) -> None:
        pass


class _Deaf:
    """A `LinkHandler` that has nothing to say."""

    def on_notification(self, method: str, params: Raw | UnsetType) -> None:
        pass

    async def on_request(self, method: str, params: Raw | UnsetType) -> Any:
        return None

    def on_oversized(self, session_id: str | None, complaint: str) -> None:
        pass

    def on_closed(self, reason: str) -> None:
        pass


async def _bursts(link: Link) -> None:
    for _ in range(5):
        await asyncio.gather(*(link.request("ping", {}, timeout=_TIMEOUT) for _ in range(3)))


async def _connect(kind: type[FrameConnection], cli: BareCli) -> Link:
    link = Link(_Deaf(), connection=kind(cast("FrameOwner", None)))  # which takes the connection over
    await link.open_over(lambda: connected(cli.host, cli.port), timeout=_TIMEOUT)
    await link.request("connect", {"token": cli.token, "supportedTaskKinds": []}, timeout=_TIMEOUT)
    return link
