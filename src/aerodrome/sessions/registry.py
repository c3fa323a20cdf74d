"""The live sessions of this node, the event hubs of those that are live or read, and how both are let go of.

There is one `LiveSession` of a key at a time; a session that is being deleted takes no new one until it is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any

import structlog

from aerodrome.errors import AerodromeError, Draining, NotFound
from aerodrome.model import LastTurn, RuntimeKey, SessionKey, SessionRow
from aerodrome.policy.session_params import Credentials
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions import setbacks
from aerodrome.sessions.activation import Activation
from aerodrome.sessions.context import SessionContext, runtime_key
from aerodrome.sessions.deletion import delete
from aerodrome.sessions.ends import TurnEnds
from aerodrome.sessions.hints import DELETED
from aerodrome.sessions.hub import EventHub
from aerodrome.sessions.live import LiveSession

log = structlog.get_logger(__name__)

#: Sessions that are unloaded at the same time when the node stops.
_AT_ONCE = 8
#: Sessions that are moved at the same time from a runtime that is to go: each loading takes a core for a moment, and
#: turns of others go on.
_MOVED_AT_ONCE = 2
#: Seconds since its last use in which a session that has to leave its runtime is loaded again elsewhere at once: its
#: next prompt may come any moment. The others wait for theirs.
_IN_USE = 300.0


class LiveSessions:
    def __init__(self, context: SessionContext) -> None:
        self.ends = TurnEnds(context.ledger)
        self._context = context
        self._live: dict[SessionKey, LiveSession] = {}
        self._hubs: dict[SessionKey, EventHub] = {}
        self._deletions: dict[SessionKey, asyncio.Task[bool]] = {}
        #: Deletions that the store has refused and that somebody was promised.
        self._undeleted: dict[SessionKey, SessionRow] = {}
        #: `drain` has looked at what is live.
        self._draining = False
        context.pool.make_room = self.make_room
        context.pool.empty_runtime = self.empty_runtime
        context.pool.move_sessions = self.move_from
        context.residents.make_place = self.make_place
        context.pool.on_lost = self._runtime_lost

    @property
    def all(self) -> list[LiveSession]:
        return list(self._live.values())

    def find(self, key: SessionKey) -> LiveSession | None:
        return self._live.get(key)

    def row_here(self, key: SessionKey) -> SessionRow | None:
        """The row of a session that is loaded here, which need not be read for every access.

        While this node holds the lease, whoever changes or deletes the session does so through this node, and the live
        object knows it before the directory does. A lease that was lost without our knowing shows at the latest with
        the next heartbeat (`may_serve`); for so long a session that was deleted elsewhere may be seen here, and nothing
        of it can be stored any more. ``None``: ask the directory.
        """
        live = self._live.get(key)
        if live is None or key in self._deletions or not self._context.may_serve():
            return None
        return live.row if live.activation is not None and not live.activation.lost.done() else None

    @property
    def outdated(self) -> list[LiveSession]:
        """Those that were loaded with other credentials than their tenant has now."""
        present: dict[str, Credentials] = {}
        found = []
        for live in self._live.values():
            if (activation := live.loaded) is None:
                continue
            tenant = activation.key.tenant
            if tenant not in present:  # to read a secret looks at its file
                present[tenant] = self._context.credentials(tenant)
            if activation.credentials != present[tenant]:
                found.append(live)
        return found

    def works_on(self, key: SessionKey, turn_id: str) -> bool:
        """Whether a turn is in hand here, were it only that its end is not recorded yet."""
        live = self._live.get(key)
        return (live is not None and live.find(turn_id) is not None) or self.ends.find(key, turn_id) is not None

    def ensure(self, row: SessionRow) -> LiveSession:
        """The session's live object.

        Raises:
            NotFound: The session is being deleted.
            Draining: It has none, and the node's drain would not come by a new one.
        """
        if row.key in self._deletions:
            raise NotFound("the session has been deleted")
        live = self._live.get(row.key)
        if live is not None and live.row.created_at != row.created_at and live.forgettable:
            # Deleted elsewhere and opened anew, which nobody has told us of.
            del self._live[row.key]
            self.end_hub(row.key)
            live = None
        if live is None and self._draining:
            raise Draining("this node is shutting down; try again", retry_after=1.0)
        if live is None:
            live = LiveSession(self._context, row, self.hub(row.key), self.ends, self.delete_ephemeral)
            self._live[row.key] = live
        return live

    def find_hub(self, key: SessionKey) -> EventHub | None:
        return self._hubs.get(key)

    @property
    def shared(self) -> list[SessionKey]:
        """Sessions here that others than their owner take part in, or read."""
        live = (key for key, live in self._live.items() if live.row.members)
        read = (key for key, hub in self._hubs.items() if hub.readers)
        return list(dict.fromkeys([*live, *read]))

    def hub(self, key: SessionKey) -> EventHub:
        hub = self._hubs.get(key)
        if hub is None:
            hub = self._hubs[key] = EventHub(reader_bytes=self._context.options.reader_bytes)
        return hub

    # --- residency ---

    async def make_room(self, key: RuntimeKey) -> bool:
        """See `runtime.ports.MakeRoom`: least recently used first, never one in a turn (trap 10)."""
        idle = [live for live in self.all if live.evictable and runtime_key(live.row) == key]
        for live in sorted(idle, key=lambda live: live.last_used):
            if await self.hibernate(live):
                return True
        return False

    async def empty_runtime(self, tenant: str | None) -> bool:
        """See `runtime.ports.EmptyRuntime`."""
        by_runtime: dict[str, list[LiveSession]] = {}
        for live in self.all:
            # What somebody else runs takes no process of ours.
            if live.activation is None or live.activation.runtime.pid is None:
                continue
            if tenant in (None, live.row.key.tenant):
                by_runtime.setdefault(live.activation.runtime.id, []).append(live)
        quiet = [group for group in by_runtime.values() if all(live.evictable for live in group)]
        if not quiet:
            return False
        chosen = min(quiet, key=lambda group: max(live.last_used for live in group))
        return all([await self.hibernate(live) for live in chosen])

    async def move_from(self, runtime: Runtime, reload: bool) -> bool:
        """See `runtime.ports.MoveSessions`. Sessions in a turn move by themselves when it has ended."""
        idle = [live for live in self.all if live.evictable and live.runs_in(runtime)]
        at_once = asyncio.Semaphore(_MOVED_AT_ONCE)
        in_use = self._context.clock.monotonic() - _IN_USE

        async def move(live: LiveSession) -> bool:
            async with at_once:
                if not await live.hibernate():
                    return False
                # Asleep, it may have been forgotten, and nobody would find what is loaded for it now.
                if reload and live.last_used >= in_use and self._live.get(live.row.key) is live:
                    await live.wake_ahead()
                self.forget(live)
                return True

        # The next prompt is likeliest for those that had the last.
        idle.sort(key=lambda live: live.last_used, reverse=True)
        return any(await asyncio.gather(*(move(live) for live in idle)))

    async def make_place(self, tenant: str | None, owner: str | None) -> bool:
        """See `sessions.residents.MakePlace`."""
        idle = [
            live
            for live in self.all
            if live.evictable and tenant in (None, live.row.key.tenant) and owner in (None, live.row.owner)
        ]
        for live in sorted(idle, key=lambda live: live.last_used):
            if await self.hibernate(live):
                return True
        return False

    async def hibernate(self, live: LiveSession) -> bool:
        """Put a session to sleep and forget it. ``False``: it is not idle (any more)."""
        if not await live.hibernate():
            return False
        self.forget(live)
        return True

    async def tidy(self) -> None:
        """Let go of sessions that lost their runtime and of event hubs that nobody reads; do what the store refused."""
        for live in self.all:
            await live.updates.flush()
            self.forget(live)
        for key in list(self._hubs):
            self._forget_hub(key)
        await self._record_late_ends()
        await self._context.suspicions.tidy(self._context)
        for row in list(self._undeleted.values()):
            try:
                await self.delete(row)
            except Exception as error:
                setbacks.tell("session.not_deleted", row.key, error)

    def give_up_all(self, reason: str, within: float = 0.0) -> None:
        """Our leases are void, or will be in `within` seconds, and other nodes may run our sessions then.

        From now on nothing is written for them. Runtimes that are at work for one are killed, because a tool in it
        would go on; the others unload theirs, and are killed if that takes more than half of the time. Turns deal with
        the loss as with that of any runtime: under a new lease, if this node gets one.
        """
        given_up = [live.activation for live in self.all if live.activation is not None]
        working = {id(live.activation.runtime) for live in self.all if live.activation is not None and live.engaged}
        for activation in given_up:
            activation.discard(reason)
            if id(activation.runtime) in working:
                activation.runtime.kill(reason)
        for live in self.all:
            self._context.later(live.runtime_lost(reason), "give up")
        if within > 0:
            self._context.later(self._kill_late(given_up, reason, within / 2), "give up in time")

    async def _kill_late(self, given_up: list[Activation], reason: str, within: float) -> None:
        """End the runtimes that still hold what was given up."""
        await asyncio.sleep(within)
        held = [live.activation for live in self.all]
        for activation in given_up:
            if activation in held and not activation.runtime.lost.is_set():
                activation.runtime.kill(f"{reason}; and it did not unload its sessions within {within:g} s")

    def _runtime_lost(self, runtime: Runtime) -> None:
        here = [live for live in self.all if live.runs_in(runtime)]
        at_work = {live.row.key: live.history_size for live in here if live.at_work}
        self._context.suspicions.runtime_lost(self._context, runtime, at_work)
        for live in here:
            self._context.tasks.start(live.runtime_lost(runtime.lost_reason or "it was lost"), "runtime lost")

    def forget(self, live: LiveSession) -> None:
        """Let go of it, if nothing of it is here that is not stored."""
        if live.forgettable and self._live.get(live.row.key) is live:
            del self._live[live.row.key]
            self._forget_hub(live.row.key)

    def _forget_hub(self, key: SessionKey) -> None:
        hub = self._hubs.get(key)
        if hub is not None and key not in self._live and not hub.has_readers:
            del self._hubs[key]

    # --- deletion ---

    async def delete(self, row: SessionRow, *, unused_since: float | None = None) -> bool:
        """Everything of the session goes, from the runtime and from every store (see `deletion`).

        Whoever comes second waits for the first. Once begun it goes on, whatever becomes of the caller.

        Args:
            unused_since: Only if it has not been used since that time, looked at under its lease.

        Returns:
            ``False``: It has been used.

        Raises:
            SessionElsewhere: Another node runs it.
            StoreUnavailable: It is not, or only in part, deleted.
        """
        while True:
            deletion = self._deletions.get(row.key)
            if deletion is None:
                deletion = self._context.tasks.start(
                    self._delete(row, unused_since), f"delete {row.key}", expected=AerodromeError
                )
                self._deletions[row.key] = deletion
                deletion.add_done_callback(lambda _: self._deletions.pop(row.key))
            # The first may have been an expiry, which leaves what has been used since.
            if (deleted := await asyncio.shield(deletion)) or unused_since is not None:
                return deleted

    async def _delete(self, row: SessionRow, unused_since: float | None) -> bool:
        context, key = self._context, row.key

        async def end() -> None:
            if (live := self._live.get(key)) is not None:
                await self._end(live)

        if not await delete(context, row, unused_since=unused_since, end=end):
            return False
        self.ends.forget(key)
        self._undeleted.pop(key, None)
        self.end_hub(key)
        context.announce(DELETED, key)
        log.info("session.deleted", session=str(key))
        return True

    def end_hub(self, key: SessionKey) -> None:
        """The session is no more: whoever reads its events is told so."""
        if (hub := self._hubs.pop(key, None)) is not None:
            hub.finish()

    async def drop_deleted(self, live: LiveSession) -> None:
        """Its row is gone, which whoever waits for it here does not know yet."""
        present = await self._context.directory.get(live.row.key)
        gone = present is None or present.created_at != live.row.created_at
        if gone and live.loaded is None:
            await self._end(live)
            self.end_hub(live.row.key)

    async def _end(self, live: LiveSession) -> None:
        live.updates.close()
        await live.close(NotFound("the session has been deleted"))
        await live.updates.flush()
        self._live.pop(live.row.key, None)

    async def delete_ephemeral(self, row: SessionRow) -> None:
        """As `delete`; what the store refuses now is done by a later `tidy`, because nothing may remain."""
        self._undeleted[row.key] = row
        await self.delete(row)

    # --- books ---

    async def _record_late_ends(self) -> None:
        for row in await self.ends.retry():
            log.info("turn.end_recorded_late", session=str(row.key), turn=row.id, status=row.status.value)
            last = LastTurn(row.id, row.status)
            if (live := self._live.get(row.key)) is not None:
                live.updates.note(last_turn=last)
            else:
                await self._context.directory.update(row.key, last_turn=last)

    # --- the end of the node ---

    async def drain(self, timeout: float) -> None:
        """Let running turns end for up to `timeout` seconds, end the others, put everything to sleep.

        Each session leaves as soon as it is quiet, its lease with it, so that other nodes serve it while long turns of
        others go on here. Its readers are told to go on elsewhere (`Draining`).
        """
        self._draining = True
        deadline = asyncio.get_running_loop().time() + timeout
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def leave(live: LiveSession) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await live.turns.quiet()
            async with at_once:
                # Those that other nodes pass on came in until now.
                live.leave(Draining("this node is shutting down; go on at another", retry_after=1.0))
                if not await self.hibernate(live):
                    await live.close(Draining("this node stopped before the turn had ended"))
                    await live.updates.flush()
                self._live.pop(live.row.key, None)
                self._finish_hub(live.row.key)

        await self._each(leave(live) for live in self.all)
        while self._deletions:
            await asyncio.wait(self._deletions.values())
        for key in list(self._hubs):
            self._finish_hub(key)
        with suppress(AerodromeError):  # a restart will report them
            await self._record_late_ends()

    def _finish_hub(self, key: SessionKey) -> None:
        if (hub := self._hubs.get(key)) is not None:
            hub.finish(Draining("this node is shutting down; go on reading at another", retry_after=1.0))

    async def _each(self, work: Iterable[Coroutine[Any, Any, Any]]) -> None:
        """Do all at the same time."""
        tasks = [self._context.tasks.start(item, "drain", expected=AerodromeError) for item in work]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
