"""Channels and hubs: bounded, in order, no reader at another's expense."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.events import SessionEvent
from aerodrome.sessions.api import Lagging
from aerodrome.sessions.hub import Channel, EventHub, size_of
from aerodrome.sessions.replay import behind


def event(number: int, *, kind: str = "assistant.message", ephemeral: bool = False, size: int = 10) -> SessionEvent:
    return SessionEvent(f"e{number}", kind, b"x" * size, ephemeral)


async def taken(channel: Channel, count: int) -> list[str]:
    return [(await anext(channel)).id for _ in range(count)]


async def test_a_reader_gets_what_is_published_in_order_and_then_the_end() -> None:
    hub = EventHub(reader_bytes=10_000)
    reader = hub.subscribe()
    for number in range(3):
        hub.publish(event(number))
    hub.finish()
    assert [item.id async for item in reader] == ["e0", "e1", "e2"]


async def test_a_waiting_reader_is_woken_by_an_event_and_by_the_end() -> None:
    channel = Channel(10_000)
    waiting = asyncio.create_task(taken(channel, 1))
    await asyncio.sleep(0)
    channel.put(event(1))
    assert await waiting == ["e1"]
    ending = asyncio.create_task(taken(channel, 1))
    await asyncio.sleep(0)
    channel.finish()
    with pytest.raises(StopAsyncIteration):
        await ending


async def test_a_reader_that_falls_behind_is_cut_off_and_the_others_are_not() -> None:
    hub = EventHub(reader_bytes=3 * size_of(event(0)))
    slow, quick = hub.subscribe(), hub.subscribe()
    for number in range(10):
        hub.publish(event(number))
        assert await taken(quick, 1) == [f"e{number}"]
    with pytest.raises(Lagging):
        await anext(slow)
    assert slow.backlog == ()


async def test_lag_is_told_also_after_the_end() -> None:
    channel = Channel(1)
    channel.put(event(1))
    channel.finish()
    with pytest.raises(Lagging):
        await anext(channel)


async def test_what_was_read_is_no_lag() -> None:
    channel = Channel(3 * size_of(event(0)))
    for number in range(100):
        channel.put(event(number))
        await anext(channel)


async def test_what_was_there_before_comes_first_and_is_no_lag() -> None:
    channel = Channel(2 * size_of(event(0)))
    channel.put(event(10))
    channel.preload([event(number) for number in range(10)])
    channel.put(event(11))
    assert await taken(channel, 10) == [f"e{number}" for number in range(10)]
    # Reading those has made no room for more.
    channel.put(event(12))
    with pytest.raises(Lagging):
        await anext(channel)


async def test_what_was_there_before_is_told_also_when_nothing_more_will_come() -> None:
    channel = Channel(10_000)
    channel.put(event(2))
    channel.finish()
    channel.preload([event(1)])
    assert [found.id async for found in channel] == ["e1", "e2"]


async def test_a_closed_channel_takes_nothing_and_tells_once() -> None:
    told: list[Channel] = []
    channel = Channel(10_000, told.append)
    channel.put(event(1))
    channel.close()
    channel.close()
    channel.put(event(2))
    channel.preload([event(3)])
    assert told == [channel]
    with pytest.raises(StopAsyncIteration):
        await anext(channel)


def test_readers_that_have_gone_are_forgotten() -> None:
    hub = EventHub(reader_bytes=10_000)
    reader = hub.subscribe()
    assert hub.has_readers
    reader.close()
    assert not hub.has_readers


def test_cursors_stand_at_stored_events() -> None:
    hub = EventHub(reader_bytes=10_000)
    assert hub.publish(event(0, ephemeral=True)).cursor == "~e0"
    assert hub.publish(event(1)).cursor == "e1"
    assert hub.publish(event(2, ephemeral=True)).cursor == "e1~e2"
    # Marked as stored, and stored only when it has changed.
    assert hub.publish(event(3, kind="system.message")).cursor == "e1~e3"
    assert hub.position == "e1"


def test_the_trace_is_told_and_not_kept() -> None:
    hub = EventHub(reader_bytes=10_000)
    reader = hub.subscribe()
    hub.publish(event(1, kind="model.log", ephemeral=True))
    assert [item.id for item in reader.backlog] == ["e1"]
    assert hub.kept() == []


def test_a_reader_of_the_trace_comes_back_behind_what_it_has_seen() -> None:
    hub = EventHub(reader_bytes=10_000)
    hub.publish(event(1))
    hub.publish(event(2, kind="assistant.message_delta", ephemeral=True))
    last = hub.publish(event(3, kind="model.response", ephemeral=True))
    hub.publish(event(4, kind="assistant.message_delta", ephemeral=True))
    found = behind(hub.kept(), last.cursor)
    assert found is not None
    assert [item.id for item in found] == ["e4"]


@given(sizes=st.lists(st.integers(0, 1000), max_size=40), limit=st.integers(0, 3000))
def test_what_is_kept_is_the_latest_within_the_limit(sizes: list[int], limit: int) -> None:
    hub = EventHub(reader_bytes=1, kept_bytes=limit)
    events = [hub.publish(event(number, size=size)) for number, size in enumerate(sizes)]
    kept = hub.kept()
    assert kept == events[len(events) - len(kept) :]
    assert sum(map(size_of, kept)) <= limit
    if len(kept) < len(events):
        assert sum(map(size_of, events[len(events) - len(kept) - 1 :])) > limit
