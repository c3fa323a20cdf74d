"""Whoever reads the events of a session: how many there are, and whether their keys are still good.

A stream has no end of its own. One user's could be without number, and a key that is revoked would be good for as long
as its reader stays.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from aerodrome.errors import AerodromeError, Capacity, RateLimited, Unauthenticated
from aerodrome.http.limits import HttpLimits
from aerodrome.http.ports import Authenticator
from aerodrome.model import Principal


class Place:
    """One reader's."""

    def __init__(self, readers: Readers, credential: str, who: Principal) -> None:
        self.credential = credential
        self.who = who
        self._readers = readers
        self._end: Callable[[Unauthenticated], None] = lambda _: None
        self._revoked: Unauthenticated | None = None

    def on_end(self, end: Callable[[Unauthenticated], None]) -> None:
        """Have it called when the credential is good no more, at once if that was while the reader was let in."""
        self._end = end
        if self._revoked is not None:
            end(self._revoked)

    def end(self, revoked: Unauthenticated) -> None:
        self._revoked = revoked
        self._end(revoked)

    def leave(self) -> None:
        """The reader has gone. May be called again."""
        self._readers.forget(self)


class Readers:
    """Args:
    limits: Of these `max_readers`, `max_readers_per_user` and `recheck`.
    """

    def __init__(self, auth: Authenticator, limits: HttpLimits) -> None:
        self._auth = auth
        self._limits = limits
        self._places: set[Place] = set()
        self._of_user: Counter[tuple[str, str]] = Counter()

    @property
    def count(self) -> int:
        return len(self._places)

    def join(self, credential: str, who: Principal) -> Place:
        """Raises `Capacity`: there are too many already."""
        most, most_of_one = self._limits.max_readers, self._limits.max_readers_per_user
        if self._of_user[who.tenant, who.user] >= most_of_one:
            raise RateLimited(f"this user reads {most_of_one} streams of events already", retry_after=1.0)
        if len(self._places) >= most:
            raise Capacity(f"{most} streams of events are read from this node already", retry_after=1.0)
        place = Place(self, credential, who)
        self._places.add(place)
        self._of_user[who.tenant, who.user] += 1
        return place

    def forget(self, place: Place) -> None:
        if place not in self._places:
            return
        self._places.discard(place)
        user = place.who.tenant, place.who.user
        self._of_user[user] -= 1
        if not self._of_user[user]:
            del self._of_user[user]

    async def recheck(self, key_id: str | None = None) -> None:
        """End those whose key has been revoked: of all keys, or of the one with this id."""
        by_credential: dict[str, list[Place]] = {}
        for place in self._places:
            if key_id in (None, place.who.key_id):
                by_credential.setdefault(place.credential, []).append(place)
        for credential, places in by_credential.items():
            try:
                await self._auth.authenticate(credential)
            except Unauthenticated as error:
                for place in places:
                    place.end(error)
            except AerodromeError:
                break  # the store is away, which is no reader's fault

    async def recheck_for_ever(self) -> None:
        """What a lost hint would have told."""
        while True:
            await asyncio.sleep(self._limits.recheck)
            await self.recheck()
