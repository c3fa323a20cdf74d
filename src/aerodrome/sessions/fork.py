"""A copy of a session under another id.

The runtime's own `sessions.fork` works on its local disk and cannot see files that are kept elsewhere (measured), so it
is done here, on the stored files: all of them, the history up to the event that was named.
"""

from __future__ import annotations

from functools import partial

import msgspec

from aerodrome.errors import Conflict, Invalid
from aerodrome.fairness.gate import FairGate
from aerodrome.fairness.line import Ceilings
from aerodrome.model import SessionKey, SessionRow
from aerodrome.sessions.context import SessionContext
from aerodrome.sessions.parsing import parse
from aerodrome.sessions.wake import read_history, take_lease
from aerodrome.statestore.history import cut_unanswered
from aerodrome.statestore.provider import EVENTS_PATH, STATE_PATH
from aerodrome.statestore.walk import walk


def fork_places(timeout: float = 30.0) -> FairGate:
    """For copies that are made at the same time: each holds a whole history in memory, and a core while it reads it."""
    return FairGate(Ceilings(total=2, per_user=1), timeout=timeout, what="the copy could not be begun")


async def copy_files(context: SessionContext, source: SessionKey, target: SessionRow, to_event_id: str | None) -> None:
    """Copy what is stored of a session into one that has a row and nothing else.

    Args:
        to_event_id: The history ends before this event; ``None``: it is whole, but for a prompt without an answer.

    Raises:
        Invalid: There is no such event.
        Conflict: On a volume, what is to be copied is no file of the session.
        TooLarge: One of its files is.
        StoreUnavailable: Not all was copied.
    """
    work = partial(forked_history, source_id=source.id, target_id=target.key.id, to_event_id=to_event_id)
    history = await parse(work, await read_history(context, source))
    lease, _ = await take_lease(context, target)
    try:
        async for path, error in walk(context.files, source, STATE_PATH):
            if error is not None:
                raise Conflict(f"{path} of the session cannot be read: {error}") from error
            if path != EVENTS_PATH:
                await _copy(context, source, target.key, lease.epoch, path)
        if history:
            await context.files.write(target.key, lease.epoch, EVENTS_PATH, history)
    finally:
        context.release_lease(lease)


def forked_history(text: str, source_id: str, target_id: str, to_event_id: str | None) -> str:
    """The events of a copy. Those that name their session name the copy. Raises `Invalid` for an unknown event."""
    lines: list[str] = []
    found = False
    for line in cut_unanswered(text).split("\n"):
        if not line.strip():
            continue
        try:
            event = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError):
            continue  # a torn line; the runtime would pass it over, too
        if to_event_id is not None and event.get("id") == to_event_id:
            found = True
            break
        data = event.get("data")
        if isinstance(data, dict) and data.get("sessionId") == source_id:
            data["sessionId"] = target_id
            line = msgspec.json.encode(event).decode()
        lines.append(line + "\n")
    if to_event_id is not None and not found:
        raise Invalid("there is no such event in the session's history")
    return "".join(lines)


async def _copy(context: SessionContext, source: SessionKey, target: SessionKey, epoch: int, path: str) -> None:
    try:
        content = await context.files.read(source, path)
    except FileNotFoundError:
        return  # removed since it was listed
    except OSError as error:
        raise Conflict(f"{path} of the session cannot be read: {error}") from error
    await context.files.write(target, epoch, path, content)
