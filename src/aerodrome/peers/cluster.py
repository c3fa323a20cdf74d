"""What one node knows of the others: who lives, and who runs a session.

The list of the living is read about once a heartbeat. Who runs a session is asked of the coordination store when it is
not loaded here, and never when there is nobody else. Hints (`ClusterEvents`) only make things faster.

The answer is remembered: for whoever sends something there and says that it comes from memory (`remembered`), because
the node that is asked then looks whether it has the session, and does not take it otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from aerodrome._util.patience import Patience
from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.ports import ClusterEvent, ClusterEvents, Leases, Membership, Node
from aerodrome.errors import AerodromeError, SessionElsewhere
from aerodrome.model import SessionKey
from aerodrome.sessions.hints import AWAKE, DELETED, MEMBERS

log = structlog.get_logger(__name__)

#: Sessions of which is remembered who runs them: the latest that were asked for.
_REMEMBERED = 10_000


class Cluster:
    """Args:
    incarnation: The one this node lives in now.
    loaded: Whether a session is loaded here, under a lease that holds.
    interval: Seconds between two looks at who lives.
    patience: With the coordination store, when it is asked who runs a session.
    """

    def __init__(
        self,
        membership: Membership,
        leases: Leases,
        events: ClusterEvents,
        *,
        incarnation: Callable[[], str],
        loaded: Callable[[SessionKey], bool],
        interval: float,
        patience: Patience | None = None,
    ) -> None:
        #: Told of the session that a node has loaded, and which one that is.
        self.on_awake: list[Callable[[SessionKey, str], None]] = []
        #: Told of a session that was deleted elsewhere.
        self.on_deleted: list[Callable[[SessionKey], None]] = []
        #: Told of a session whose members were changed elsewhere.
        self.on_members: list[Callable[[SessionKey], None]] = []
        #: Told of the incarnations that have gone.
        self.on_gone: list[Callable[[frozenset[str]], None]] = []
        #: Sessions that somebody here wants to follow wherever they go.
        self.followed: list[Callable[[], Sequence[SessionKey]]] = []
        self._membership = membership
        self._leases = leases
        self._events = events
        self._incarnation = incarnation
        self._loaded = loaded
        self._interval = interval
        self._patience = patience or Patience(0.0)
        self._nodes: dict[str, Node] = {}
        #: Incarnations that run sessions, the one that was asked for last at the end.
        self._known: dict[SessionKey, str] = {}
        #: One look after the other: the answer to an earlier one must not replace that to a later one.
        self._looking = asyncio.Lock()
        self._tasks = TaskOwner("cluster")
        self._stop_listening: Callable[[], None] | None = None

    async def start(self) -> None:
        self._stop_listening = self._events.listen(self._on_event)
        await self.refresh()
        self._tasks.start(self._run(), "follow the others")

    async def aclose(self) -> None:
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None
        await self._tasks.aclose()

    @property
    def own(self) -> str:
        return self._incarnation()

    @property
    def alone(self) -> bool:
        """No other node lives, as far as we know."""
        return all(incarnation == self.own for incarnation in self._nodes)

    def lives(self, incarnation: str) -> bool:
        return incarnation in self._nodes

    def node(self, incarnation: str) -> Node | None:
        return self._nodes.get(incarnation)

    def remembered(self, key: SessionKey) -> Node | None:
        """The other node that ran the session when the store was last asked (`elsewhere`), if that is remembered. It
        may not any more: `forget` it then."""
        if self._loaded(key) or (incarnation := self._known.pop(key, None)) is None:
            return None
        self._known[key] = incarnation
        return self._nodes.get(incarnation)

    def forget(self, key: SessionKey) -> None:
        self._known.pop(key, None)

    async def elsewhere(self, key: SessionKey) -> Node | None:
        """The node that runs the session, if it is another one: asked of the store.

        Raises:
            SessionElsewhere: It is, and says of no address where it could be asked.
            StoreUnavailable: Who runs it could not be found out within the patience.
        """
        return await self._patience(lambda: self._elsewhere(key))

    async def _elsewhere(self, key: SessionKey) -> Node | None:
        if self.alone or self._loaded(key):
            return None
        lease = await self._leases.holder(key)
        self.forget(key)
        if lease is None or lease.incarnation == self.own:
            return None
        if lease.incarnation not in self._nodes:
            await self.refresh()
        node = self._nodes.get(lease.incarnation)
        if node is not None and not node.address:
            raise SessionElsewhere(
                f"the session is active on the node {node.name}, which other nodes cannot reach (server.advertise)",
                retry_after=1.0,
            )
        if node is not None:
            self._known[key] = node.incarnation
            if len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]
        return node

    def announce(self, kind: str, key: SessionKey) -> None:
        """Give the others a hint; to ourselves as well."""
        event = ClusterEvent(kind, str(key), self.own)
        # Not by way of the others: a hint may be lost. That it comes a second time does no harm.
        self._on_event(event)
        if not self.alone and not self._tasks.closed:
            self._tasks.start(self._events.publish(event), f"announce {kind}", expected=AerodromeError)

    async def refresh(self) -> None:
        """Read who lives. Raises `StoreUnavailable`."""
        async with self._looking:
            nodes = {node.incarnation: node for node in await self._membership.nodes()}
            gone = frozenset(self._nodes) - frozenset(nodes)
            self._nodes = nodes
        if gone:
            self._known = {key: node for key, node in self._known.items() if node not in gone}
            log.info("cluster.nodes_gone", incarnations=sorted(gone))
            for callback in self.on_gone:
                callback(gone)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.refresh()
                if not self.alone:
                    await self._follow()
            except AerodromeError as error:
                log.warning("cluster.not_followed", reason=error.detail)
            except Exception:
                log.exception("cluster.crashed")

    async def _follow(self) -> None:
        """Find out by ourselves what a lost hint would have told."""
        followed = {key for each in self.followed for key in each()}
        keys = {key for key in followed if not self._loaded(key)}
        for key in followed - keys:
            self._awake(key, self.own)
        if keys:
            for key, lease in (await self._leases.holders(sorted(keys))).items():
                self._awake(key, lease.incarnation)

    def _on_event(self, event: ClusterEvent) -> None:
        told = {DELETED: self.on_deleted, MEMBERS: self.on_members}.get(event.kind)
        if told is None and event.kind != AWAKE:
            return
        tenant, _, session_id = event.subject.partition("/")
        key = SessionKey(tenant, session_id)
        if event.kind == DELETED:
            self.forget(key)
        if event.kind == AWAKE:
            self._awake(key, event.node)
        elif event.node != self.own:
            for callback in told or ():
                callback(key)

    def _awake(self, key: SessionKey, incarnation: str) -> None:
        if self._known.get(key) != incarnation:
            self.forget(key)
        for callback in self.on_awake:
            callback(key, incarnation)
