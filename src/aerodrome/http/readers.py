"""Whoever reads the events of a session, and whether the key is still good with which that began.

A stream has no end of its own, so that a key that is revoked would be good for as long as its reader stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aerodrome.errors import AerodromeError, Unauthenticated
from aerodrome.http.ports import Authenticator
from aerodrome.model import Principal

End = Callable[[Unauthenticated], None]


class Readers:
    """Args:
    every: Seconds between two looks at all of them.
    """

    def __init__(self, auth: Authenticator, *, every: float) -> None:
        self._auth = auth
        self._every = every
        self._readers: dict[object, tuple[str, Principal, End]] = {}

    def add(self, credential: str, who: Principal, end: End) -> Callable[[], None]:
        """Call `end` when the credential is good no more. Returns the function that forgets the reader."""
        reader = object()
        self._readers[reader] = (credential, who, end)
        return lambda: self._forget(reader)

    def _forget(self, reader: object) -> None:
        self._readers.pop(reader, None)

    async def recheck(self, key_id: str | None = None) -> None:
        """End those whose key has been revoked: of all keys, or of the one with this id."""
        by_credential: dict[str, list[End]] = {}
        for credential, who, end in self._readers.values():
            if key_id in (None, who.key_id):
                by_credential.setdefault(credential, []).append(end)
        for credential, ends in by_credential.items():
            try:
                await self._auth.authenticate(credential)
            except Unauthenticated as error:
                for end in ends:
                    end(error)
            except AerodromeError:
                break  # the store is away, which is no reader's fault

    async def recheck_for_ever(self) -> None:
        """What a lost hint would have told."""
        while True:
            await asyncio.sleep(self._every)
            await self.recheck()
