"""What readers get that come back: each event once, in order, without a gap, or a gap that is told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.events import SessionEvent
from aerodrome.sessions.hub import EventHub
from aerodrome.sessions.replay import behind, behind_latest, last_id, missed, seen_elsewhere, unpublished

MUCH = 1 << 30


def event(number: int, *, ephemeral: bool = False, kind: str = "t") -> SessionEvent:
    envelope = {"type": kind, "id": f"e{number}", "data": {}, "timestamp": ""}
    return SessionEvent(f"e{number}", kind, json.dumps(envelope).encode(), ephemeral)


def history(events: list[SessionEvent]) -> str:
    return "".join(item.raw.decode() + "\n" for item in events if not item.ephemeral)


@given(data=st.data())
def test_a_reader_that_comes_back_gets_each_event_once_and_in_order(data: st.DataObject) -> None:
    """The session's events, told to a hub that forgets the older ones, stored some time after they are told; a reader
    that has seen up to any of them comes back, while more happens. Also after the hub has been made anew."""
    flags = data.draw(st.lists(st.booleans(), min_size=1, max_size=25))
    events = [event(number, ephemeral=flag) for number, flag in enumerate(flags)]
    hub = EventHub(reader_bytes=MUCH, kept_bytes=data.draw(st.integers(0, 3000)))
    gone = data.draw(st.integers(0, len(events)))
    cut = data.draw(st.integers(gone, len(events)))
    cursors: dict[str, str] = {}
    for item in events[:gone]:
        cursors[item.id] = hub.publish(item).cursor
    if data.draw(st.booleans()):
        # Hibernated with nobody reading, and woken: all that was told is stored.
        hub = EventHub(reader_bytes=MUCH, kept_bytes=data.draw(st.integers(0, 3000)))
        assert unpublished(history(events[:gone]), hub.position, hub.kept()) == []
        hub.position = last_id(history(events[:gone]))
    for item in events[gone:cut]:
        cursors[item.id] = hub.publish(item).cursor
    if not cursors:
        return
    seen = data.draw(st.sampled_from(sorted(cursors, key=lambda name: int(name[1:]))))
    channel, kept = hub.subscribe(), hub.kept()
    found = behind(kept, cursors[seen])
    if found is None:
        # What was told before is stored or not, what is told while we read may be too.
        late = data.draw(st.integers(cut, len(events)))
        for item in events[cut:late]:
            hub.publish(item)
        stored = data.draw(st.integers(cut, late))
        found = missed(
            history(events[:stored]),
            cursors[seen],
            kept=kept,
            late=channel.backlog,
            position=hub.position,
            max_bytes=MUCH,
        )
        cut = late
    for item in events[cut:]:
        hub.publish(item)
    place = int(seen[1:])
    if found is None:
        # Nothing was ever stored up to there, so that the place cannot be found again.
        assert all(item.ephemeral for item in events[: place + 1])
        return
    got = [*found, *channel.backlog]
    numbers = [int(item.id[1:]) for item in got]
    assert numbers == sorted(set(numbers))
    behind_place = [item for item in events[place + 1 :] if not item.ephemeral]
    assert [item.id for item in got if not item.ephemeral] == [item.id for item in behind_place]


@given(
    flags=st.lists(st.booleans(), min_size=1, max_size=25),
    kept_bytes=st.integers(0, 3000),
    data=st.data(),
)
def test_a_reader_that_comes_from_the_node_where_the_session_ran_gets_nothing_again(
    flags: list[bool], kept_bytes: int, data: st.DataObject
) -> None:
    """The hub has told some of the session's events; then another node ran it, and a reader from there comes, before
    the session is loaded here again or after."""
    events = [event(number, ephemeral=flag) for number, flag in enumerate(flags)]
    here, there = EventHub(reader_bytes=MUCH, kept_bytes=kept_bytes), EventHub(reader_bytes=MUCH)
    gone = data.draw(st.integers(0, len(events)))
    cursors = [there.publish(item).cursor for item in events]
    for item in events[:gone]:
        here.publish(item)
    text = history(events)
    if not last_id(text) or not here.position:
        return  # as a hub that was made for the reader
    place = data.draw(st.integers(gone, len(events)))
    if place == len(events) or behind(here.kept(), cursors[place]) is not None:
        return
    channel, kept, position = here.subscribe(), here.kept(), here.position

    def load() -> None:
        for item in unpublished(text, here.position, here.kept()):
            here.publish(item)

    before = data.draw(st.booleans())
    if before:
        load()
    seen = seen_elsewhere(text, cursors[place], kept=kept, position=position)
    if seen:
        channel.leave_out(seen)
    else:
        # It has seen no stored event that was not told here.
        assert not any(not item.ephemeral for item in events[gone : place + 1])
        return
    if not before:
        load()
    behind_place = [item.id for item in events[place + 1 :] if not item.ephemeral]
    assert [item.id for item in channel.backlog] == behind_place


def test_a_place_that_is_nowhere_is_a_gap() -> None:
    text = history([event(1), event(2)])
    assert missed(text, "e9", kept=[], late=[], position="e2", max_bytes=MUCH) is None
    assert missed(text, "~e9", kept=[], late=[], position="e2", max_bytes=MUCH) is None


def test_more_than_a_reader_may_be_behind_is_a_gap() -> None:
    text = history([event(number) for number in range(10)])
    found = missed(text, "e0", kept=[], late=[], position="e9", max_bytes=MUCH)
    assert found is not None
    assert len(found) == 9
    assert missed(text, "e0", kept=[], late=[], position="e9", max_bytes=1000) is None


def test_what_was_stored_and_never_told_is_told_at_the_next_wake_up() -> None:
    hub = EventHub(reader_bytes=MUCH)
    for number in range(3):
        hub.publish(event(number))
    text = history([event(number) for number in range(5)])
    # Until then a reader does not get it either, or it would get it twice.
    again = missed(text, "e0", kept=[], late=[], position=hub.position, max_bytes=MUCH)
    assert again is not None
    assert [item.id for item in again] == ["e1", "e2"]
    assert [item.id for item in unpublished(text, hub.position, hub.kept())] == ["e3", "e4"]


def test_what_was_cut_off_the_history_is_no_news_when_it_is_loaded_again() -> None:
    hub = EventHub(reader_bytes=MUCH)
    for number in range(5):
        hub.publish(event(number))
    assert unpublished(history([event(0), event(1)]), hub.position, hub.kept()) == []
    # Another node has run it in between.
    assert [item.id for item in unpublished(history([event(0), event(1), event(9)]), hub.position, hub.kept())] == [
        "e9"
    ]
    assert unpublished("", hub.position, hub.kept()) == []


@pytest.mark.parametrize("kept_bytes", [0, 600, MUCH])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_turn_that_was_cut_off_and_made_elsewhere_is_told_once(kept_bytes: int, place: int) -> None:
    """However much of it was told here: a streamed answer alone is more than is kept."""
    hub = EventHub(reader_bytes=MUCH, kept_bytes=kept_bytes)
    turns = [event(0), event(1, kind="user.message"), event(2), event(3, kind="user.message"), event(4)]
    for item in [*turns, event(5, ephemeral=True), event(6, ephemeral=True)]:
        hub.publish(item)
    text = history([*turns[:3], event(7, kind="user.message"), event(8)])
    hubs = {"kept": hub.kept(), "position": hub.position, "anchors": hub.anchors}
    assert not seen_elsewhere(text, f"e{place}", **hubs)  # type: ignore[arg-type]
    found = missed(text, f"e{place}", late=[], max_bytes=MUCH, **hubs)  # type: ignore[arg-type]
    assert found is not None
    told = [*found, *unpublished(text, hub.position, hub.kept(), hub.anchors)]
    ids = [item.id for item in told]
    assert ids == sorted(set(ids))
    assert [name for name in ids if name in text] == ["e1", "e2", "e7", "e8"][place:]
    # And one that has seen it elsewhere gets nothing again.
    assert seen_elsewhere(text, "e8", **hubs) == {"e7", "e8"}  # type: ignore[arg-type]


def test_the_last_id_is_found_behind_torn_lines() -> None:
    assert last_id("") == ""
    assert last_id(history([event(1), event(2)])) == "e2"
    assert last_id(history([event(1)]) + '{"type": "t", "id": "e2", "da') == "e1"
    assert last_id("\n\n\x00\n") == ""


@given(data=st.data())
def test_who_comes_from_elsewhere_is_told_what_is_behind_the_latest_that_it_has(data: st.DataObject) -> None:
    """Some of what it has was cut off the history, some came while the hub was another node's; what is told after we
    have looked it hears by itself, though it may be stored already."""
    flags = data.draw(st.lists(st.booleans(), min_size=1, max_size=25))
    events = [event(number, ephemeral=flag) for number, flag in enumerate(flags)]
    begun, told = sorted(data.draw(st.lists(st.integers(0, len(events)), min_size=2, max_size=2)))
    hub = EventHub(reader_bytes=MUCH, kept_bytes=data.draw(st.integers(0, 3000)))
    hub.position = last_id(history(events[:begun]))
    for item in events[begun:told]:
        hub.publish(item)
    kept, position = hub.kept(), hub.position
    has = data.draw(st.integers(0, told))
    stored = [item.id for item in events[:has] if not item.ephemeral]
    known = ["cut off", *reversed(stored)][: data.draw(st.integers(1, 5))]
    found = behind_latest(history(events), known, kept=kept, position=position)
    ids = [item.id for item in found]
    assert len(ids) == len(set(ids))
    assert ids == sorted(ids, key=lambda name: int(name[1:]))
    if len(known) > 1 and position:
        last = int(known[1][1:])
        there = {item.id for item in kept} | {item.id for item in events[:told] if not item.ephemeral}
        assert ids == [item.id for item in events[last + 1 : told] if item.id in there]
    elif len(known) == 1:
        assert ids == []
