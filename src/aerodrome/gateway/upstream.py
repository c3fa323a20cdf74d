"""One client's connection to one runtime, or to another node in a runtime's place.

The runtime asks *connections* for tools, permissions and hooks, so each client has one of its own to every runtime that
holds a session of its. It is opened when it is first needed, with what the client said of itself in its `connect`, and
the runtime's own token.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakValueDictionary

from msgspec import Raw, UnsetType

from aerodrome.coordination.ports import Node
from aerodrome.errors import RuntimeUnavailable
from aerodrome.gateway.bindings import NODE_LINK
from aerodrome.gateway.problems import problem_code
from aerodrome.gateway.router import OWN_IDS
from aerodrome.model import Principal
from aerodrome.peers.link import PeerGone, address_of
from aerodrome.peers.liveness import Liveness
from aerodrome.peers.shapes import PING, to_wire
from aerodrome.runtime.control import OPENING
from aerodrome.runtime.frames import FrameConnection
from aerodrome.runtime.link import LinkClosed, RemoteError
from aerodrome.runtime.ports import Runtime
from aerodrome.telemetry.meter import Traffic
from aerodrome.wire import envelope


class UpstreamOwner(Protocol):
    @property
    def upstream_traffic(self) -> Traffic:
        """What goes by the links is added to it."""
        ...

    def on_runtime_bodies(self, link: Upstream, bodies: list[bytes]) -> None: ...

    def on_runtime_closed(self, link: Upstream) -> None: ...

    def on_runtime_paused(self, paused: bool) -> None: ...

    def on_asking(self) -> None:
        """We wait for an answer on one of the links, or do no longer."""
        ...


class Upstream:
    """Made by `open` or `open_to_node`. Named by its runtime's or node's id: a client has one to each."""

    def __init__(
        self, owner: UpstreamOwner, link_id: str, timeout: float, max_frame: int, runtime: Runtime | None = None
    ) -> None:
        self.id = link_id
        #: ``None``: it leads to a node.
        self.runtime = runtime
        self.connection = FrameConnection(
            self, max_frame=max_frame, other="the runtime", skip=True, traffic=owner.upstream_traffic
        )
        self._owner = owner
        self._timeout = timeout
        #: Another node would refuse the ids that we use with runtimes; these no client can guess and use itself.
        self._ids = OWN_IDS if runtime is not None else f"{secrets.token_hex(8)}:"
        #: Given to somebody since the last look for links that nothing goes by; he may be about to use it.
        self.in_hand = False
        #: What is with the runtime at the same time it takes up in any order: a session is left and joined in turns.
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._numbers = 0
        self._pending: dict[str, asyncio.Future[envelope.Message]] = {}
        #: What has been asked that opens a session and is not answered yet.
        self._opening: dict[str, asyncio.Future[envelope.Message]] = {}

    def line(self, session_id: str) -> asyncio.Lock:
        """To be held by who joins or leaves the session on this link."""
        return self._lines.setdefault(session_id, asyncio.Lock())

    @property
    def asking(self) -> bool:
        """Requests of our own are not answered yet."""
        return bool(self._pending)

    @classmethod
    async def open(
        cls,
        owner: UpstreamOwner,
        runtime: Runtime,
        hello: Mapping[str, Any],
        *,
        timeout: float,
        max_frame: int,
    ) -> Upstream:
        """Connect, and introduce the client.

        Args:
            hello: What the client sent with its `connect`, without its credential.
            timeout: Seconds for each of our own requests.

        Raises:
            RuntimeUnavailable: The runtime has gone, or refuses.
        """
        link = cls(owner, runtime.id, timeout, max_frame, runtime)
        try:
            await link._connect(runtime, {**hello, "token": runtime.token})
        except (OSError, LinkClosed, RemoteError) as error:  # a time-out is the first
            raise RuntimeUnavailable(f"no connection to the runtime: {error}") from error
        runtime.adopt(link.connection)
        return link

    @classmethod
    async def open_to_node(
        cls,
        owner: UpstreamOwner,
        node: Node,
        hello: Mapping[str, Any],
        principal: Principal,
        *,
        timeout: float,
        max_frame: int,
        silence: float,
    ) -> Upstream:
        """Connect to another node in the client's name.

        Args:
            silence: Seconds in which nothing is heard of the node, and after which it is held for gone.

        Raises:
            PeerGone: It is not there, or refuses.
        """
        link = cls(owner, f"{NODE_LINK}{node.incarnation}", timeout, max_frame)
        on_behalf_of = to_wire(principal)
        try:
            hello = {**hello, "token": node.peer_token, "onBehalfOf": on_behalf_of}
            async with asyncio.timeout(silence):
                await link._connect(address_of(node), hello)
        except (OSError, LinkClosed, RemoteError) as error:
            raise PeerGone(f"no connection to the node {node.name}: {error}", retry_after=1.0) from error
        Liveness(link.connection, silence, link._ping)
        return link

    async def _connect(self, to: Runtime | tuple[str, int], hello: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                if isinstance(to, tuple):
                    await self.connection.open(*to)
                else:
                    await self.connection.open_over(await to.connect())
            await self.request("connect", hello)
        except BaseException:
            self.connection.abort("it could not be opened")
            raise

    def _ping(self) -> None:
        """The answer is one to nobody: that there is one is enough, and the client need not be read for it."""
        self._numbers += 1
        self.connection.write(envelope.request_frame(f"{self._ids}{self._numbers}", PING, {}))

    async def request(self, method: str, params: Mapping[str, Any], *, timeout: float | None = None) -> Raw | UnsetType:
        """Ask something of our own; the result's own bytes.

        Args:
            timeout: Seconds, at most those of the link.

        Raises:
            RemoteError: The runtime refused.
            LinkClosed: The connection went while we waited.
            TimeoutError: No answer in time.
        """
        future: asyncio.Future[envelope.Message] | None = None
        goes_on = False
        try:
            async with asyncio.timeout(min(self._timeout, timeout or self._timeout)):
                if method == "session.detach" and (opening := self._opening.get(params["sessionId"])) is not None:
                    # Asked both at the same time, a runtime may take up the end first.
                    await asyncio.wait({opening})
                future = self._ask(method, params)
                await asyncio.wait({future})
            message = future.result()
        except asyncio.CancelledError:
            goes_on = method in OPENING  # in the runtime, though nobody waits for it any more
            raise
        finally:
            if future is not None and not goes_on:
                future.cancel()
        if message.is_error:
            raise RemoteError(method, *envelope.error_of(message), problem=problem_code(message))
        return message.result

    def _ask(self, method: str, params: Mapping[str, Any]) -> asyncio.Future[envelope.Message]:
        self._numbers += 1
        request_id = f"{self._ids}{self._numbers}"
        try:
            frame = envelope.request_frame(request_id, method, params)
        except envelope.EnvelopeError as error:
            raise RemoteError(method, envelope.INVALID_PARAMS, str(error)) from error
        if self.connection.closed_reason is not None:
            raise LinkClosed(f"{method}: {self.connection.closed_reason}")
        future: asyncio.Future[envelope.Message] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = future
        future.add_done_callback(lambda _: self._answered(request_id))
        self.connection.write(frame)
        self._owner.on_asking()
        if method in OPENING:
            self._opening[params["sessionId"]] = future
        return future

    def _answered(self, request_id: str) -> None:
        future = self._pending.pop(request_id)
        for session_id in [each for each, opening in self._opening.items() if opening is future]:
            del self._opening[session_id]
        if not future.cancelled():
            future.exception()  # has been heard, or is of no interest to who has gone
        self._owner.on_asking()

    def settle(self, message: envelope.Message) -> None:
        """The answer to a request of ours has come."""
        future = self._pending.get(message.id) if isinstance(message.id, str) else None
        if future is not None and not future.done():
            future.set_result(message)

    # --- FrameOwner ---

    def on_bodies(self, bodies: list[bytes]) -> None:
        self._owner.on_runtime_bodies(self, bodies)

    def on_closed(self, reason: str) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(LinkClosed(reason))
        self._owner.on_runtime_closed(self)

    def on_paused(self, paused: bool) -> None:
        self._owner.on_runtime_paused(paused)
