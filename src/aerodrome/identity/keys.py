"""API keys: issue, list, revoke, and tell who is calling.

A key is ``aero_<id>_<secret>``: the id (12 base62 characters) finds its row and may be shown and logged, the
secret (43 base62 characters, 256 bits) may not. The store has the SHA-256 of the whole key. A slow password hash
(bcrypt, argon2) would protect nothing: it makes guessing expensive where people choose the secret, while 256
random bits cannot be guessed however fast the hash; and it would cost a tenth of a second of CPU a request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import structlog

from aerodrome._util.clock import Clock, SystemClock
from aerodrome.errors import Invalid, StoreUnavailable, Unauthenticated
from aerodrome.identity.ports import KeyInfo, KeyStore, StoredKey
from aerodrome.model import Principal, valid_name

log = structlog.get_logger(__name__)

#: Kind of the hint to other processes that a key, whose id is its subject, was revoked.
REVOKED = "key.revoked"

_ALPHABET = string.digits + string.ascii_letters
_ID_LENGTH = 12
_SECRET_LENGTH = 43
_KEY = re.compile(rf"aero_([0-9A-Za-z]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH}}}")
_LABEL = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,200}")


def id_of(text: str) -> str:
    """The id in a whole key; anything else as it is, which may be an id."""
    match = _KEY.fullmatch(text)
    return text if match is None else match[1]


class _Known(NamedTuple):
    digest: bytes
    principal: Principal
    expires_at: float


class KeyService:
    """Authentication reads the store at most once per key and `cache_ttl`.

    A key that this object revokes stops working at once; one that another process revokes, as soon as that is heard of
    (`announce` there, `forget` here), and within `cache_ttl` seconds if it is not. Keys that nobody issued are not
    remembered, so that a new key works everywhere from its first use.

    Args:
        cache_ttl: Seconds for which a key once checked is trusted without asking the store.
        cache_size: Keys remembered at most; the oldest goes first.
        announce: Tells other processes of the id of a revoked key. That it may fail costs them `cache_ttl`.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        clock: Clock | None = None,
        cache_ttl: float = 5.0,
        cache_size: int = 10_000,
        announce: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._store = store
        self._clock = clock or SystemClock()
        self._cache_ttl = cache_ttl
        self._cache_size = cache_size
        self._announce = announce
        #: By key id, in the order of `expires_at`.
        self._known: dict[str, _Known] = {}
        self._revocations = 0

    async def create(
        self, tenant: str, user: str, roles: Iterable[str] = (), label: str | None = None
    ) -> tuple[KeyInfo, str]:
        """Issue a key. Returns what may be shown later, and the key itself, which cannot be had again.

        Raises:
            Invalid: Tenant, user or a role is no valid name, or the label has over 200 characters or a control
                character.
        """
        roles = frozenset(roles)
        for what, name in (("tenant", tenant), ("user", user), *(("role", role) for role in sorted(roles))):
            if not valid_name(name):
                raise Invalid(
                    f"{name[:120]!r} is no valid {what} name: 1 to 100 letters, digits and . _ @ -,"
                    " the first a letter or digit"
                )
        if label is not None and not _LABEL.fullmatch(label):
            raise Invalid("a label has 1 to 200 characters and no control characters")
        while True:
            key_id = _random(_ID_LENGTH)
            key = f"aero_{key_id}_{_random(_SECRET_LENGTH)}"
            info = KeyInfo(key_id, tenant, user, roles, label, self._clock.time())
            if await self._store.insert(StoredKey(info, _digest(key))):
                return info, key

    async def list(self, tenant: str | None = None) -> list[KeyInfo]:
        """The keys of a tenant, or of all, the oldest first."""
        return await self._store.list(tenant)

    async def revoke(self, key_id: str) -> bool:
        """``False``: there is no such key."""
        removed = await self._store.remove(key_id)
        self.forget(key_id)
        if removed and self._announce is not None:
            try:
                await self._announce(key_id)
            except StoreUnavailable as error:
                log.warning("key.revocation_not_announced", key=key_id, reason=error.detail)
        return removed

    def forget(self, key_id: str) -> None:
        """The key may have been revoked: it is looked up when it is used again."""
        self._revocations += 1
        self._known.pop(key_id, None)

    async def authenticate(self, key: str) -> Principal:
        """Whose key this is. Raises `Unauthenticated` for anything else, however malformed."""
        # Malformed keys end here, after at most as many characters as a key has: no hash, no read.
        if (match := _KEY.fullmatch(key)) is None:
            raise _refused()
        key_id, digest = match[1], _digest(key)
        now = self._clock.monotonic()
        known = self._known.get(key_id)
        if known is None or known.expires_at <= now:
            known = await self._look_up(key_id, now)
        if known is None or not hmac.compare_digest(known.digest, digest):
            raise _refused()
        return known.principal

    async def _look_up(self, key_id: str, now: float) -> _Known | None:
        while True:
            revocations = self._revocations
            stored = await self._store.get(key_id)
            if revocations == self._revocations:
                break
            # Something was revoked while we read: what we hold may be what the store had before. Connections and
            # streams that begin with it now would be missed by whoever looks for those of a revoked key.
        if stored is None:
            self._known.pop(key_id, None)
            return None
        info = stored.info
        principal = Principal(info.tenant, info.user, info.roles, key_id)
        # From the moment the question was asked: the answer may have been long under way.
        known = _Known(stored.digest, principal, now + self._cache_ttl)
        self._known.pop(key_id, None)
        self._known[key_id] = known
        self._forget_surplus(now)
        return known

    def _forget_surplus(self, now: float) -> None:
        while self._known:
            oldest = next(iter(self._known))
            if len(self._known) <= self._cache_size and self._known[oldest].expires_at > now:
                return
            del self._known[oldest]


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("ascii")).digest()


def _refused() -> Unauthenticated:
    return Unauthenticated("the API key is not valid; ask your administrator for one")
