"""One JSON-RPC connection to a runtime: asyncio around the sans-IO codec of `aerodrome.wire`.

Rules of the link:

- every request has a deadline; when it passes, or the caller is cancelled, a late answer is dropped;
- when the connection goes, for whatever reason, each pending request fails with `LinkClosed`, once;
- requests of the runtime are served concurrently; while `max_inbound` of them are, or so many that they have
  `max_inbound_bytes` together, the socket is not read, and the runtime waits (what had come in the same piece is served
  all the same);
- a message larger than a frame is passed over: whoever waits for it, or for its answer, gets an error, and the link
  goes on;
- after a read that brought nothing but pieces of answers, which come by the hundred and one by one, the socket is left
  alone for `REST`: what comes meanwhile is read at once, for a tenth of the wake-ups;
- writers wait while the runtime does not read (`TCP` back-pressure), so that nothing is buffered without bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog
from msgspec import UNSET, Raw, UnsetType

from aerodrome._util.tasks import TaskOwner
from aerodrome.events import SessionEvent
from aerodrome.runtime.frames import FrameConnection
from aerodrome.wire import envelope
from aerodrome.wire.framing import DEFAULT_MAX_FRAME, Oversized
from aerodrome.wire.oversized import complaint, head_of

log = structlog.get_logger(__name__)

#: Seconds; the most by which the first message behind an answer's pieces may be late.
REST = 0.004
#: Seconds in which what has come is read before an answer counts as missing. When this process has stood still, that is
#: looked at when the time is over: a runtime that has answered would be killed for hanging.
_LAST_LOOK = 0.1


class LinkClosed(Exception):
    """The connection is gone; what was asked may or may not have happened."""


class RemoteError(Exception):
    """The runtime answered with an error, or with something that cannot be read."""

    def __init__(self, method: str, code: int, message: str, *, problem: str | None = None) -> None:
        super().__init__(f"{method}: {message} ({code})")
        self.method = method
        self.code = code
        self.message = message
        #: The code of our own errors, when another node has answered.
        self.problem = problem


class LinkHandler(Protocol):
    """What the link's owner does with what the runtime sends by itself."""

    def on_notification(self, method: str, params: Raw | UnsetType) -> None:
        """Called in order of arrival, from the reading callback: it must be quick. What it raises is logged."""
        ...

    async def on_request(self, method: str, params: Raw | UnsetType) -> Any:
        """The result to answer with. Starts are in order of arrival. Raise `RequestRefused` for an error."""
        ...

    def on_oversized(self, session_id: str | None, complaint: str) -> None:
        """A request or a notification of this session was passed over, because it is larger than a frame may be."""
        ...

    def on_closed(self, reason: str) -> None:
        """Called once, also when we have closed the connection ourselves; nothing else is called afterwards."""
        ...


class RequestRefused(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Link:
    """Use `connect`, then `request`; `aclose` when done."""

    def __init__(
        self,
        handler: LinkHandler,
        *,
        max_frame: int = DEFAULT_MAX_FRAME,
        max_inbound: int = 256,
        max_inbound_bytes: int | None = None,
        on_event: Callable[[str, SessionEvent], None] | None = None,
        connection: FrameConnection | None = None,
        held: frozenset[str] = frozenset(),
    ) -> None:
        """Args:
        connection: One that is there already, and is handed over to the link.
        """
        self._handler = handler
        self._on_event = on_event
        self._connection = connection or FrameConnection(self, max_frame=max_frame, other="the runtime", skip=True)
        self._connection.hand_over(self)
        self._held = held
        self._max_inbound = max_inbound
        self._max_inbound_bytes = max_inbound_bytes
        self._inbound = 0
        self._inbound_bytes = 0
        self._next_id = 0
        self._pending: dict[envelope.RequestId, tuple[str, asyncio.Future[Raw | UnsetType]]] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._tasks = TaskOwner("link")
        self._resting: asyncio.TimerHandle | None = None

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        handler: LinkHandler,
        *,
        timeout: float,
        max_frame: int = DEFAULT_MAX_FRAME,
        max_inbound: int = 256,
        max_inbound_bytes: int | None = None,
        on_event: Callable[[str, SessionEvent], None] | None = None,
        held: frozenset[str] = frozenset(),
    ) -> Link:
        """Connect to a runtime.

        Args:
            on_event: Takes the events of sessions, in order, as far as they are told in the usual way; the others are
                notifications like any.
            held: Requests of the runtime that wait for people: they do not count among the `max_inbound`. Their number
                is for the handler to bound.

        Raises:
            LinkClosed: The runtime does not take the connection within `timeout` seconds.
        """
        link = cls(
            handler,
            max_frame=max_frame,
            max_inbound=max_inbound,
            max_inbound_bytes=max_inbound_bytes,
            on_event=on_event,
            held=held,
        )
        try:
            async with asyncio.timeout(timeout):
                await link._connection.open(host, port)
        except (OSError, OverflowError) as error:  # a time-out is the first, a port that is none the second
            raise LinkClosed(f"no connection to {host}:{port}: {str(error) or 'time-out'}") from error
        return link

    async def open_over(self, dial: Callable[[], Awaitable[socket.socket]], *, timeout: float) -> None:
        """Connect a link that was made without a connection, by a socket that `dial` opens. Raises `LinkClosed`."""
        try:
            async with asyncio.timeout(timeout):
                await self._connection.open_over(await dial())
        except OSError as error:
            raise LinkClosed(f"no connection: {str(error) or 'time-out'}") from error

    @property
    def closed(self) -> bool:
        return self._connection.closed

    @property
    def connection(self) -> FrameConnection:
        return self._connection

    async def request(self, method: str, params: Any, *, timeout: float) -> Any:
        """Ask, and decode the answer.

        Raises:
            RemoteError: The runtime refused, or `params` are nested so deep that it would not answer.
            LinkClosed: The connection went while we waited.
            TimeoutError: No answer within `timeout` seconds.
        """
        answer = await self.request_raw(method, params, timeout=timeout)
        try:
            return envelope.decode_value(answer)
        except envelope.EnvelopeError as error:
            raise RemoteError(method, envelope.PARSE_ERROR, f"an answer that cannot be read: {error}") from error

    async def request_raw(self, method: str, params: Any, *, timeout: float) -> Raw | UnsetType:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + timeout
        async with asyncio.timeout_at(give_up):
            await self.may_write()
        self._next_id += 1
        request_id = self._next_id
        try:
            frame = envelope.request_frame(request_id, method, params)
        except envelope.EnvelopeError as error:
            raise RemoteError(method, envelope.INVALID_PARAMS, str(error)) from error
        self._write(frame)
        future: asyncio.Future[Raw | UnsetType] = loop.create_future()
        self._pending[request_id] = (method, future)
        try:
            for look in (give_up - loop.time(), _LAST_LOOK):
                if (await asyncio.wait({future}, timeout=look))[0]:
                    return future.result()
            raise TimeoutError
        finally:
            self._pending.pop(request_id, None)
            if not future.cancel():
                future.exception()  # has been heard, or is of no interest to who goes away at this moment

    async def notify(self, method: str, params: Any) -> None:
        """Tell the other end something; waits while it does not read.

        Raises:
            LinkClosed: The connection has gone.
        """
        await self.may_write()
        self._write(envelope.notification_frame(method, params))

    async def aclose(self) -> None:
        """Close the connection and end the requests being served. Safe to call twice."""
        if self._connection.connected:
            self.abort("the link was closed")
            await self._connection.gone.wait()
        await self._tasks.aclose()

    def abort(self, reason: str) -> None:
        """Cut the connection now, without waiting for what is being written."""
        self._connection.abort(reason)

    # --- FrameOwner ---

    def on_bodies(self, bodies: list[bytes]) -> None:
        pieces = True
        connection = self._connection
        for body in bodies:
            if connection.closed_reason is not None:  # by a handler of one of them
                return
            pieces = self._dispatch(body) and pieces
        if pieces and connection.closed_reason is None:
            self._rest()

    def on_closed(self, reason: str) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        self._writable.set()
        for method, future in self._pending.values():
            if not future.done():
                future.set_exception(LinkClosed(f"{method}: {reason}"))
        self._handler.on_closed(reason)

    def on_paused(self, paused: bool) -> None:
        if paused:
            self._writable.clear()
        else:
            self._writable.set()

    # --- inside ---

    async def may_write(self) -> None:
        """Wait while the runtime does not read what is written to it."""
        # All who wait are woken at once, and the first to write may fill the buffer again.
        while not self._writable.is_set():
            await self._writable.wait()

    def _write(self, frame: bytes) -> None:
        if self._connection.closed_reason is not None:
            raise LinkClosed(self._connection.closed_reason)
        self._connection.write(frame)

    def _rest(self) -> None:
        if self._resting is None:
            self._connection.read_more(False)
            self._resting = asyncio.get_running_loop().call_later(REST, self._rested)

    def _rested(self) -> None:
        self._resting = None
        if not self._busy:
            self._resume_reading()

    @property
    def _busy(self) -> bool:
        """As many requests are being served as may be."""
        most = self._max_inbound_bytes
        return self._inbound >= self._max_inbound or (most is not None and self._inbound_bytes >= most)

    def _dispatch(self, body: bytes) -> bool:
        """Whether it was a piece of an answer."""
        if isinstance(body, Oversized):
            self._pass_over(body)
            return False
        if self._on_event is not None and (told := envelope.session_event(body)) is not None:
            try:
                self._on_event(*told)
            except Exception:
                # It would end the connection, and with it every session on it.
                log.exception("link.handler_failed", method="session.event")
            return told[1].is_piece
        try:
            message = envelope.decode(body)
        except envelope.EnvelopeError as error:
            log.warning("link.bad_message", error=str(error), size=len(body))
            return False
        if message.is_response:
            self._settle(message)
        elif message.is_request:
            assert message.method is not UNSET
            self._serve(message, len(body))
        else:
            assert message.method is not UNSET
            try:
                self._handler.on_notification(message.method, message.params)
            except Exception:
                log.exception("link.handler_failed", method=message.method)
        return False

    def _settle(self, message: envelope.Message) -> None:
        if not isinstance(message.id, (int, str)):
            log.warning("link.refused_by_runtime", error=envelope.error_of(message))  # it could not read our id
            return
        entry = self._pending.get(message.id)
        if entry is None or entry[1].done():
            return  # answered too late, or twice, or to nobody
        method, future = entry
        if message.is_error:
            future.set_exception(RemoteError(method, *envelope.error_of(message)))
        else:
            future.set_result(message.result)

    def _pass_over(self, body: Oversized) -> None:
        head, text = head_of(body), complaint(body)
        log.warning("link.oversized", size=body.length, method=head.method, session=head.session_id)
        if head.method is None:
            entry = self._pending.get(head.id) if head.id is not None else None
            if entry is not None and not entry[1].done():
                entry[1].set_exception(RemoteError(entry[0], envelope.INTERNAL_ERROR, text))
            return
        if head.id is not None:
            self._connection.write(envelope.error_frame(head.id, envelope.INTERNAL_ERROR, text))
        self._handler.on_oversized(head.session_id, text)

    def _serve(self, message: envelope.Message, size: int) -> None:
        assert isinstance(message.id, (int, str))
        assert isinstance(message.method, str)
        if message.method not in self._held:
            self._inbound += 1
            self._inbound_bytes += size
            if self._busy:
                self._connection.read_more(False)
        self._tasks.start(self._answer(message.id, message.method, message.params, size), message.method)

    async def _answer(self, request_id: envelope.RequestId, method: str, params: Raw | UnsetType, size: int) -> None:
        try:
            try:
                frame = envelope.result_frame(request_id, await self._handler.on_request(method, params))
            except RequestRefused as refused:
                frame = envelope.error_frame(request_id, refused.code, str(refused))
            except Exception:
                log.exception("link.handler_failed", method=method)
                frame = envelope.error_frame(request_id, envelope.INTERNAL_ERROR, f"{method} failed")
            with contextlib.suppress(LinkClosed):
                await self.may_write()
                self._write(frame)
        finally:
            if method not in self._held:
                was_busy = self._busy
                self._inbound -= 1
                self._inbound_bytes -= size
                if was_busy and not self._busy:
                    self._resume_reading()

    def _resume_reading(self) -> None:
        if self._resting is None:
            self._connection.read_more(True)
