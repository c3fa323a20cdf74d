"""Rows of sessions with the state of this moment: a crashed node leaves `running` behind in the directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aerodrome.errors import StoreUnavailable
from aerodrome.model import SessionRow, SessionState
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.registry import LiveSessions


async def as_they_stand(
    context: SessionContext, sessions: LiveSessions, rows: Sequence[SessionRow]
) -> list[SessionRow]:
    """The rows, in their order. Those that are said to be loaded elsewhere cost one question for all of them."""
    here = {row.key: found for row in rows if (found := _as_it_is_here(sessions, row)) is not None}
    asked = [row.key for row in rows if row.key not in here and row.state is not SessionState.HIBERNATED]
    try:
        held = set(await context.leases.holders(asked)) if asked else set()
    except StoreUnavailable:
        held = set(asked)  # what was last said of them; a list does not wait for what it only polishes
    gone = set(asked) - held
    return [replace(row, state=SessionState.HIBERNATED) if row.key in gone else here.get(row.key, row) for row in rows]


async def as_it_stands(context: SessionContext, sessions: LiveSessions, row: SessionRow) -> SessionRow:
    (standing,) = await as_they_stand(context, sessions, [row])
    return standing


def _as_it_is_here(sessions: LiveSessions, row: SessionRow) -> SessionRow | None:
    """``None``: the session is not loaded here."""
    live = sessions.find(row.key)
    if live is None or live.activation is None:
        return None
    return replace(
        row,
        state=live.listed_state,
        last_turn=live.row.last_turn or row.last_turn,
        last_used_at=max(row.last_used_at, live.row.last_used_at),
        title=live.row.title or row.title,
    )
