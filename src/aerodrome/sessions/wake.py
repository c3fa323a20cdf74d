"""Waking a session: from rows and files to an activation in a runtime.

The order matters. A place is reserved first, because waiting for one may take long and holds nothing. Then the
lease gets a new epoch and the store is told of it, which fences off whoever ran the session before; only then are the
files read, because only now nobody else can change them. A prompt that was never answered is cut off the history, so
that it stands in it once after it has been sent again.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from aerodrome.coordination.ports import Lease
from aerodrome.errors import Fenced, SessionBusy
from aerodrome.events import SessionEvent
from aerodrome.model import SessionRow
from aerodrome.policy.session_params import session_params
from aerodrome.sessions.activation import Activation
from aerodrome.sessions.context import SessionContext, runtime_key
from aerodrome.statestore.history import cut_unanswered
from aerodrome.statestore.provider import EVENTS_PATH

log = structlog.get_logger(__name__)


async def take_lease(context: SessionContext, row: SessionRow) -> Lease:
    """The session's lease with a new epoch, announced to the state store.

    Raises:
        SessionBusy: Another node runs the session.
    """
    # A session that was deleted and made anew must not begin with epochs its earlier life has used.
    floor = max(await context.files.epoch(row.key), int(row.created_at * 1000))
    lease = await context.leases.acquire(row.key, context.incarnation(), floor=floor)
    if lease is None:
        raise SessionBusy("the session is active on another node", retry_after=1.0)
    try:
        await context.files.raise_epoch(row.key, lease.epoch)
    except Fenced:
        raise SessionBusy("the session has just been taken over by another node", retry_after=1.0) from None
    return lease


async def read_history(context: SessionContext, row: SessionRow) -> str:
    """The stored events of the session, as text; empty when there are none."""
    try:
        return await context.files.read(row.key, EVENTS_PATH)
    except FileNotFoundError:
        return ""


async def repair_history(context: SessionContext, row: SessionRow, epoch: int) -> str:
    """Cut an unanswered prompt off the history; returns what is left."""
    text = await read_history(context, row)
    kept = cut_unanswered(text)
    if kept != text:
        await context.files.write(row.key, epoch, EVENTS_PATH, kept)
        log.info("session.history_cut", session=str(row.key), bytes=len(text) - len(kept))
    return kept


async def wake(
    context: SessionContext,
    row: SessionRow,
    *,
    on_event: Callable[[SessionEvent], None],
    on_request_open: Callable[[str, str], None],
) -> Activation:
    """Make the session resident.

    Raises:
        Capacity, RuntimeUnavailable, Draining: No runtime can be had (see `RuntimePool.reserve`).
        SessionBusy: Another node runs the session.
        StoreUnavailable: Lease or files could not be read or written.
    """
    runtime = await context.pool.reserve(runtime_key(row))
    try:
        lease = await take_lease(context, row)
        resume = bool(await repair_history(context, row, lease.epoch))
        activation = Activation(lease, runtime, context.files, on_event=on_event, on_request_open=on_request_open)
        options = row.options
        params = session_params(
            row.key.id,
            model=row.model,
            system_message=options.get("system_message"),
            tools=context.options.tools.choose(row.isolation, options.get("tools")),
            working_directory=str(runtime.workspace),
            streaming=bool(options.get("streaming", True)),
            credentials=context.credentials(row.key.tenant),
        )
        await activation.open(params, resume=resume)
    except BaseException:
        context.pool.release(runtime)
        raise
    log.info("session.awake", session=str(row.key), runtime=runtime.id, epoch=lease.epoch, resumed=resume)
    return activation
