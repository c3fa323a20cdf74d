"""Credentials that exist in the memory of one process only, for callers inside it."""

from __future__ import annotations

import hashlib
import secrets
from typing import Protocol

from aerodrome.errors import Unauthenticated
from aerodrome.model import Principal


class Authenticator(Protocol):
    async def authenticate(self, key: str) -> Principal:
        """Raises `Unauthenticated` or `StoreUnavailable`."""
        ...


class EphemeralCredentials:
    """One credential for each principal, good as long as this object lives; none is ever written anywhere."""

    def __init__(self) -> None:
        self._credentials: dict[Principal, str] = {}
        # By digest: how long the search of a dictionary takes must tell nothing about a secret.
        self._principals: dict[bytes, Principal] = {}

    def issue(self, principal: Principal) -> str:
        """The principal's credential, the same one each time."""
        credential = self._credentials.get(principal)
        if credential is None:
            credential = self._credentials[principal] = secrets.token_urlsafe(32)
            self._principals[_digest(credential)] = principal
        return credential

    async def authenticate(self, key: str) -> Principal:
        """Whose credential this is. Raises `Unauthenticated`."""
        principal = self._principals.get(_digest(key))
        if principal is None:
            raise Unauthenticated("this credential was not issued by this process")
        return principal


class EitherOf:
    """Two authenticators as one: what the first does not know, the second is asked about."""

    def __init__(self, first: Authenticator, second: Authenticator) -> None:
        self._first = first
        self._second = second

    async def authenticate(self, key: str) -> Principal:
        """Raises what the second does."""
        try:
            return await self._first.authenticate(key)
        except Unauthenticated:
            return await self._second.authenticate(key)


def _digest(credential: str) -> bytes:
    return hashlib.sha256(credential.encode("utf-8", "surrogatepass")).digest()
