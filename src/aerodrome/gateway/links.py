"""The connections of one client to runtimes and to other nodes: each opened once, however many wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from aerodrome._util.tasks import Forestalled, TaskOwner, shared
from aerodrome.errors import AerodromeError, RuntimeUnavailable
from aerodrome.gateway.upstream import Upstream
from aerodrome.peers.link import PeerGone


class ClientLinks:
    """Args:
    tasks: The client's.
    on_opened: Called with each new one.
    """

    def __init__(self, tasks: TaskOwner, on_opened: Callable[[], None]) -> None:
        self._tasks = tasks
        self._on_opened = on_opened
        self._links: dict[str, Upstream] = {}
        self._opening: dict[str, asyncio.Task[Upstream]] = {}

    def __iter__(self) -> Iterator[Upstream]:
        return iter(self._links.values())

    def __contains__(self, link_id: str) -> bool:
        return link_id in self._links

    def get(self, link_id: str) -> Upstream | None:
        return self._links.get(link_id)

    @property
    def opening(self) -> bool:
        """Whether somebody waits for one."""
        return bool(self._opening)

    async def to(self, link_id: str, open_it: Callable[[], Coroutine[Any, Any, Upstream]]) -> Upstream:
        """The link of this id, which is opened if there is none.

        Raises:
            RuntimeUnavailable: The client has gone, or what `open_it` says.
            PeerGone: The other end has gone.
        """
        if (link := self._links.get(link_id)) is not None:
            link.in_hand = True
            return link
        opening = self._opening.get(link_id)
        if opening is None:
            if self._tasks.closed:
                raise RuntimeUnavailable("the client has gone")
            opening = self._tasks.start(self._open(open_it()), "open link", expected=AerodromeError)
            self._opening[link_id] = opening
            opening.add_done_callback(lambda _: self._opening.pop(link_id, None))
        try:
            return await shared(opening)
        except Forestalled:
            raise PeerGone("the other end has gone, or the client", retry_after=1.0) from None

    async def _open(self, opening: Coroutine[Any, Any, Upstream]) -> Upstream:
        link = await opening
        if link.connection.closed:
            raise PeerGone("the connection went as it was opened", retry_after=1.0)
        link.in_hand = True
        self._links[link.id] = link
        self._on_opened()
        return link

    def closed(self, link: Upstream) -> None:
        """It has gone."""
        if self._links.get(link.id) is link:
            del self._links[link.id]

    def close_unused(self, in_use: Callable[[str], bool]) -> None:
        """Close those that nothing goes by any more; one that was just asked for is left until the next time."""
        for link in list(self._links.values()):
            in_hand, link.in_hand = link.in_hand, False
            if not in_use(link.id) and not in_hand and link.id not in self._opening:
                link.connection.close("nothing goes by it any more")

    def cut(self, link_id: str, reason: str) -> None:
        """One of them, were it only about to be opened."""
        if (opening := self._opening.get(link_id)) is not None:
            opening.cancel()
        if (link := self._links.get(link_id)) is not None:
            link.connection.abort(reason)

    def cut_all(self, reason: str) -> None:
        for link in list(self._links.values()):
            link.connection.abort(reason)
