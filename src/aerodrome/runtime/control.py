"""The control link: our one connection to a runtime that carries every session we run in it.

It authenticates, becomes the runtime's `sessionFs` provider before any session exists (not of an attached server), and
stays attached to every resident session, because a session whose last connection goes is killed in mid-turn
(docs/facts.md, "Sessions and connections"). What the runtime says of a session goes to that session's binding.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import structlog
from msgspec import UNSET, Raw, UnsetType

from aerodrome.errors import AerodromeError, RuntimeUnavailable
from aerodrome.events import SessionEvent
from aerodrome.runtime.link import Link, LinkClosed, RemoteError, RequestRefused
from aerodrome.statestore.provider import STATE_PATH
from aerodrome.wire import envelope
from aerodrome.wire.framing import DEFAULT_MAX_FRAME

log = structlog.get_logger(__name__)

#: The protocol version we speak; the CLI's is in its answer to `connect`.
PROTOCOL_VERSION = 3
#: Requests that people, or clients, answer. The bindings bound them.
HELD = frozenset({"userInput.request", "systemMessage.transform"})
#: What opens a session. Whoever has asked for it may go away; the runtime goes on with it.
OPENING = frozenset({"session.create", "session.resume"})
#: Bytes of the requests of one runtime, such as writes to its sessions' files, that are served at a time.
_MAX_INBOUND_BYTES = 64 << 20
#: Files that are read for one runtime at a time. Each may be as large as a frame.
_READS = 4


class SessionBinding(Protocol):
    """One session's ear on the control link."""

    def on_event(self, event: SessionEvent) -> None:
        """In order; must be quick. What it raises is logged."""
        ...

    async def on_file_operation(self, operation: str, params: dict[str, Any]) -> Any:
        """A `sessionFs` request; the result is the SDK's."""
        ...

    def on_oversized(self, complaint: str) -> None:
        """Something of the session was too large to be read: we do not know any more how it stands."""
        ...

    async def on_request(self, method: str, params: dict[str, Any]) -> Any:
        """Any other request of the runtime that names the session."""
        ...


class ControlLink:
    """Use `open`; then `bind` a session before it is created or resumed, and `request`."""

    def __init__(
        self, on_lost: Callable[[str], None], request_timeout: float, max_frame: int = DEFAULT_MAX_FRAME
    ) -> None:
        self._on_lost = on_lost
        self._timeout = request_timeout
        self._max_frame = max_frame
        self._bindings: dict[str, SessionBinding] = {}
        self._link: Link | None = None
        self._reading = asyncio.Semaphore(_READS)
        #: What has been asked that opens a session and is not answered yet, the latest of each session.
        self._opening: dict[str, asyncio.Task[Any]] = {}
        #: The CLI's version, from its answer to `connect`.
        self.version = ""
        #: Set when the connection has gone, for whatever reason.
        self.closed = asyncio.Event()

    async def open(
        self,
        dial: Callable[[], Awaitable[socket.socket]],
        token: str,
        working_directory: str,
        *,
        serve_files: bool = True,
    ) -> None:
        """Connect and authenticate.

        Args:
            dial: Opens a socket to the runtime.
            serve_files: Become the provider of the session files. Not of a runtime that is others', too: their
                sessions' files would come to us as well.

        Raises:
            RuntimeUnavailable: The runtime refuses us or speaks another protocol.
        """
        try:
            self._link = Link(
                self,
                max_frame=self._max_frame,
                max_inbound_bytes=_MAX_INBOUND_BYTES,
                on_event=self._on_event,
                held=HELD,
            )
            await self._link.open_over(dial, timeout=self._timeout)
            hello = await self.request("connect", {"token": token, "supportedTaskKinds": ["agent", "client", "shell"]})
            if not isinstance(hello, dict):
                raise RuntimeUnavailable("what listens is no Copilot CLI: it answers `connect` with something else")
            provider = {
                "initialCwd": working_directory,
                "sessionStatePath": STATE_PATH,
                "conventions": "posix",
                "capabilities": {},
            }
            if serve_files and hello.get("protocolVersion") == PROTOCOL_VERSION:
                await self.request("sessionFs.setProvider", provider)
        except (LinkClosed, RemoteError, TimeoutError) as error:
            raise RuntimeUnavailable(f"the Copilot CLI listens but refuses the control link: {error}") from error
        if hello.get("protocolVersion") != PROTOCOL_VERSION:
            raise RuntimeUnavailable(
                f"the Copilot CLI speaks protocol {hello.get('protocolVersion')}, we speak {PROTOCOL_VERSION}; "
                "install the paired version with `aerodrome runtime install`"
            )
        self.version = str(hello.get("version", ""))

    @property
    def request_timeout(self) -> float:
        """Seconds for each request that names none."""
        return self._timeout

    async def request(self, method: str, params: dict[str, Any], *, timeout: float | None = None) -> Any:
        """Raises `LinkClosed`, `RemoteError` or `TimeoutError` (see `Link.request`).

        A session is let go of when all that opens it is answered: a runtime may take up first what it is asked last.
        """
        if self._link is None:
            raise LinkClosed("the control link is not open")
        if method == "session.detach" and (opening := self._opening.get(params["sessionId"])) is not None:
            await asyncio.wait({opening})
        asking = self._link.request(method, params, timeout=timeout or self._timeout)
        return await (self._open(params["sessionId"], asking) if method in OPENING else asking)

    async def _open(self, session_id: str, asking: Coroutine[Any, Any, Any]) -> Any:
        opening = self._opening[session_id] = asyncio.ensure_future(asking)
        opening.add_done_callback(lambda done: self._answered(session_id, done))
        await asyncio.wait({opening})
        return opening.result()

    def _answered(self, session_id: str, opening: asyncio.Task[Any]) -> None:
        if self._opening.get(session_id) is opening:
            del self._opening[session_id]
        if not opening.cancelled():
            opening.exception()  # has been heard, or is of no interest to who has gone

    def bind(self, session_id: str, binding: SessionBinding) -> None:
        if session_id in self._bindings:
            raise RuntimeError(f"session {session_id} is bound in this runtime already")
        self._bindings[session_id] = binding

    def unbind(self, session_id: str, binding: SessionBinding) -> None:
        """From now on nothing of this session is heard or served; a binding that is not the present one is kept."""
        if self._bindings.get(session_id) is binding:
            del self._bindings[session_id]

    def abort(self, reason: str) -> None:
        if self._link is not None:
            self._link.abort(reason)

    async def aclose(self) -> None:
        if self._link is not None:
            await self._link.aclose()

    # --- LinkHandler ---

    def on_notification(self, method: str, params: Raw | UnsetType) -> None:
        if method != "session.event" or params is UNSET:
            return  # session.lifecycle, host.event: nothing that the session's own events do not say
        try:
            self._on_event(*envelope.event_of(params))
        except envelope.EnvelopeError as error:
            log.warning("control.bad_event", error=str(error))

    def _on_event(self, session_id: str, event: SessionEvent) -> None:
        if (binding := self._bindings.get(session_id)) is not None:
            binding.on_event(event)

    async def on_request(self, method: str, params: Raw | UnsetType) -> Any:
        try:
            values = envelope.decode_value(params)
        except envelope.EnvelopeError as error:
            raise RequestRefused(envelope.INVALID_PARAMS, str(error)) from error
        session_id = values.get("sessionId") if isinstance(values, dict) else None
        binding = self._bindings.get(session_id) if isinstance(session_id, str) else None
        if binding is None or self._link is None:
            raise RequestRefused(envelope.INVALID_PARAMS, f"{method}: no such session here")
        space, _, operation = method.partition(".")
        try:
            if space == "sessionFs" and operation == "readFile":
                async with self._reading:
                    # What has been read waits in memory until the runtime takes it.
                    await self._link.may_write()
                    return await binding.on_file_operation(operation, values)
            if space == "sessionFs":
                return await binding.on_file_operation(operation, values)
            return await binding.on_request(method, values)
        except KeyError as error:
            raise RequestRefused(envelope.INVALID_PARAMS, f"{method}: {error} is missing") from error
        except AerodromeError as error:
            raise RequestRefused(envelope.INTERNAL_ERROR, f"{method}: {error.code}: {error.detail}") from error

    def on_oversized(self, session_id: str | None, complaint: str) -> None:
        if session_id is not None and (binding := self._bindings.get(session_id)) is not None:
            binding.on_oversized(complaint)

    def on_closed(self, reason: str) -> None:
        self.closed.set()
        self._on_lost(reason)
