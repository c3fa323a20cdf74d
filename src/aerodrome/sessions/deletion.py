"""One node's deletion of one session: under its lease, and of the very session that was meant (see `erase`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aerodrome.errors import Fenced, NotFound
from aerodrome.model import SessionRow
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.erase import erase
from aerodrome.sessions.wake import claim, taken_over


async def delete(
    context: SessionContext, row: SessionRow, *, unused_since: float | None, end: Callable[[], Awaitable[None]]
) -> bool:
    """Everything that is stored of the session goes.

    Args:
        unused_since: Only if it has not been used since that time.
        end: Ends what this node does with the session; called once that is certain to be deleted, or is already.

    Returns:
        ``False``: It has been used.

    Raises:
        SessionElsewhere: Another node runs it.
        StoreUnavailable: It is not, or only in part, deleted.
    """
    try:
        lease = await context.state_patience(lambda: claim(context, row))
    except NotFound:
        await end()  # what an earlier deletion had left has been done
        context.deleted(row)
        return True
    try:
        if unused_since is not None:
            # Asked only now: whoever had it until now may have used it, and cannot any more.
            present = await context.directory.get(row.key)
            if present is None or present.last_used_at >= unused_since:
                return False
        await end()
        await erase(context, lease, row.created_at)
    except Fenced:
        raise taken_over() from None
    finally:
        # After a deletion there is nothing to release; after one that failed, others may try.
        context.release_lease(lease)
    context.deleted(row)
    return True
