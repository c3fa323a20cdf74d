"""What nodes that have gone have left behind: turns that nobody works on any more, and what a deletion that was cut
short had not come to yet."""

from __future__ import annotations

import structlog

from aerodrome.coordination.heartbeat import name_in
from aerodrome.errors import Fenced, NotFound, TurnInterrupted
from aerodrome.model import LastTurn, SessionKey, SessionKind, SessionState, TurnRow, TurnStatus
from aerodrome.sessions import setbacks
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.erase import NO_SESSION, announce, epoch_floor, erase
from aerodrome.sessions.registry import LiveSessions
from aerodrome.sessions.run import error_of
from aerodrome.telemetry.meter import EndedTurn

log = structlog.get_logger(__name__)

_PAGE = 1000
#: What a node calls the incarnations it had before, in what it says of itself with a heartbeat.
EARLIER = "earlier"
#: Sessions of each store that are looked at in one sweep: a question to the directory for each.
_LOOKED_AT = 100


async def living_incarnations(context: SessionContext) -> set[str]:
    """Those of the living, and those they had before: a node that was held for dead goes on with the turns of its
    earlier life, and says so.

    Raises:
        StoreUnavailable: That cannot be found out.
    """
    living: set[str] = set()
    for node in await context.membership.nodes():
        living.add(node.incarnation)
        if node.incarnation != context.incarnation():
            living.update(node.load.get(EARLIER, ()))
    return living


async def recover(context: SessionContext, sessions: LiveSessions) -> int:
    """Report the turns of nodes that have gone as interrupted. Returns how many.

    Ephemeral sessions are deleted with the turn that was left behind. As long as it is not certain who has gone
    (`SessionContext.settled`), only the turns are reported that an earlier process of this node has left.

    Raises:
        StoreUnavailable: Not all have been looked at.
    """
    own = context.incarnation()
    settled = context.settled()
    living = await living_incarnations(context)
    if own not in living:
        return 0  # a list that we are not in is that of a store that has lost its memory, or we are dead
    recovered = skipped = 0
    while True:
        # Those that stay unfinished are the first of the next page too.
        limit = skipped + _PAGE
        page = await context.ledger.unfinished(limit=limit, except_of=living)
        # A node may have come since, and have accepted turns.
        come = await living_incarnations(context)
        for turn in page[skipped:]:
            # One that we accepted before we were held for dead is still worked on here.
            certain = turn.incarnation not in come and (settled or name_in(turn.incarnation) == name_in(own))
            if certain and not sessions.works_on(turn.key, turn.id) and await _interrupt(turn, context, sessions):
                recovered += 1
            else:
                skipped += 1
        if len(page) < limit:
            break
    if recovered:
        log.warning("sessions.recovered", interrupted_turns=recovered)
    return recovered


async def _interrupt(turn: TurnRow, context: SessionContext, sessions: LiveSessions) -> bool:
    """``False``: it stays unfinished."""
    row = await context.directory.get(turn.key)
    if row is not None and row.kind is SessionKind.EPHEMERAL:
        try:
            await sessions.delete(row)
        except Exception as error:
            setbacks.tell("session.not_deleted", row.key, error)
            return False
        return True
    finished = await context.ledger.finish(
        turn.key,
        turn.id,
        TurnStatus.INTERRUPTED,
        context.clock.time(),
        error=error_of(TurnInterrupted("the node that ran the turn has gone")),
        free_key=turn.status is TurnStatus.QUEUED,
    )
    if finished:
        ended = EndedTurn(turn.key.tenant, TurnStatus.INTERRUPTED.value, TurnInterrupted.code)
        context.telemetry.meter.turn_ended(ended)
    if row is None:
        await context.ledger.forget(turn.key, [turn.id])  # the rest of a deletion that was cut short
    elif finished:
        last = None if await _is_later(row.last_turn, turn, context) else LastTurn(turn.id, TurnStatus.INTERRUPTED)
        here = sessions.find(turn.key) is not None
        await context.directory.update(turn.key, state=None if here else SessionState.HIBERNATED, last_turn=last)
    return True


async def _is_later(last: LastTurn | None, turn: TurnRow, context: SessionContext) -> bool:
    """Whether the session has gone on behind a turn that was left behind."""
    if last is None or last.id == turn.id:
        return False
    later = await context.ledger.get(turn.key, last.id)
    return later is not None and later.created_at > turn.created_at


class Orphans:
    """Files and turns of sessions that the directory does not know.

    The row of a session goes last (`erase`), so that a deletion that was cut short can be repeated. What is left of one
    without a row was written behind its deletion: by a node that had read the row, was paused, and did not know; or it
    is a turn that was accepted in the same moment. A row comes before everything else, so none is about to come.
    """

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self._files_after: SessionKey | None = None
        self._turns_after: SessionKey | None = None

    async def sweep(self) -> int:
        """Look at the next page of each store, and at the first one again after the last. Returns how many sessions
        were cleared away. What of one cannot be is left for the next time.

        Raises:
            StoreUnavailable: Which there are cannot be found out.
        """
        files = await self._context.files.sessions(self._files_after, _LOOKED_AT)
        turns = await self._context.ledger.sessions(self._turns_after, _LOOKED_AT)
        cleared = 0
        for key in sorted({*files, *turns}):
            try:
                cleared += await self._clear(key)
            except Exception as error:
                setbacks.tell("session.remains_not_cleared", key, error)
        self._files_after = files[-1] if len(files) == _LOOKED_AT else None
        self._turns_after = turns[-1] if len(turns) == _LOOKED_AT else None
        return cleared

    async def _clear(self, key: SessionKey) -> bool:
        context = self._context
        if await context.directory.get(key) is not None:
            return False
        floor = epoch_floor(await context.files.epoch(key), NO_SESSION, context.clock.time())
        lease = await context.leases.acquire(key, context.incarnation(), floor=floor)
        if lease is None:
            return False  # somebody is at it, or about to find out
        try:
            await announce(context, lease)
            # It may have been opened anew since we looked.
            if not await erase(context, lease, NO_SESSION):
                return False
        except (Fenced, NotFound):
            return False
        finally:
            context.release_lease(lease)
        log.warning("session.remains_cleared", session=str(key))
        return True
