"""The connection of this node to another one, by which the work of its HTTP callers goes there, and its streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec
import structlog
from msgspec import Raw, UnsetType

from aerodrome._util.tasks import Forestalled, TaskOwner, shared
from aerodrome.coordination.ports import Node
from aerodrome.errors import AerodromeError, RuntimeUnavailable
from aerodrome.peers import shapes
from aerodrome.peers.liveness import Liveness
from aerodrome.runtime.link import Link, LinkClosed, RemoteError, RequestRefused
from aerodrome.wire.envelope import METHOD_NOT_FOUND

log = structlog.get_logger(__name__)


class PeerGone(RuntimeUnavailable):
    """The other node cannot be reached, or went before it answered; whether it did what was asked nobody knows."""


class PeerStream:
    """One stream from the other node: callbacks, called from the link's reading."""

    def __init__(
        self,
        link: PeerLink,
        *,
        on_told: Callable[[shapes.EventOnWire], None],
        on_ended: Callable[[shapes.Ended | None], None],
    ) -> None:
        """Args:
        on_ended: Called once, with ``None`` when the link was lost.
        """
        self.id = link.next_stream()
        self.on_told = on_told
        self.on_ended = on_ended
        self._link = link

    def say(self, method: str) -> None:
        """Tell the other node something about the stream."""
        self._link.tell(method, {"stream": self.id})

    def close(self) -> None:
        """Nobody wants to hear more."""
        if self._link.forget(self):
            self.say(shapes.CLOSE)


class PeerLink:
    """Made by `open`."""

    def __init__(self, node: Node, timeout: float) -> None:
        self.node = node
        self._timeout = timeout
        self._link: Link
        self._streams: dict[int, PeerStream] = {}
        self._numbers = 0
        self._tasks = TaskOwner("peer link")

    @classmethod
    async def open(cls, node: Node, *, own: str, timeout: float, silence: float) -> PeerLink:
        """Args:
        own: The incarnation that calls.
        timeout: Seconds for each answer.
        silence: Seconds in which nothing is heard of the node, and after which it is held for gone.

        Raises:
            PeerGone: It is not there, or does not take us for a node.
        """
        self = cls(node, timeout)
        try:
            host, port = address_of(node)
            self._link = await Link.connect(host, port, self, timeout=silence)
            await self._link.request("connect", {"token": node.peer_token, "node": own}, timeout=silence)
        except (LinkClosed, RemoteError, TimeoutError) as error:
            await self.aclose()
            raise PeerGone(f"the node {node.name} cannot be reached: {error}", retry_after=1.0) from error
        except BaseException:
            await self.aclose()
            raise
        Liveness(self._link.connection, silence, self._ping)
        return self

    @property
    def closed(self) -> bool:
        return self._link.closed

    async def aclose(self) -> None:
        if hasattr(self, "_link"):
            await self._link.aclose()
        await self._tasks.aclose()

    def abort(self, reason: str) -> None:
        self._link.abort(reason)

    def next_stream(self) -> int:
        self._numbers += 1
        return self._numbers

    def begin(self, stream: PeerStream) -> None:
        """Listen to the stream from now on; before the request that starts it, so that nothing is missed."""
        self._streams[stream.id] = stream

    def forget(self, stream: PeerStream) -> bool:
        """``False``: it had ended."""
        return self._streams.pop(stream.id, None) is not None

    async def request(self, method: str, params: Mapping[str, Any], *, timeout: float | None = None) -> Any:
        """The value of the answer.

        Raises:
            PeerGone: No answer.
            AerodromeError: The other node's error.
        """
        try:
            answer = await self._link.request(method, params, timeout=timeout or self._timeout)
        except TimeoutError as error:
            raise PeerGone(f"the node {self.node.name} did not answer in time", retry_after=1.0) from error
        except (LinkClosed, RemoteError) as error:
            raise PeerGone(f"the node {self.node.name} has gone: {error}", retry_after=1.0) from error
        if not isinstance(answer, dict):
            raise PeerGone(f"the node {self.node.name} answers what cannot be read")
        if isinstance(refused := answer.get("error"), dict):
            raise shapes.error_of(refused)
        return answer.get("value")

    def tell(self, method: str, params: Mapping[str, Any]) -> None:
        if not self._link.closed and not self._tasks.closed:
            self._tasks.start(self._tell(method, params), method)

    def _ping(self) -> None:
        if not self._tasks.closed:
            asking = self._link.request(shapes.PING, {}, timeout=self._timeout)
            # Whether it is answered is for `Liveness` to see.
            self._tasks.start(asking, shapes.PING, expected=(LinkClosed, RemoteError, TimeoutError))

    async def _tell(self, method: str, params: Mapping[str, Any]) -> None:
        with suppress(LinkClosed):  # who waits for something is told by `on_closed`
            await self._link.notify(method, params)

    # --- LinkHandler ---

    def on_notification(self, method: str, params: Raw | UnsetType) -> None:
        if isinstance(params, UnsetType):
            return
        try:
            if method == shapes.TOLD:
                told = _decode_told(params)
                if (stream := self._streams.get(told.stream)) is not None:
                    stream.on_told(told.event)
            elif method == shapes.ENDED:
                ended = _decode_ended(params)
                if (stream := self._streams.pop(ended.stream, None)) is not None:
                    stream.on_ended(ended)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.error("peers.bad_notification", node=self.node.name, method=method, error=str(error))

    async def on_request(self, method: str, params: Raw | UnsetType) -> Any:
        raise RequestRefused(METHOD_NOT_FOUND, method)

    def on_oversized(self, session_id: str | None, complaint: str) -> None:
        log.error("peers.oversized", node=self.node.name, reason=complaint)

    def on_closed(self, reason: str) -> None:
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.on_ended(None)


class PeerLinks:
    """One link to each node that is needed, opened when it is."""

    def __init__(self, *, own: Callable[[], str], timeout: float, silence: float) -> None:
        self._own = own
        self._timeout = timeout
        self._silence = silence
        self._links: dict[str, PeerLink] = {}
        self._opening: dict[str, asyncio.Task[PeerLink]] = {}
        self._tasks = TaskOwner("peers")

    async def to(self, node: Node) -> PeerLink:
        """Raises `PeerGone`."""
        link = self._links.get(node.incarnation)
        if link is not None and not link.closed:
            return link
        opening = self._opening.get(node.incarnation)
        if opening is None:
            if self._tasks.closed:
                raise PeerGone("this node is shutting down")
            opening = self._tasks.start(self._open(node), f"open link to {node.name}", expected=AerodromeError)
            self._opening[node.incarnation] = opening
            opening.add_done_callback(lambda _: self._opening.pop(node.incarnation, None))
        try:
            return await shared(opening)
        except Forestalled:
            raise PeerGone(f"the node {node.name} has gone", retry_after=1.0) from None

    async def _open(self, node: Node) -> PeerLink:
        link = await PeerLink.open(node, own=self._own(), timeout=self._timeout, silence=self._silence)
        self._links[node.incarnation] = link
        return link

    def nodes_gone(self, incarnations: frozenset[str]) -> None:
        """They were held for dead: what was asked of them will not be answered, whether they know it or not."""
        for incarnation in incarnations:
            if (opening := self._opening.get(incarnation)) is not None:
                opening.cancel()
            if (link := self._links.pop(incarnation, None)) is not None:
                link.abort("the node was held for dead")
                if not self._tasks.closed:
                    self._tasks.start(link.aclose(), "close link")

    async def aclose(self) -> None:
        await self._tasks.aclose()
        for link in list(self._links.values()):
            await link.aclose()


def address_of(node: Node) -> tuple[str, int]:
    """Raises `PeerGone`: it says of none that can be read."""
    host, _, port = node.address.rpartition(":")
    if not (host and port.isascii() and port.isdigit()):
        raise PeerGone(f"the node {node.name} says of no address where it could be reached", retry_after=1.0)
    return host.strip("[]"), int(port)


_decode_told = msgspec.json.Decoder(shapes.Told).decode
_decode_ended = msgspec.json.Decoder(shapes.Ended).decode
