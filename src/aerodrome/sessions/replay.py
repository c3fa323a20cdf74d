"""What a reader of a session's events has missed. Pure functions over the hub's memory and the stored history.

Three places know events: the history has the stored ones, from the beginning; the hub keeps the latest, stored or
not; the reader's channel gets what is published from its subscription on. A reader that comes back gets each event
once, in order, without a gap, or `aerodrome.gap` as the first.

The runtime tells an event before it writes it (measured), so that what stands in the history behind the hub's
position was not told at all: the runtime was lost at that moment, or another node ran the session. It is published
when the session is next loaded (`unpublished`), and left out of a replay until then. A reader that comes from that
other node may have seen some of it: what is published again it must not get again (`seen_elsewhere`).
"""

from __future__ import annotations

from collections.abc import Sequence

from aerodrome.events import SessionEvent
from aerodrome.sessions.hub import size_of
from aerodrome.statestore.history import events_after, stored_events

_UNBOUNDED = 1 << 62
#: The cursor before the first event.
BEGINNING = "~"


def behind(kept: Sequence[SessionEvent], after: str) -> Sequence[SessionEvent] | None:
    """The kept events behind the cursor `after`; ``None`` when it is not among them (any more)."""
    for index, event in enumerate(kept):
        if after in (event.cursor, event.id):
            return kept[index + 1 :]
    return None


def missed(
    text: str,
    after: str,
    *,
    kept: Sequence[SessionEvent],
    late: Sequence[SessionEvent],
    position: str,
    max_bytes: int,
    anchors: Sequence[str] = (),
) -> list[SessionEvent] | None:
    """The events behind the cursor `after`, which the hub does not keep any more.

    Args:
        text: The history, read after `kept` was taken.
        kept: What the hub kept when the reader subscribed.
        late: What the reader's channel has got since.
        position: The hub's, after that.
        anchors: The hub's.

    Returns:
        ``None`` when there is a gap: the place is not in the history (any more), or it is so far back that the
        reader does better to read the history itself.
    """
    place = after.partition("~")[0]
    stored = stored_events(text) if after == BEGINNING else events_after(text, place)
    if stored is None:
        return None
    known = {event.id for event in kept} | {event.id for event in late}
    told = _told(stored, place, (position, *_latest_first(kept), *anchors))
    at_place = behind(kept, place)
    found = [*(event for event in told if event.id not in known), *(kept if at_place is None else at_place)]
    return found if sum(map(size_of, found)) <= max_bytes else None


def seen_elsewhere(
    text: str, after: str, *, kept: Sequence[SessionEvent], position: str, anchors: Sequence[str] = ()
) -> frozenset[str]:
    """The stored events up to the cursor `after` that the hub had not told when the reader subscribed: their ids. None
    when the reader is not ahead of the hub.

    Args:
        text, kept, anchors: As of `missed`.
        position: The hub's when the reader subscribed.
    """
    place = after.partition("~")[0]
    stored = events_after(text, place) if position and after != BEGINNING else None
    if stored is None or place == position or any(event.id == position for event in stored):
        return frozenset()  # nearly always
    ids = [event.id for event in stored_events(text)]
    told = {position, *_latest_first(kept), *anchors}
    up_to = ids.index(place)
    latest = max((index for index, event_id in enumerate(ids) if event_id in told), default=up_to)
    return frozenset(ids[latest + 1 : up_to + 1])


def behind_latest(
    text: str, known: Sequence[str], *, kept: Sequence[SessionEvent], position: str, anchors: Sequence[str] = ()
) -> Sequence[SessionEvent]:
    """The events behind the latest of those whose ids are known, of which some may not be in the history any more; none
    when all are too old.

    Args:
        known: The latest first.
        text, kept, position, anchors: As of `missed`.
    """
    for event_id in known:
        if (found := behind(kept, event_id)) is not None:
            return found
        if event_id in text:
            if seen_elsewhere(text, event_id, kept=kept, position=position, anchors=anchors):
                return ()  # what is behind it, nobody here has been told yet
            found = missed(text, event_id, kept=kept, late=(), position=position, max_bytes=_UNBOUNDED, anchors=anchors)
            if found is not None:
                return found
    return ()


def unpublished(
    text: str, position: str, kept: Sequence[SessionEvent], anchors: Sequence[str] = ()
) -> list[SessionEvent]:
    """The stored events behind the hub's position: nobody has been told of them.

    Args:
        kept, anchors: The hub's.

    The history may lack the latest of what was published: an unanswered prompt was cut off.
    """
    if not position or last_id(text) == position:
        return []  # nearly always
    stored = stored_events(text)
    places = {event.id: place for place, event in enumerate(stored)}
    for event_id in (position, *_latest_first(kept), *anchors):
        if event_id in places:
            return stored[places[event_id] + 1 :]
    return []


def _told(stored: list[SessionEvent], place: str, known: Sequence[str]) -> list[SessionEvent]:
    """Those of the stored events behind `place` that the hub has told.

    Args:
        known: Ids of events that it has told, the latest first, of which some may not be in the history: they were cut
            off, or are not stored yet. All that is stored before one was told, too.
    """
    places = {event.id: index for index, event in enumerate(stored)}
    for event_id in known:
        if event_id == place:
            return []
        if event_id in places:
            return stored[: places[event_id] + 1]
    return stored


def _latest_first(kept: Sequence[SessionEvent]) -> list[str]:
    return [event.id for event in reversed(kept)]


def last_id(text: str) -> str:
    """The id of the last stored event, "" when there is none; reads no more lines than needed."""
    end = len(text)
    while end > 0:
        start = text.rfind("\n", 0, end - 1) + 1
        if (events := stored_events(text[start:end])) and events[-1].id:
            return events[-1].id
        end = start
    return ""
