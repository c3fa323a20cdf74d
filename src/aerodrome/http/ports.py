"""What the HTTP front door needs from others, beside `aerodrome.sessions.api.Sessions`."""

from __future__ import annotations

from typing import Protocol

from aerodrome.model import Principal


class Authenticator(Protocol):
    async def authenticate(self, key: str) -> Principal:
        """The principal of a bearer credential.

        Raises:
            Unauthenticated: Nobody issued it, or it was revoked.
            StoreUnavailable: It could not be looked up.
        """
        ...


class Readiness(Protocol):
    def ready(self) -> tuple[bool, str]:
        """Whether this node accepts work, and in one sentence why (not).

        Raises:
            Draining: It is about to stop.
        """
        ...
