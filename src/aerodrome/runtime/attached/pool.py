"""The attached servers of this node: which there are, whose they are, and which of them gets a session.

`reserve` gives a session a place in a server of its key. A server that is nobody's yet is bound to the first key that
needs it, in the store that all nodes share, and to nobody else until it is detached: what one tenant has left in its
memory must not meet another (ADR 0026).

The list of servers is made anew whenever the settings change, somebody attaches or detaches one, or a name leads to
other addresses. One that is not in it any more is drained: it gets no sessions, idle ones leave it, and it is let go of
when none is left or `drain_timeout` is over.

Who finds no room waits in a line of its key, in which the users that share its servers take turns (`queueing`). Nobody
waits for anything in particular: whatever changes wakes all who wait, and each looks again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from aerodrome._util.tasks import TaskOwner
from aerodrome.errors import AerodromeError, Draining, RuntimeUnavailable, StoreUnavailable
from aerodrome.fairness.line import Ticket
from aerodrome.model import RuntimeKey
from aerodrome.placement.outliers import Standing
from aerodrome.runtime.attached.drains import Drains
from aerodrome.runtime.attached.entry import AttachEntry
from aerodrome.runtime.attached.listing import row_of, unused_row
from aerodrome.runtime.attached.places import AttachedPoolOptions, Places
from aerodrome.runtime.attached.ports import AttachStore, Fleet, Resolver
from aerodrome.runtime.attached.releases import Releases
from aerodrome.runtime.attached.roster import Roster
from aerodrome.runtime.attached.runtime import AttachedRuntime
from aerodrome.runtime.attached.server import AttachedServer
from aerodrome.runtime.attached.sights import Sights
from aerodrome.runtime.attached.standings import Standings
from aerodrome.runtime.ports import MakeRoom, MoveSessions, Runtime
from aerodrome.runtime.queueing import RuntimeQueue
from aerodrome.statestore.ports import SharedVolume

log = structlog.get_logger(__name__)

#: Seconds between two looks at whether all nodes have let go of what is detached.
_RELEASE = 1.0
#: Seconds between two looks for servers that do worse than the others.
_LOOK = 5.0


class AttachedPool:
    """Implements `runtime.ports.Runtimes`.

    Args:
        entries: From the settings; `reload` gives others.
        tokens: By name, for servers that are attached at run time.
        fleet: ``None``: there are no other nodes.
    """

    def __init__(
        self,
        options: AttachedPoolOptions,
        store: AttachStore,
        resolver: Resolver,
        volume: SharedVolume | None,
        entries: Sequence[AttachEntry] = (),
        tokens: Mapping[str, str] | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        self._options = options
        self._store = store
        self._roster = Roster(store, resolver, entries, tokens or {})
        #: Entries that lead to a server of another one.
        self._unused: dict[str, tuple[AttachEntry, ...]] = {}
        self._releases = Releases(store, fleet, lambda: {server.name for server in self._all})
        self._servers: dict[str, AttachedServer] = {}
        #: Removed ones that still hold sessions.
        self._leaving: list[AttachedServer] = []
        self._runs: dict[AttachedServer, asyncio.Task[None]] = {}
        self._queue = RuntimeQueue(lambda _: 1.0, options.max_waiting_per_tenant, options.max_waiting_per_user)
        self._standings = Standings(options.outliers, self._standing_changed)
        self._places = Places(options, self._standings)
        #: Held while it is changed or read whose servers are: a look that began before a change must not undo it.
        self._binding = asyncio.Lock()
        self._refreshing = asyncio.Lock()
        #: Set, and replaced by a new one, whenever something has changed that a waiter may wait for.
        self._changed = asyncio.Event()
        self._tasks = TaskOwner("attached")
        self.drains = Drains(
            store, fleet, self._tasks, server=lambda name: self._servers.get(name), move=self._move, change=self._change
        )
        self._sights = Sights(volume, self._tasks, self.notify)
        self._closing = False
        self.make_room: MakeRoom | None = None
        self.on_lost: Callable[[Runtime], None] | None = None
        self.move_sessions: MoveSessions | None = None

    # --- life ---

    async def start(self) -> None:
        """Find the servers and begin to connect to them. Does not wait for connections."""
        await self.refresh()
        self._tasks.start(self._refresh_for_ever(), "refresh")
        self._tasks.start(self._look_for_ever(), "outliers")

    async def aclose(self) -> None:
        """Let go of all servers. Sessions should have been hibernated before."""
        self._closing = True
        self.notify()
        await self._tasks.aclose()

    async def reload(self, entries: Sequence[AttachEntry], tokens: Mapping[str, str]) -> None:
        """The settings have changed."""
        self._roster.reload(entries, tokens)
        await self.refresh()

    @property
    def tokens(self) -> Collection[str]:
        """Names of the tokens that there are."""
        return self._roster.tokens

    @property
    def runtimes(self) -> list[AttachedRuntime]:
        return [server.runtime for server in self._all if server.runtime is not None]

    def describe(self) -> list[dict[str, Any]]:
        """The rows of `aerodrome runtimes ls`, also of servers that are not connected, and of entries not in use."""
        rows = [row_of(server, self._standings, self.drains) for server in self._all]
        for endpoint, entries in self._unused.items():
            if (server := self._servers.get(endpoint)) is not None:
                rows += [unused_row(endpoint, entry, server.entry) for entry in entries]
        return rows

    def has(self, key: RuntimeKey) -> bool:
        """Whether sessions of this key belong on attached servers: one is theirs, or is free and well."""
        return any(
            server.belongs_to(key)
            and (
                server.binding is not None
                or server.entry.tenant is not None
                or (server.runtime is not None and server not in self.drains)
            )
            for server in self._servers.values()
        )

    def _may_get_one(self, key: RuntimeKey) -> bool:
        """Whether there is anything to wait for: free servers may have turned out to be others'."""
        coming_back = self._leaving or self._releases or self._refreshing.locked()
        return bool(coming_back) or any(server.belongs_to(key) for server in self._servers.values())

    # --- places ---

    async def reserve(
        self, key: RuntimeKey, session_id: str | None = None, user: str | None = None, *, alone: bool = False
    ) -> AttachedRuntime:
        """See `runtime.ports.Runtimes`."""
        ticket = self._queue.join(key, user or "")
        served = False
        try:
            runtime = await self._find_room(key, session_id, user, ticket, alone=alone)
            runtime.reserved += 1
            runtime.alone = alone
            served = True
            return runtime
        finally:
            if self._queue.leave(key, ticket, served=served):
                self.notify()  # another one is the first now

    async def _find_room(
        self, key: RuntimeKey, session_id: str | None, user: str | None, ticket: Ticket, *, alone: bool
    ) -> AttachedRuntime:
        deadline = time.monotonic() + self._options.capacity_timeout
        #: The state of things in which we have asked for room.
        asked: asyncio.Event | None = None
        while True:
            if self._closing:
                raise Draining("this node is shutting down")
            # Taken before we look, so that a change between the look and the wait is not missed.
            changed = self._changed
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._bind_for(key)
            except TimeoutError:
                raise self._nothing(key, ticket) from None
            stuck = any(s.runtime is not None and session_id in s.runtime.letting_go for s in self._connected(key))
            if (stuck or alone) and self._queue.leave(key, ticket):
                self.notify()  # what it cannot take shall not be kept from others
            if self._queue.is_first(key, ticket):
                refused = self._standings.refused(key, session_id, time.monotonic())
                runtime = self._places.find(self._connected(key), session_id, user, refused, alone=alone)
                if runtime is None and refused and (asked is not None or self.make_room is None):
                    # No room was to be made elsewhere: better asked again than not at all.
                    runtime = self._places.find(self._connected(key), session_id, user, alone=alone)
                if runtime is not None:
                    return runtime
                if asked is not changed and self._connected(key) and self.make_room is not None:
                    asked = changed
                    await self.make_room(key)
                    continue
            if not self._may_get_one(key):
                raise self._nothing(key, ticket)
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await changed.wait()
            except TimeoutError:
                raise self._nothing(key, ticket) from None

    def release(self, runtime: Runtime) -> None:
        runtime.reserved -= 1
        runtime.alone = runtime.alone and runtime.reserved > 0
        runtime.last_held = time.monotonic()
        self.notify()

    def notify(self) -> None:
        """See `runtime.ports.Runtimes`."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _nothing(self, key: RuntimeKey, ticket: Ticket) -> AerodromeError:
        if connected := self._connected(key):
            return self._places.full(connected, self._queue.retry_after(key, ticket.user))
        reasons = [
            f"{s.name}: {'it is drained' if s in self.drains else s.reason or 'it is in use'}"
            for s in self._servers.values()
            if s.belongs_to(key)
        ]
        return RuntimeUnavailable(f"no attached server can be used: {'; '.join(reasons) or 'there is none'}")

    def _connected(self, key: RuntimeKey) -> list[AttachedServer]:
        """Those of the key that can be used."""
        return [
            server
            for server in self._servers.values()
            if server.binding == key
            and server.belongs_to(key)
            and server.runtime is not None
            and server not in self.drains
        ]

    # --- whose they are ---

    async def _bind_for(self, key: RuntimeKey) -> None:
        """Give the key what it needs: all servers of its tenant, and a free one while all that it has are full.

        Under isolation `user` the servers of a tenant are shared out to its users as they need them.
        """
        # Again for each, because others may have gone before us.
        while seen := self._seen(key):
            async with self._binding:
                if seen[0] in self._lacking(key):
                    await self._bind(seen[0], key)

    def _seen(self, key: RuntimeKey) -> list[AttachedServer]:
        """Of the free servers that the key should have, those that are known to see its directory."""
        try:
            return [server for server in self._lacking(key) if self._sights.sees(server, key.tenant)]
        except StoreUnavailable:
            if self._connected(key):
                return []  # it has others
            raise

    def _lacking(self, key: RuntimeKey) -> list[AttachedServer]:
        """Free servers that the key should have."""
        free = [
            server
            for server in self._servers.values()
            if server.binding is None
            and server.runtime is not None
            and server.belongs_to(key)
            and server not in self.drains
        ]
        own = [server for server in free if server.entry.tenant is not None]
        if own and key.user is None:
            return own
        return [] if self._places.any(self._connected(key)) else own or free

    async def _bind(self, server: AttachedServer, key: RuntimeKey) -> None:
        binding = await self._store.bind(server.name, server.entry.address, key)
        if binding.release is not None:
            self._remove(server)  # another node may still run turns of whom it has served
            return
        server.bind(binding.key)
        self._standings.keep(self._servers.values(), self.drains.drained)
        if binding.key == key:
            log.info("runtime.bound", server=server.name, key=str(key))
        self.notify()

    async def sees_volume(self, runtime: AttachedRuntime, tenant: str) -> bool:
        return await self._sights.look(runtime, tenant)

    # --- which there are ---

    async def refresh(self) -> None:
        """Look again at the store and at the names."""
        async with self._refreshing:
            try:
                await self._roster.look()
                await self.drains.look()
                await self._look_at_bindings()
                if await self._releases.end():
                    await self._look_at_bindings()
            except StoreUnavailable as error:
                log.warning("runtime.attached_unknown", reason=error.detail)  # what is known goes on

    async def _look_at_bindings(self) -> None:
        # Whom we bind while we look must not be missing in what we have seen.
        async with self._binding:
            bindings = await self._store.bindings()
            found = self._roster.plan(bindings)
            self._unused = found.unused
            self._apply(found.servers, self._releases.see(bindings))

    @property
    def released(self) -> dict[str, str]:
        """Servers that are being detached, and of which this node has let go: endpoint -> release."""
        return self._releases.here

    def _apply(self, wanted: Mapping[str, AttachEntry], bindings: Mapping[str, RuntimeKey]) -> None:
        for name, server in list(self._servers.items()):
            entry = wanted.get(name)
            freed = server.binding is not None and server.binding != bindings.get(name)
            if entry is None or freed or not entry.same_server(server.entry):
                self._remove(server)
            else:
                server.entry = entry
        leaving = {server.name for server in self._leaving}
        for name, entry in wanted.items():
            if name in leaving:
                continue  # it must have let go of its sessions before it may become somebody else's
            if name not in self._servers:
                self._add(name, entry, bindings.get(name))
            elif (key := bindings.get(name)) is not None and self._servers[name].binding is None:
                self._servers[name].bind(key)
        self._standings.keep(self._servers.values(), self.drains.drained)
        self.notify()

    def _add(self, name: str, entry: AttachEntry, binding: RuntimeKey | None) -> None:
        host = name.rpartition(":")[0].strip("[]")
        server = AttachedServer(name, (host, entry.port), entry, self._options.server, self)
        server.binding = binding
        self._servers[name] = server
        self._runs[server] = self._tasks.start(server.run(), f"server {name}")

    def _remove(self, server: AttachedServer) -> None:
        server.draining = True
        del self._servers[server.name]
        self._leaving.append(server)
        self._tasks.start(self._drain(server), f"drain {server.name}")

    async def _drain(self, server: AttachedServer) -> None:
        """Its sessions leave as they become idle; what has not left in time is taken from it."""
        log.info("runtime.draining", server=server.name, address=server.entry.address)
        try:
            async with asyncio.timeout(self._options.drain_timeout):
                while (runtime := server.runtime) is not None and runtime.reserved:
                    changed = self._changed
                    runtime.retire()
                    await self._move(runtime)
                    if runtime.reserved:
                        await changed.wait()
        except TimeoutError:
            log.warning("runtime.not_drained", server=server.name, sessions=runtime.reserved if runtime else 0)
        runtime = server.runtime
        if runtime is not None and runtime.reserved:
            runtime.kill("the server was removed, and its sessions did not leave in time")
            self.lost(server, runtime)
        run = self._runs.pop(server)
        run.cancel()
        await asyncio.wait({run})
        self._leaving.remove(server)
        log.info("runtime.drained", server=server.name)
        self.notify()
        await self.refresh()  # it may be in the list again

    async def _move(self, runtime: AttachedRuntime) -> bool:
        return self.move_sessions is not None and await self.move_sessions(runtime, False)

    async def _change(self, timeout: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()

    def find(self, runtime_id: str) -> AttachedServer | None:
        """By the id in the listing, or its endpoint."""
        for server in self._servers.values():
            if runtime_id == server.name or (server.runtime is not None and server.runtime.id == runtime_id):
                return server
        return None

    @property
    def _all(self) -> list[AttachedServer]:
        return [*self._servers.values(), *self._leaving]

    # --- ServerOwner ---

    def connected(self, server: AttachedServer) -> None:
        assert server.runtime is not None
        server.runtime.on_load = partial(self._loaded, server)
        self._standings.keep(self._servers.values(), self.drains.drained)
        self.notify()

    def lost(self, server: AttachedServer, runtime: AttachedRuntime) -> None:
        self._standings.keep(self._servers.values(), self.drains.drained)
        if self.on_lost is not None:
            self.on_lost(runtime)
        self.notify()

    def observed(self, server: AttachedServer, answered: bool, seconds: float) -> None:
        self._standings.answered(server, good=answered, seconds=seconds, now=time.monotonic())

    def _loaded(self, server: AttachedServer, session_id: str, taken: bool) -> None:
        self._standings.loaded(server, session_id, taken=taken, now=time.monotonic())

    def _standing_changed(self, server: AttachedServer) -> None:
        now = self._standings.standing(server)
        reason = self._standings.reason(server) if now is Standing.EJECTED else None
        log.warning("runtime.standing", server=server.name, standing=now.value, reason=reason)
        self.notify()

    # --- upkeep ---

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(min(self._options.refresh, _RELEASE) if self._releases else self._options.refresh)
            try:
                await self.refresh()
            except Exception:
                # What is known goes on; a list that is never read again would be found out late.
                log.exception("runtime.attached_unknown")

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            self._standings.look(time.monotonic())
