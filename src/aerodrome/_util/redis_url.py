"""Where a Redis or Valkey is, as an operator writes it in one line.

=================================================  ==========================================================
``redis://[USER:PASSWORD@]HOST[:PORT][/DB]``        one server
``rediss://...``                                    the same over TLS
``unix://[USER:PASSWORD@]/PATH/TO/SOCKET[?db=N]``   one server on this machine
``redis+sentinel://HOST[:PORT],HOST.../MASTER``     the primary that the Sentinels name (port 26379)
``redis+cluster://HOST[:PORT],HOST...``             a cluster, found through any of its nodes
=================================================  ==========================================================

``rediss+sentinel`` and ``rediss+cluster`` use TLS. After ``?``: ``ca_file``, ``cert_file``, ``key_file`` (paths),
``sentinel_username``, ``sentinel_password``, ``db``. Characters with a meaning are written as ``%`` and two digits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

_SCHEMES: dict[str, tuple[Literal["single", "sentinel", "cluster"], bool]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("single", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
REDIS_SCHEMES = tuple(_SCHEMES)
_FILES = {"ca_file", "cert_file", "key_file"}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    kind: Literal["single", "sentinel", "cluster"]
    #: Host and port each; empty for a socket.
    hosts: tuple[tuple[str, int], ...]
    socket: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    #: What the Sentinels call the primary.
    master: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Raises ValueError, without quoting what may be secret."""
        scheme, separator, _ = url.partition("://")
        if not separator or scheme not in _SCHEMES:
            raise ValueError(f"expected one of {', '.join(f'{name}://' for name in _SCHEMES)}")
        kind, tls = _SCHEMES[scheme]
        parts = urlsplit(url)
        if parts.fragment:
            raise ValueError("a # has to be written as %23")
        query = _query(parts.query, kind, tls)
        credentials, at, places = parts.netloc.rpartition("@")
        username, colon, password = credentials.partition(":")
        if at and not colon:
            raise ValueError("expected USER:PASSWORD before the @ (or :PASSWORD)")
        path = unquote(parts.path)
        common: dict[str, Any] = {
            "username": unquote(username) or None,
            "password": unquote(password) or None,
            **{name: value for name, value in query.items() if name != "db"},
        }
        if scheme == "unix":
            if places or not path.startswith("/") or path == "/":
                raise ValueError("expected the absolute path of a socket: unix:///run/redis.sock")
            return cls(kind, (), socket=path, db=_db(query.get("db", "0")), **common)
        name = path.strip("/")
        master = None
        db = query.get("db", "0")
        if kind == "sentinel":
            if not name:
                raise ValueError("expected the name of the primary after the hosts: redis+sentinel://HOST/mymaster")
            master = name
        elif kind == "cluster":
            if name or db != "0":
                raise ValueError("a cluster has no databases: leave out what comes after the hosts")
        elif name:
            db = name
        hosts = tuple(_host(place, 26379 if kind == "sentinel" else 6379) for place in places.split(","))
        if kind == "single" and len(hosts) > 1:
            raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
        return cls(kind, hosts, db=_db(db), master=master, tls=tls, **common)


def _query(text: str, kind: str, tls: bool) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=False, strict_parsing=True) if text else []
    except ValueError:
        raise ValueError("expected NAME=VALUE&... after the ?") from None
    allowed = {"db"}
    if tls:
        allowed |= _FILES
    if kind == "sentinel":
        allowed |= {"sentinel_username", "sentinel_password"}
    for name, _ in pairs:
        if name not in allowed and "@" in text:
            # The name is likely to be a piece of it.
            raise ValueError("a ? in user or password has to be written as %3F")
        if name not in allowed:
            hint = "; it needs rediss" if name in _FILES else ""
            raise ValueError(f'there is no option "{name}" here{hint}; expected {", ".join(sorted(allowed))}')
    return dict(pairs)


def _host(place: str, default: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise ValueError("expected HOST or HOST:PORT, with commas between several")
    return host, port or default


def _db(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("expected the number of a database after the host, such as /0")
    return int(text)
