"""One connection's life with an attached server.

When the connection goes, or the server does not answer a ping in time, this runtime is lost for good; a server that
comes back is another one. Nothing is done to the process: it may be others' too. But our connections to it are cut, all
of them, because a session stays loaded in a server as long as one connection is attached to it, and it is about to be
loaded elsewhere.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import structlog

from aerodrome.errors import RuntimeUnavailable
from aerodrome.model import RuntimeKey
from aerodrome.runtime.attached.entry import AttachEntry
from aerodrome.runtime.deaths import Death
from aerodrome.runtime.link import LinkClosed, RemoteError
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.ports import Cuttable, connected
from aerodrome.runtime.release import PINNED
from aerodrome.runtime.serving import ServingRuntime
from aerodrome.wire.framing import DEFAULT_MAX_FRAME

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AttachedOptions:
    """Times in seconds."""

    ping_interval: float = 5.0
    ping_timeout: float = 5.0
    request_timeout: float = 30.0
    #: Largest message from a server, in bytes.
    max_frame: int = DEFAULT_MAX_FRAME
    allow_version_mismatch: bool = False


#: Told of each request: whether it was answered, and after how many seconds.
Observer = Callable[[bool, float], None]


class AttachedRuntime(ServingRuntime):
    """Implements `runtime.ports.Runtime`. Use `open`, then `watch`; `aclose` when it is lost or not needed."""

    def __init__(
        self, endpoint: tuple[str, int], entry: AttachEntry, options: AttachedOptions, observe: Observer
    ) -> None:
        super().__init__(
            f"at-{secrets.token_hex(5)}",
            request_timeout=options.request_timeout,
            ping_timeout=options.ping_timeout,
            max_frame=options.max_frame,
        )
        self.entry = entry
        self.foreign = True
        self.token = entry.token
        self._endpoint = endpoint
        self._options = options
        self._observe = observe
        self._retiring = False
        #: Told of each session that it has loaded (true) or has refused to load.
        self.on_load: Callable[[str, bool], None] | None = None
        self._connections: WeakSet[Cuttable] = WeakSet()

    @property
    def state(self) -> RuntimeState:
        if self.lost.is_set():
            return RuntimeState.FAILED
        return RuntimeState.RETIRING if self._retiring else RuntimeState.CLAIMED

    @property
    def pid(self) -> int | None:
        return None

    @property
    def address(self) -> tuple[str, int]:
        return self._endpoint

    @property
    def copilot_home(self) -> Path:
        return Path("/")  # on its machine; no path of ours is in it

    @property
    def workspace(self) -> Path:
        return Path(self.entry.workspace)

    def claim(self, key: RuntimeKey) -> None:
        self.key = key

    def retire(self) -> None:
        """Sessions leave it when they can."""
        self._retiring = True

    def serve(self) -> None:
        """They stay after all."""
        self._retiring = False

    def adopt(self, connection: Cuttable) -> None:
        self._connections.add(connection)

    async def connect(self) -> socket.socket:
        return await connected(*self._endpoint)

    async def open(self) -> None:
        """Raises `RuntimeUnavailable` with the reason: it is not there, refuses the token, is of another version."""
        await self.control.open(self.connect, self.token, self.entry.workspace, serve_files=False)
        if self.control.version != PINNED.version and not self._options.allow_version_mismatch:
            raise RuntimeUnavailable(
                f"it is a Copilot CLI {self.control.version or 'of an unknown version'}, and this release is for "
                f"{PINNED.version} (runtime.allow_version_mismatch)"
            )

    async def sees(self, check: Callable[[Callable[[str], Awaitable[bool]]], Awaitable[bool]]) -> bool:
        """Whether the server sees a session that `check` lays out.

        Raises:
            RuntimeUnavailable: It does not answer.
        """

        async def has(session_id: str) -> bool:
            answer = await self.control.request("session.getMetadata", {"sessionId": session_id})
            return isinstance(answer, dict) and bool(answer.get("session"))

        try:
            return await check(has)
        except (LinkClosed, RemoteError, TimeoutError) as error:
            raise RuntimeUnavailable(f"it does not say which sessions it sees: {error}") from error

    async def answers(self, unanswered: str) -> bool:
        self._observe(False, 0.0)
        return await super().answers(unanswered)

    def note_load(self, session_id: str, *, taken: bool) -> None:
        if self.on_load is not None:
            self.on_load(session_id, taken)

    async def takes_prompts(self) -> bool:
        """It is asked first: the kernel of a server that hangs takes what it is sent, and the server reads that when it
        wakes up, long after the prompt was repeated elsewhere. Nothing compares epochs of what it writes then."""
        return not self.lost.is_set() and await self._ping()

    def watch(self) -> None:
        """Begin to ask it for signs of life."""
        self._tasks.start(self._ping_for_ever(), "health")

    async def aclose(self) -> None:
        """Cut every connection to it. Safe to call twice."""
        self._cut("the server is not used any more")
        await self.control.aclose()
        await self._tasks.aclose()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "pid": None, "state": self.state.value, "rss_bytes": 0}

    async def _ping_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._options.ping_interval)
            if not await self._ping():
                return

    async def _ping(self) -> bool:
        """Whether it answers; it is lost if not."""
        began = time.monotonic()
        try:
            await self.control.request("ping", {}, timeout=self._options.ping_timeout)
        except TimeoutError:
            self._lose(f"no answer to a ping within {self._options.ping_timeout:g} s: it hangs")
            return False
        except (LinkClosed, RemoteError) as error:
            self._lose(f"the ping failed: {error}")
            return False
        self._observe(True, time.monotonic() - began)
        return True

    def _lose(self, reason: str) -> None:
        if self.lost.is_set():
            return
        self.lost_reason = reason
        # What a process that is not ours has died of cannot be seen: no session is blamed for it.
        self.death.set_result(Death.OUTSIDE)
        self.lost.set()
        self._cut(reason)

    def _cut(self, reason: str) -> None:
        self.control.abort(reason)
        for connection in list(self._connections):
            connection.abort(reason)
