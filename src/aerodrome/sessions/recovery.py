"""Turns that nobody works on any more: their node has crashed, or could not record their end."""

from __future__ import annotations

import structlog

from aerodrome.errors import AerodromeError, TurnInterrupted
from aerodrome.model import LastTurn, SessionKind, SessionState, TurnRow, TurnStatus
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.registry import LiveSessions
from aerodrome.sessions.run import error_of

log = structlog.get_logger(__name__)

#: Seconds for which a turn of a session that no node has loaded is left alone while other nodes live: one of them may
#: have accepted it, and wait for a place to run it in.
GRACE = 600.0
_PAGE = 1000


async def recover(context: SessionContext, sessions: LiveSessions) -> int:
    """Report abandoned turns as interrupted. Returns how many.

    Ephemeral sessions are deleted with the turn that was left behind. What other living nodes work on is theirs.

    Raises:
        StoreUnavailable: Not all have been looked at.
    """
    alone = len(await context.membership.nodes()) <= 1
    recovered = skipped = 0
    while True:
        # Those that stay unfinished are the first of the next page too.
        limit = skipped + _PAGE
        page = await context.ledger.unfinished(limit=limit)
        for turn in page[skipped:]:
            if await _is_abandoned(turn, context, sessions, alone=alone) and await _interrupt(turn, context, sessions):
                recovered += 1
            else:
                skipped += 1
        if len(page) < limit:
            break
    if recovered:
        log.warning("sessions.recovered", interrupted_turns=recovered)
    return recovered


async def _is_abandoned(turn: TurnRow, context: SessionContext, sessions: LiveSessions, *, alone: bool) -> bool:
    live = sessions.find(turn.key)
    if (live is not None and live.find(turn.id) is not None) or sessions.ends.find(turn.key, turn.id) is not None:
        return False
    holder = await context.leases.holder(turn.key)
    if holder is not None and holder.incarnation != context.incarnation():
        return False
    return alone or turn.created_at < context.clock.time() - GRACE


async def _interrupt(turn: TurnRow, context: SessionContext, sessions: LiveSessions) -> bool:
    """``False``: it stays unfinished."""
    row = await context.directory.get(turn.key)
    if row is not None and row.kind is SessionKind.EPHEMERAL:
        try:
            await sessions.delete(row)
        except AerodromeError as error:
            log.warning("session.not_deleted", session=str(row.key), reason=error.detail)
            return False
        return True
    gone = error_of(TurnInterrupted("the node that ran the turn has gone"))
    finished = await context.ledger.finish(turn.key, turn.id, TurnStatus.INTERRUPTED, context.clock.time(), error=gone)
    if row is None:
        await context.ledger.forget(turn.key)  # the rest of a deletion that was cut short
    elif finished and sessions.find(turn.key) is None:
        last = LastTurn(turn.id, TurnStatus.INTERRUPTED)
        await context.directory.update(turn.key, state=SessionState.HIBERNATED, last_turn=last)
    return True
