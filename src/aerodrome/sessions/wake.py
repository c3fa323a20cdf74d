"""Waking a session: from rows and files to an activation in a runtime.

The order matters. A place is reserved first, because waiting for one may take long and holds nothing. Then the
lease gets a new epoch; then the store is told of it, which fences off whoever ran the session before, and whoever is
about to delete it. Only now the directory is asked whether the session is still there, because only now nobody older
can delete it any more; and the files are read, because only now nobody else can change them. A prompt that was never
answered is cut off the history, so that it stands in it once after it has been sent again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress

import structlog

from aerodrome.coordination.ports import Lease
from aerodrome.errors import Fenced, NotFound, SessionElsewhere, StoreUnavailable, TooLarge
from aerodrome.events import SessionEvent
from aerodrome.model import SessionKey, SessionRow
from aerodrome.policy.session_params import Credentials, session_params
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions.activation import Activation, ActivationRefused
from aerodrome.sessions.attachments import Attachments
from aerodrome.sessions.context import SessionContext, runtime_key
from aerodrome.sessions.erase import announce, epoch_floor
from aerodrome.sessions.hints import DELETED
from aerodrome.sessions.mend import Condition, mend, report, stored_history
from aerodrome.sessions.parsing import parse
from aerodrome.sessions.requests import OpenRequest
from aerodrome.statestore.history import cut_unanswered
from aerodrome.statestore.provider import EVENTS_PATH

log = structlog.get_logger(__name__)


async def take_lease(context: SessionContext, row: SessionRow) -> tuple[Lease, SessionRow]:
    """The session's lease with a new epoch, announced to the state store, and its row as it is now.

    Raises:
        SessionElsewhere: Another node runs the session.
        NotFound: It has been deleted.
        StoreUnavailable: A store is away, for longer than we wait.
    """
    # As a whole: an epoch can be announced once, and whether that was done is not known when the answer is lost.
    return await context.state_patience(lambda: _take_lease(context, row))


async def _take_lease(context: SessionContext, row: SessionRow) -> tuple[Lease, SessionRow]:
    lease = await claim(context, row)
    try:
        present = await context.directory.get(row.key)
        if present is None:
            # What we have just announced would be all that is left of it.
            await context.files.forget_session(row.key, lease.epoch)
            await context.leases.forget(lease)
        if present is None or present.created_at != row.created_at:
            raise NotFound("the session has been deleted")
    except BaseException:
        context.release_lease(lease)
        raise
    return lease, present


async def claim(context: SessionContext, row: SessionRow) -> Lease:
    """The session's lease with a new epoch, announced to the state store. Raises as `take_lease`."""
    lease = await acquire(context, row)
    try:
        await announce(context, lease)
    except Fenced:
        context.release_lease(lease)
        raise taken_over() from None
    except BaseException as error:
        context.release_lease(lease)
        if isinstance(error, NotFound):
            # Whoever began the deletion could not say so any more.
            context.announce(DELETED, row.key)
        raise
    return lease


def taken_over() -> SessionElsewhere:
    return SessionElsewhere("the session has just been taken over by another node", retry_after=1.0)


async def acquire(context: SessionContext, row: SessionRow) -> Lease:
    """The lease, once this node may have one. Raises `SessionElsewhere` and `StoreUnavailable` as `take_lease`."""
    key = row.key
    floor = epoch_floor(await context.files.epoch(key), row.created_at, context.clock.time())

    async def acquire_once() -> Lease:
        await context.serving()
        # Asked again, it has a new epoch; one that we have not learned of is void with that.
        lease = await context.leases.acquire(key, context.incarnation(), floor=floor)
        if lease is not None:
            return lease
        if await context.leases.holder(key) is not None:
            raise SessionElsewhere("the session is active on another node", retry_after=1.0)
        # Free, and not for us: the store holds this node for dead, or has lost its memory. The next beat mends that.
        raise StoreUnavailable("the coordination store does not know this node (any more)", retry_after=1.0)

    return await context.patience(acquire_once)


async def read_history(context: SessionContext, key: SessionKey) -> str:
    """The stored events of the session, as text; empty when there are none. Raises what `stored_history` does."""
    return await stored_history(context.files, key)


async def repair_history(context: SessionContext, key: SessionKey, epoch: int) -> str:
    """Cut an unanswered prompt off the history; returns what is left. Raises `TooLarge` when it may not be loaded."""
    text = await read_history(context, key)
    _check_length(context, len(text), "characters")
    kept = await parse(cut_unanswered, text)
    if kept != text:
        await context.files.write(key, epoch, EVENTS_PATH, kept)
        log.info("session.history_cut", session=str(key), characters=len(text) - len(kept))
    return kept


def _check_length(context: SessionContext, length: int, unit: str) -> None:
    if length > (most := context.options.max_history):
        raise TooLarge(
            f"the session's history has {length} {unit}, over the limit of {most} (sessions.max_history) up to "
            "which one is loaded; make a copy of an earlier part of it (`sessions.fork`), or open a new session"
        )


async def _put_in_order(context: SessionContext, key: SessionKey, epoch: int) -> Condition | None:
    volume = context.volume
    if volume is None:
        return None  # what only we write is whole
    with suppress(OSError):  # there is none; or something else, which mending finds
        # Before it is read: what a server has written is bounded by nothing.
        _check_length(context, (await context.files.stat(key, EVENTS_PATH)).size, "bytes")
    condition = await context.state_patience(lambda: mend(context.files, volume, key, epoch, context.clock))
    report(key, condition)
    return condition


async def wake(
    context: SessionContext,
    row: SessionRow,
    attachments: Attachments,
    *,
    on_history: Callable[[str], Awaitable[None]],
    on_condition: Callable[[Condition], None],
    on_event: Callable[[SessionEvent], None],
    on_request_expired: Callable[[OpenRequest], None],
) -> Activation:
    """Make the session resident.

    Args:
        on_history: Called with the history that the session is loaded with, before its first event.
        on_condition: Then called with how its files were found, where servers write them themselves.

    Raises:
        Capacity: Too many sessions are loaded, and all are in turns.
        Capacity, RuntimeUnavailable, Draining: No runtime can be had (see `Runtimes.reserve`).
        ActivationRefused: The runtime was lost while it loaded the session, or refused it.
        SessionElsewhere: Another node runs the session.
        NotFound: It has been deleted.
        Quarantined: It has made runtimes end.
        TooLarge: It has grown too large to be loaded.
        Conflict: On a volume, its files are those of others, or none.
        StoreUnavailable: Lease or files could not be read or written.
    """
    with ExitStack() as undo:
        await context.suspicions.settled(row.key)
        place = await context.residents.take(row)
        undo.callback(context.residents.release, place)
        alone = context.suspicions.alone(row, context.clock.time())
        runtime = await context.pool.reserve(runtime_key(row), row.key.id, row.owner, alone=alone)
        undo.callback(context.pool.release, runtime)
        lease, row = await take_lease(context, row)
        undo.callback(context.release_lease, lease)
        context.suspicions.check(row)
        condition = await _put_in_order(context, row.key, lease.epoch)
        history = await repair_history(context, row.key, lease.epoch)
        await on_history(history)
        if condition is not None:
            on_condition(condition)
        activation = Activation(
            lease,
            runtime,
            place,
            context.files,
            request_timeout=context.options.request_timeout,
            patience=context.state_patience,
            may_serve=context.may_serve,
            on_event=on_event,
            on_request_expired=on_request_expired,
        )
        activation.history_size = len(history)
        # Before clients that open it read theirs: a change in between is seen as one.
        activation.credentials = context.credentials(row.key.tenant)
        params = _params(context, row, runtime, activation.credentials)
        try:
            await activation.open(params, attachments, resume=bool(history))
        except ActivationRefused:
            if runtime.lost.is_set():
                await context.suspicions.check_again(context, row.key)
            raise
        if lease.incarnation != context.incarnation() or not context.may_serve():
            # Held for dead in the meantime, so that the lease is void, or about to be.
            activation.discard("its lease was lost")
            await attachments.close()
            await activation.unload()
            raise ActivationRefused("this node lost its leases while the session was loaded")
        undo.pop_all()
    log.info("session.awake", session=str(row.key), runtime=runtime.id, epoch=lease.epoch, resumed=bool(history))
    return activation


def _params(context: SessionContext, row: SessionRow, runtime: Runtime, credentials: Credentials) -> dict[str, object]:
    options = row.options
    params = session_params(
        row.key.id,
        model=row.model,
        system_message=options.get("system_message"),
        tools=context.options.tools.choose(row.isolation, options.get("tools")),
        working_directory=str(runtime.workspace),
        streaming=bool(options.get("streaming", True)),
        credentials=credentials,
    )
    # What a client had it opened with over the native gateway, as far as it makes sense without that client.
    params.update(options.get("native", {}))
    return params
