"""A connection to Redis or Valkey: one server, the primary that Sentinels name, or a cluster.

What can be lost on the way is repeated: a server that restarts, or a replica that becomes the primary, is met by
trying again until `patience` seconds have passed since the call. A script whose answer was lost may have run, so that
all of them bear being run twice. One that is not answered at all is given up after `timeout` seconds.

Scripts are called by their digest; a server that does not know one (it was restarted, or another has taken over) is
given the text again.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from pathlib import Path
from time import monotonic, time
from typing import Any, NamedTuple, TypeVar

import structlog
from redis import exceptions as failures
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider

from aerodrome._util.redis_url import RedisUrl
from aerodrome._util.tasks import heeding
from aerodrome.errors import ConfigError, StoreUnavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")
_MOST_AT_ONCE = 64


class Script(NamedTuple):
    text: str
    digest: str


def load_script(name: str) -> Script:
    """The script `lua/<name>.lua`, with what all of them begin with."""
    folder = resources.files(__package__).joinpath("lua")
    text = "".join(folder.joinpath(f"{file}.lua").read_text(encoding="utf-8") for file in ("common", name))
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class _Trouble(NamedTuple):
    what: str
    #: It may pass within seconds: worth trying again at once.
    passing: bool = False


_NO_RIGHT = _Trouble("does not let this user do what is needed; see its ACL")

#: The first that fits counts.
_TROUBLE: tuple[tuple[type[Exception], _Trouble], ...] = (
    (failures.AuthenticationError, _Trouble("refuses the user or the password")),
    (failures.AuthorizationError, _Trouble("refuses the user or the password")),
    (failures.NoPermissionError, _NO_RIGHT),
    (failures.BusyLoadingError, _Trouble("is loading its data", passing=True)),
    (failures.ReadOnlyError, _Trouble("is a read-only replica", passing=True)),
    (failures.MasterDownError, _Trouble("is a replica without its primary", passing=True)),
    (failures.OutOfMemoryError, _Trouble("is out of memory; raise its maxmemory")),
    (failures.MaxConnectionsError, _Trouble("has no connection left", passing=True)),
    (failures.ClusterDownError, _Trouble("is a cluster that is down", passing=True)),
    (failures.SlotNotCoveredError, _Trouble("is a cluster that is incomplete", passing=True)),
    (failures.TryAgainError, _Trouble("is a cluster that is being changed", passing=True)),
    (failures.ClusterError, _Trouble("is a cluster that cannot be used", passing=True)),
    (failures.TimeoutError, _Trouble("does not answer")),
    (TimeoutError, _Trouble("does not answer")),
    (failures.ConnectionError, _Trouble("cannot be reached", passing=True)),
    (OSError, _Trouble("cannot be reached", passing=True)),
)


def trouble_of(error: Exception) -> _Trouble:
    if isinstance(error, failures.ConnectionError):
        if "max number of clients" in str(error):
            return _Trouble("has no connection left; raise its maxclients", passing=True)
        if "certificate" in str(error).lower():
            return _Trouble("has a certificate that is not trusted; see ca_file")
    if is_closed_connection(error):
        return _Trouble("cannot be reached", passing=True)
    for kind, trouble in _TROUBLE:
        if isinstance(error, kind):
            return trouble
    # Lua's own message begins with a word for its kind.
    word = str(error).partition(" ")[0]
    if word in ("ACL", "NOPERM"):
        return _NO_RIGHT
    if word == "OOM":
        return _Trouble("is out of memory; raise its maxmemory")
    if word == "READONLY":
        return _Trouble("is a read-only replica", passing=True)
    if word == "MISCONF":
        return _Trouble("cannot write its disk, and takes no writes for that")
    return _Trouble(f"refuses a command ({word or type(error).__name__})")


def is_closed_connection(error: Exception) -> bool:
    """uvloop has an error of its own for a write to a connection that has closed in this moment, and the driver passes
    it on as it is."""
    return isinstance(error, RuntimeError) and "handler is closed" in str(error)


class _LogIn(CredentialProvider):
    """User and password, asked for with each new connection."""

    def __init__(self, current: Callable[[], tuple[str | None, str | None]]) -> None:
        self._get = current

    async def get_credentials_async(self) -> Any:
        return self.get_credentials()

    def get_credentials(self) -> Any:
        """As many of the two as there are."""
        user, password = self._get()
        if password is None and user is None:
            return ()
        return (password or "",) if user is None else (user, password or "")


# Of one address: asked for twice, it may have changed in between.
def _log_in(url: RedisUrl) -> tuple[str | None, str | None]:
    return url.username, url.password


def _sentinel_log_in(url: RedisUrl) -> tuple[str | None, str | None]:
    return url.sentinel_username, url.sentinel_password


class RedisClient:
    """Args:
    current: What gives the address for a new connection, of which user and password count.
    timeout: Seconds after which an answer that has not come is given up.
    patience: Seconds a call goes on trying while the server cannot be reached.
    """

    def __init__(
        self,
        url: RedisUrl,
        *,
        current: Callable[[], RedisUrl] | None = None,
        timeout: float = 2.5,
        patience: float = 4.0,
    ) -> None:
        self.url = url
        self._current = current or (lambda: url)
        self._timeout = timeout
        self._patience = patience
        #: Of our own, for Sentinels and for the nodes of a cluster.
        self._options: dict[str, Any] = {
            "credential_provider": _LogIn(lambda: _log_in(self._current())),
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "socket_keepalive": True,
            "client_name": "aerodrome",
            # The oldest protocol is the one that all servers and proxies speak.
            "protocol": 2,
        }
        if url.tls:
            self._options |= {
                "ssl": True,
                "ssl_ca_certs": url.ca_file,
                "ssl_certfile": url.cert_file,
                "ssl_keyfile": url.key_file,
            }
        self._sentinel: Sentinel | None = None
        self._client: Redis | RedisCluster | None = None
        self._trouble: str | None = None
        #: Each call takes a connection: a burst of them must not use up what the server has for all nodes.
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)

    async def open(self) -> None:
        """Connect, and have an answer.

        Raises:
            StoreUnavailable: There is none.
            ConfigError: A file that the address names is not there.
        """
        for name in ("ca_file", "cert_file", "key_file"):
            path = getattr(self.url, name)
            if path is not None and not await asyncio.to_thread(Path(path).is_file):
                raise ConfigError(f"the Redis URL names a {name} that is not there: {path}")
        await self._call(lambda client: client.ping())

    async def aclose(self) -> None:
        """Safe to call twice; the next call connects again."""
        client, self._client = self._client, None
        sentinel, self._sentinel = self._sentinel, None
        if client is not None:
            await client.aclose()
        for one in sentinel.sentinels if sentinel is not None else ():
            await one.aclose()

    async def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[str | int], *, urgent: bool = False
    ) -> Any:
        """Run the script on the primary.

        Args:
            urgent: Do not wait for others, and try once.

        Raises:
            StoreUnavailable: The server is away, refuses us, is full, ...
        """

        async def run(client: Any) -> Any:
            try:
                return await client.evalsha(script.digest, len(keys), *keys, *arguments)
            except failures.NoScriptError:
                return await client.eval(script.text, len(keys), *keys, *arguments)

        return await (self._attempt(run, 0.0) if urgent else self._call(run))

    async def about(self) -> tuple[dict[str, str], float]:
        """What `INFO` says, and by how many seconds the server's clock is ahead. Raises `StoreUnavailable`."""

        async def ask(client: Any) -> tuple[dict[str, str], float]:
            where: dict[str, Any] = {}
            if self.url.kind == "cluster":
                await client.initialize()
                where = {"target_nodes": client.get_default_node()}
            try:
                info = await client.execute_command("INFO", **where)
            except failures.NoPermissionError:
                info = {"refused": "INFO"}
            asked_at = time()
            seconds, micro = await client.execute_command("TIME", **where)
            facts = {str(name): str(value) for name, value in dict(info).items()}
            return facts, int(seconds) + int(micro) / 1e6 - (asked_at + time()) / 2

        return await self._call(ask)

    async def publish(self, channel: str, message: str) -> None:
        """Raises `StoreUnavailable`."""
        if self.url.kind == "cluster":
            # Any node passes it on to all; the driver would ask the one of the channel's slot, which is as good.
            await self._call(lambda client: client.execute_command("PUBLISH", channel, message))
        else:
            await self._call(lambda client: client.publish(channel, message))

    async def listener(self) -> Redis:
        """A client for one connection that listens, to be closed by the caller. It repeats nothing by itself.

        Raises what the driver raises.
        """
        if self.url.kind == "cluster":
            # Each node of a cluster hears what is published at any.
            cluster = self._connected()
            assert isinstance(cluster, RedisCluster)
            await cluster.initialize()
            node = random.choice(cluster.get_nodes())  # noqa: S311
            return Redis(host=node.host, port=int(node.port), retry=Retry(NoBackoff(), 0), **self._options)
        made = self._make(retries=0)
        assert isinstance(made, Redis)
        return made

    def explain(self, error: Exception) -> StoreUnavailable:
        """The error as callers shall see it; each spell of trouble is one line of the log."""
        trouble = trouble_of(error)
        if trouble.what != self._trouble:
            self._trouble = trouble.what
            log.error("redis.unavailable", trouble=trouble.what, error=str(error), kind=type(error).__name__)
        return StoreUnavailable(f"the Redis server {trouble.what}", retry_after=1.0)

    async def _call(self, call: Callable[[Any], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(max(self._patience, self._timeout)):
                await self._room.acquire()
        except TimeoutError:
            raise StoreUnavailable("the Redis server is slower than it is asked", retry_after=1.0) from None
        try:
            return await self._attempt(call, self._patience)
        finally:
            self._room.release()

    async def _attempt(self, call: Callable[[Any], Awaitable[T]], patience: float) -> T:
        give_up = monotonic() + patience
        pause = 0.05
        while True:
            try:
                # The driver uses `asyncio.wait_for` to write.
                result = await heeding(self._once(call))
            except (failures.RedisError, OSError, RuntimeError) as error:  # TimeoutError is an OSError
                if isinstance(error, RuntimeError) and not is_closed_connection(error):
                    raise
                if not trouble_of(error).passing or monotonic() + pause > give_up:
                    raise self.explain(error) from error
            else:
                if self._trouble is not None:
                    self._trouble = None
                    log.info("redis.recovered")
                return result
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(0.5, pause * 2)

    async def _once(self, call: Callable[[Any], Awaitable[T]]) -> T:
        async with asyncio.timeout(self._timeout):
            return await call(self._connected())

    def _connected(self) -> Redis | RedisCluster:
        if self._client is None:
            # A connection of the pool that a restart has broken is made again; all else is for `_call`.
            self._client = self._make(retries=1)
        return self._client

    def _make(self, retries: int) -> Redis | RedisCluster:
        url = self.url
        retry = Retry(NoBackoff(), retries, supported_errors=(failures.ConnectionError,))
        options = {**self._options, "retry": retry}
        if url.kind == "cluster":
            from redis.asyncio.cluster import ClusterNode

            return RedisCluster(startup_nodes=[ClusterNode(*host) for host in url.hosts], **options)
        options["db"] = url.db
        if url.kind == "sentinel":
            if self._sentinel is None:
                own: dict[str, Any] = {
                    "credential_provider": _LogIn(lambda: _sentinel_log_in(self._current())),
                }
                # One that is down must not keep us from asking the next.
                own["retry"] = Retry(NoBackoff(), 0)
                self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
                    url.hosts, sentinel_kwargs={**self._options, **own}, **self._options
                )
            made: Redis = self._sentinel.master_for(str(url.master), **options)
            return made
        if url.socket is not None:
            return Redis(unix_socket_path=url.socket, **{k: v for k, v in options.items() if k != "socket_keepalive"})
        ((host, port),) = url.hosts
        return Redis(host=host, port=port, **options)
