"""Sessions that make runtimes end: found out, kept away from others, in the end loaded no more (`sessions.blame`)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from aerodrome.errors import AerodromeError
from aerodrome.model import SessionKey, SessionRow
from aerodrome.runtime.deaths import Death
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions.blame import OPTION, Charges, Record, charged, in_question, refusal

if TYPE_CHECKING:
    from aerodrome.sessions.context import SessionContext

log = structlog.get_logger(__name__)

#: Seconds until a process that was killed has ended, unless the machine keeps it. Its sessions go on then.
BURIAL = 15.0


class Suspicions:
    """What a node knows beside what is stored with the sessions."""

    def __init__(self) -> None:
        #: Each with the turns that it has to end to be cleared.
        self._suspected: dict[SessionKey, int] = {}
        self._record = Record()
        #: Charges that the store has not taken yet.
        self._unstored: dict[SessionKey, Charges] = {}
        #: Charges made here: who is about to load the session may have its row from before them.
        self._made: dict[SessionKey, Charges] = {}
        #: It is being found out what a runtime has died of that held the session.
        self._settling: dict[SessionKey, asyncio.Task[None]] = {}

    # --- a runtime is lost ---

    def runtime_lost(self, context: SessionContext, runtime: Runtime, in_turn: Mapping[SessionKey, int]) -> None:
        """Args:
        in_turn: Sessions in a turn, with the length of the history that each was loaded with.
        """
        # What was given up here, because a turn took too long say, may still be at work there.
        given_up = {SessionKey(runtime.key.tenant, name) for name in runtime.letting_go} if runtime.key else set()
        loading = frozenset(runtime.loading)
        in_turn = {**dict.fromkeys(given_up, 0), **in_turn}
        if not loading and not in_turn:
            return
        settling = self._settle(context, runtime, loading, in_turn, given_up)
        task = context.later(settling, "find out why a runtime ended")
        if task is not None:
            for key in loading | set(in_turn):
                self._settling[key] = task

    async def _settle(
        self,
        context: SessionContext,
        runtime: Runtime,
        loading: frozenset[SessionKey],
        in_turn: Mapping[SessionKey, int],
        given_up: Collection[SessionKey],
    ) -> None:
        try:
            try:
                async with asyncio.timeout(BURIAL):
                    death = await asyncio.shield(runtime.death)
            except TimeoutError:
                log.warning("runtime.not_buried", runtime=runtime.id, pid=runtime.pid)
                return
            keys = in_question(death, loading, in_turn)
            if len(keys) == 1 and keys[0] not in given_up:  # it may have been idle, and on its way out
                await self._charge(context, keys[0], death)
            elif keys:
                log.warning(
                    "sessions.suspected", runtime=runtime.id, death=death.value, sessions=[str(key) for key in keys]
                )
                self._suspected.update(self._record.add(keys, context.clock.time()))
        finally:
            task = asyncio.current_task()
            for key in loading | set(in_turn):
                if self._settling.get(key) is task:
                    del self._settling[key]

    async def _charge(self, context: SessionContext, key: SessionKey, death: Death) -> None:
        try:
            row = await context.directory.get(key)
            before = Charges.of(row.options) if row is not None else None
        except AerodromeError:
            row, before = None, self._made.get(key)
        else:
            if row is None:
                return
        charges = charged(self._unstored.get(key) or before, death, context.clock.time())
        self._unstored[key] = self._made[key] = charges
        said = log.error if charges.quarantined else log.warning
        said("session.quarantined" if charges.quarantined else "session.charged", session=str(key), death=death.value)
        if charges.quarantined:
            context.telemetry.meter.session_quarantined()
        if row is not None:
            await self._store(context, row)

    async def _store(self, context: SessionContext, row: SessionRow) -> None:
        charges = self._unstored.get(row.key)
        if charges is None:
            return
        try:
            await context.directory.update(row.key, options={**row.options, OPTION: charges.stored()})
        except AerodromeError as error:
            log.warning("session.charge_not_stored", session=str(row.key), reason=error.detail)
        else:
            self._unstored.pop(row.key, None)

    async def tidy(self, context: SessionContext) -> None:
        """Store what the store has refused, and forget what is over."""
        now = context.clock.time()
        self._record.forget(now)
        self._suspected = {key: turns for key, turns in self._suspected.items() if self._record.times(key, now)}
        for key in list(self._unstored):
            row = await context.directory.get(key)
            if row is None:
                del self._unstored[key]
            else:
                await self._store(context, row)

    # --- a session is to be loaded ---

    async def settled(self, key: SessionKey) -> None:
        """Wait until it is known what the session has to do with a runtime that was lost a moment ago."""
        if (task := self._settling.get(key)) is not None:
            await asyncio.wait({task})

    def alone(self, row: SessionRow, now: float) -> bool:
        """Whether the session has to be loaded in a runtime of its own."""
        charges = self._made.get(row.key) or self._charges(row)
        return row.key in self._suspected or (charges is not None and charges.counts(now))

    def check(self, row: SessionRow) -> None:
        """
        Args:
            row: As it is in the directory now.

        Raises:
            Quarantined: The session is not to be loaded.
        """
        charges = self._charges(row)
        if charges is None:
            self._made.pop(row.key, None)  # an operator has released it
        elif charges.quarantined:
            raise refusal(charges, row.key)

    async def check_again(self, context: SessionContext, key: SessionKey) -> None:
        """After a runtime was lost that held the session. Raises as `check`."""
        await self.settled(key)
        row = await context.directory.get(key)
        if row is not None:
            self.check(row)

    def turn_ended(self, key: SessionKey, runtime: Runtime) -> None:
        """The session has ended a turn, and its runtime lives: it was not this one."""
        if key not in self._suspected:
            return
        self._suspected[key] -= 1
        if self._suspected[key] <= 0:
            del self._suspected[key]
            log.info("session.cleared", session=str(key))
            runtime.alone = False

    def _charges(self, row: SessionRow) -> Charges | None:
        return self._unstored.get(row.key) or Charges.of(row.options)


def released(row: SessionRow) -> SessionRow:
    """The row without its charges."""
    return replace(row, options={name: value for name, value in row.options.items() if name != OPTION})
