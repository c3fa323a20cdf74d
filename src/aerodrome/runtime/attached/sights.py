"""Whether servers see a tenant's directory on the volume for their own.

A server that is nobody's is asked before it is given to a tenant. It may take as long to answer as any request, and not
answer at all; nobody else is to wait for that. So it is asked in a task of its own, and whoever needs to know looks
again when there is news.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.errors import RuntimeUnavailable, StoreUnavailable
from aerodrome.runtime.attached.runtime import AttachedRuntime
from aerodrome.runtime.attached.server import AttachedServer
from aerodrome.statestore.ports import SharedVolume

log = structlog.get_logger(__name__)

_BLIND = "its session-state is not the tenant's directory on the volume"
#: Seconds for which an answer counts.
_FRESH = 5.0


@dataclass(slots=True)
class _Sight:
    #: ``None``: it is being asked.
    seen: bool | StoreUnavailable | None = None
    until: float = 0.0


class Sights:
    """Args:
    on_news: Called when a server has answered.
    """

    def __init__(self, volume: SharedVolume | None, tasks: TaskOwner, on_news: Callable[[], None]) -> None:
        self._volume = volume
        self._tasks = tasks
        self._on_news = on_news
        #: By connection: a server that has been away is asked anew.
        self._sights: WeakKeyDictionary[AttachedRuntime, dict[str, _Sight]] = WeakKeyDictionary()

    async def look(self, runtime: AttachedRuntime, tenant: str) -> bool:
        """Ask the server now. Raises `RuntimeUnavailable`, and what the volume raises."""
        volume = self._volume
        if volume is None:
            return True
        return await runtime.sees(lambda has: volume.check_sight(tenant, has))

    def sees(self, server: AttachedServer, tenant: str) -> bool:
        """Whether a connected server is known to see the tenant's directory. If that is not known, it is being asked.

        Raises:
            StoreUnavailable: The volume was away when it was to be asked.
        """
        runtime = server.runtime
        if runtime is None or self._volume is None:
            return runtime is not None
        of_runtime = self._sights.setdefault(runtime, {})
        sight = of_runtime.get(tenant)
        if sight is None or (sight.seen is not None and time.monotonic() >= sight.until):
            sight = of_runtime[tenant] = _Sight()
            self._tasks.start(self._ask(server, runtime, tenant, sight), f"sight {server.name} {tenant}")
        if isinstance(sight.seen, StoreUnavailable):
            raise StoreUnavailable(sight.seen.detail, retry_after=sight.seen.retry_after)
        return sight.seen is True

    async def _ask(self, server: AttachedServer, runtime: AttachedRuntime, tenant: str, sight: _Sight) -> None:
        reason = ""
        seen: bool | StoreUnavailable = False
        try:
            seen = await self.look(runtime, tenant)
        except RuntimeUnavailable as error:
            reason = error.detail
        except StoreUnavailable as error:
            seen = error
        finally:
            sight.seen, sight.until = seen, time.monotonic() + _FRESH
            self._on_news()
        if seen is False and server.runtime is runtime:
            # Another tenant's, perhaps: whose directory it is can be seen on the server only. Asked anew when it has
            # been connected to anew.
            server.unseen.add(tenant)
            server.reason = reason or server.reason
            log.warning("runtime.not_bound", server=server.name, tenant=tenant, reason=reason or _BLIND)
