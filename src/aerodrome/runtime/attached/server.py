"""One attached server, for as long as it is attached: connected to, lost, and connected to again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from aerodrome.errors import AerodromeError, RuntimeUnavailable
from aerodrome.model import RuntimeKey
from aerodrome.runtime.attached.entry import AttachEntry
from aerodrome.runtime.attached.runtime import AttachedOptions, AttachedRuntime

log = structlog.get_logger(__name__)

#: Seconds before the next try to connect, doubled each time.
RETRY, MOST_RETRY = 0.25, 10.0
#: Seconds after a loss before it is connected to again: by then a server that lives has unloaded what our connections
#: had loaded (docs/facts.md, "Sessions and connections"), and nothing attaches to what is left of an earlier turn.
SETTLES = 1.5


class ServerOwner(Protocol):
    def connected(self, server: AttachedServer) -> None: ...

    def lost(self, server: AttachedServer, runtime: AttachedRuntime) -> None: ...

    def observed(self, server: AttachedServer, answered: bool, seconds: float) -> None: ...

    async def sees_volume(self, runtime: AttachedRuntime, tenant: str) -> bool: ...


class AttachedServer:
    """Run `run` as a task, until it is not needed any more.

    Args:
        endpoint: IP address and port.
    """

    def __init__(
        self,
        name: str,
        endpoint: tuple[str, int],
        entry: AttachEntry,
        options: AttachedOptions,
        owner: ServerOwner,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        #: The endpoint as text; what it is bound and listed by.
        self.name = name
        self.entry = entry
        #: Whom it serves, once somebody has needed it.
        self.binding: RuntimeKey | None = None
        #: Removed from the list: it gets no sessions any more.
        self.draining = False
        #: Present while it is connected and well.
        self.runtime: AttachedRuntime | None = None
        #: Tenants whose directory on the volume it does not have for its own.
        self.unseen: set[str] = set()
        #: Why it cannot be used, while that is so.
        self.reason = "it has not been connected to yet"
        self._endpoint = endpoint
        self._options = options
        self._owner = owner
        self._sleep = sleep

    def belongs_to(self, key: RuntimeKey) -> bool:
        """Whether it serves this key, or would."""
        if self.binding is not None:
            return self.binding == key and not self.misattached
        return self.entry.may_serve(key) and key.tenant not in self.unseen

    @property
    def misattached(self) -> bool:
        """Whether it is attached for others than it has been given to: neither is served, until it is detached."""
        return self.binding is not None and not self.entry.may_serve(self.binding)

    def bind(self, key: RuntimeKey) -> None:
        self.binding = key
        if self.runtime is not None:
            self.runtime.claim(key)

    async def run(self) -> None:
        delay = RETRY
        while True:
            runtime = AttachedRuntime(self._endpoint, self.entry, self._options, self._observed)
            used = False
            try:
                await self._connect(runtime)
                used = True
                await self._use(runtime)
            except AerodromeError as error:  # or the volume is away
                self._note(error.detail)
            except Exception as error:
                # A bug, or what nobody thought of: it would be the last that anybody hears of this server.
                self._note(f"internal error: {type(error).__name__}", error)
            finally:
                self.runtime = None
                await runtime.aclose()
            if used:
                delay = RETRY
                await self._sleep(SETTLES)
            else:
                await self._sleep(delay)
                delay = min(MOST_RETRY, delay * 2)

    async def _connect(self, runtime: AttachedRuntime) -> None:
        await runtime.open()
        tenant = self.binding.tenant if self.binding is not None else self.entry.tenant
        if tenant is not None and not await self._owner.sees_volume(runtime, tenant):
            raise RuntimeUnavailable(f"its session-state is not the directory of {tenant} on the volume")
        if runtime.lost.is_set():
            raise RuntimeUnavailable(runtime.lost_reason)

    async def _use(self, runtime: AttachedRuntime) -> None:
        if self.binding is not None:
            runtime.claim(self.binding)
        self.runtime, self.reason = runtime, ""
        self.unseen.clear()
        runtime.watch()
        log.info("runtime.attached", server=self.name, address=self.entry.address, runtime=runtime.id)
        self._owner.connected(self)
        await runtime.lost.wait()
        self.runtime = None
        self._note(runtime.lost_reason)
        self._owner.observed(self, False, 0.0)
        self._owner.lost(self, runtime)

    def _observed(self, answered: bool, seconds: float) -> None:
        self._owner.observed(self, answered, seconds)

    def _note(self, reason: str, error: Exception | None = None) -> None:
        if reason != self.reason:
            log.warning("runtime.detached", server=self.name, address=self.entry.address, reason=reason, exc_info=error)
        self.reason = reason
