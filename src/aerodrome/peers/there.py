"""What is asked of the node that runs a session, and the subscriptions of this node to its events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aerodrome.model import Principal
from aerodrome.peers import shapes
from aerodrome.peers.link import PeerLink, PeerStream
from aerodrome.sessions.api import EventStream
from aerodrome.sessions.hub import Channel


@dataclass(frozen=True, slots=True)
class At:
    """The node that runs the session: so the store says, or it is remembered (`Cluster.remembered`)."""

    link: PeerLink
    remembered: bool = False

    async def request(self, method: str, who: Principal, session_id: str, **more: Any) -> Any:
        """The value of the answer. Raises as `PeerLink.request`, and `SessionMoved`: it does not run it (any more)."""
        about = {"who": shapes.to_wire(who), "session": session_id, "remembered": self.remembered}
        return await self.link.request(method, {**about, **more})


@dataclass(slots=True)
class Here:
    """A subscription at this node (`peers.events.Source`)."""

    where: str
    events: EventStream
    broken: bool = False


class There:
    """A subscription at another node (`peers.events.Source`)."""

    def __init__(self, link: PeerLink, reader_bytes: int) -> None:
        self.where = link.node.incarnation
        self.broken = False
        self._link = link
        self._channel = Channel(reader_bytes, lambda _: self._stream.close())
        self._stream = PeerStream(link, on_told=self._on_told, on_ended=self._on_ended)

    @property
    def events(self) -> EventStream:
        return self._channel

    async def begin(
        self, at: At, who: Principal, session_id: str, *, after: str | None, turn: str | None = None
    ) -> bool:
        """Subscribe behind a cursor.

        Args:
            turn: Only to the events of this turn, and until its end.

        Returns:
            ``False``: the turn is not under way there (any more).
        """
        self._link.begin(self._stream)
        about = {"after": after, "stream": self._stream.id}
        begun = False
        try:
            if turn is None:
                await at.request(shapes.EVENTS, who, session_id, **about)
                begun = True
            else:
                begun = await at.request(shapes.EVENTS, who, session_id, turn=turn, **about) is True
        finally:
            if not begun:
                self._channel.close()
        return begun

    def abandon(self) -> None:
        """The caller of the turn has gone away."""
        self._stream.say(shapes.ABANDON)

    def _on_told(self, event: shapes.EventOnWire) -> None:
        self._channel.put(shapes.event_of(event))

    def _on_ended(self, ended: shapes.Ended | None) -> None:
        # An error (no member any more) is told by whoever is asked next.
        self.broken = ended is None or ended.error is not None
        if ended is not None and ended.lagging:
            self._channel.cut_off()
        self._channel.finish()
