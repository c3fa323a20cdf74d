"""Turns that nobody works on any more: their node has crashed, or could not record their end."""

from __future__ import annotations

import structlog

from aerodrome.errors import AerodromeError, TurnInterrupted
from aerodrome.model import LastTurn, SessionKind, SessionState, TurnRow, TurnStatus
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.registry import LiveSessions
from aerodrome.sessions.run import error_of

log = structlog.get_logger(__name__)

_PAGE = 1000


async def recover(context: SessionContext, sessions: LiveSessions) -> int:
    """Report the turns of nodes that have gone as interrupted. Returns how many.

    Ephemeral sessions are deleted with the turn that was left behind.

    Raises:
        StoreUnavailable: Not all have been looked at.
    """
    living = {context.incarnation(), *(node.incarnation for node in await context.membership.nodes())}
    recovered = skipped = 0
    while True:
        # Those that stay unfinished are the first of the next page too.
        limit = skipped + _PAGE
        page = await context.ledger.unfinished(limit=limit, except_of=living)
        for turn in page[skipped:]:
            # One that we accepted before we were held for dead is still worked on here.
            if not sessions.works_on(turn.key, turn.id) and await _interrupt(turn, context, sessions):
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
        except AerodromeError as error:
            log.warning("session.not_deleted", session=str(row.key), reason=error.detail)
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
    if row is None:
        await context.ledger.forget(turn.key)  # the rest of a deletion that was cut short
    elif finished:
        last = LastTurn(turn.id, TurnStatus.INTERRUPTED)
        here = sessions.find(turn.key) is not None
        await context.directory.update(turn.key, state=None if here else SessionState.HIBERNATED, last_turn=last)
    return True
