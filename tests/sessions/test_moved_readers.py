"""Readers of a session that has run at another node, and comes back to one that remembers an earlier time."""

from __future__ import annotations

import asyncio

import pytest

from aerodrome.model import SessionKey, TurnStatus
from aerodrome.sessions.hub import Channel
from support.scripted_node import ALICE, ScriptedNode, scripted_node, settle


async def asleep(node: ScriptedNode) -> None:
    for live in node.service.live:
        assert await node.service.hibernate(live)
    await settle()


def stored(reader: Channel) -> list[str]:
    return [event.id for event in reader.backlog if not event.ephemeral]


async def test_a_reader_that_has_seen_more_than_the_node_gets_nothing_again() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await a.open("s1")
        # Somebody reads here from the beginning to the end.
        patient = await a.service.events(ALICE, "s1")
        await a.say("s1", "one")
        await asleep(a)
        elsewhere = await b.service.events(ALICE, "s1")
        await b.say("s1", "two")
        await asleep(b)
        told, cursor = {event.id for event in elsewhere.backlog}, elsewhere.backlog[-1].cursor
        elsewhere.close()
        reader = await a.service.events(ALICE, "s1", after=cursor)
        assert stored(reader) == []
        await a.say("s1", "three")
        assert not told & {event.id for event in reader.backlog}
        # And nobody else misses what happened elsewhere.
        events = [event.id for event in await a.service.reading.stored_events(ALICE, "s1")]
        assert stored(patient) == events
        assert stored(reader) == events[-len(stored(reader)) :]
        assert len([event for event in reader.backlog if event.type == "user.message"]) == 1
        patient.close()
        reader.close()


async def test_a_native_reader_neither() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await a.open("s1")
        patient = await a.service.events(ALICE, "s1")
        await a.say("s1", "one")
        await asleep(a)
        await b.say("s1", "two")
        last = (await b.service.reading.stored_events(ALICE, "s1"))[-1].id
        await asleep(b)
        assert await a.service.reading.events_behind(ALICE, "s1", [last]) == ()
        assert await a.service.reading.events_behind(ALICE, "s1", ["unknown", last]) == ()
        patient.close()


async def test_nobody_misses_a_turn_that_was_cut_off_here_and_made_elsewhere() -> None:
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await a.open("s1")
        patient = await a.service.events(ALICE, "s1")
        await a.say("s1", "one")
        run = await a.send("s1", "two")
        await settle()
        session = a.loaded("s1")
        for _ in range(1000):  # more than is kept
            session.emit("assistant.message_delta", ephemeral=True, deltaContent="x" * 200)
        await session.flush()
        a.may_serve = False
        a.service.give_up_all("the script says so")
        assert (await run.wait()).status is TurnStatus.INTERRUPTED
        await settle()
        await b.say("s1", "three")
        await asleep(b)
        a.may_serve = True
        await a.say("s1", "four")
        assert a.prompts("s1") == ["one", "three", "four"]
        events = [event.id for event in await a.service.reading.stored_events(ALICE, "s1")]
        assert [event for event in stored(patient) if event in events] == events
        patient.close()


async def test_what_another_node_stores_while_a_reader_looks_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session moves here between the reader's look at the history and the moment in which it goes on."""
    async with scripted_node() as a, scripted_node(a.stores, name="b") as b:
        await a.open("s1")
        await b.say("s1", "one")
        first = (await b.service.reading.stored_events(ALICE, "s1"))[0].id
        read, reads, go_on = a.stores.files.read, 0, asyncio.Event()

        async def read_slowly(key: SessionKey, path: str) -> str:
            nonlocal reads
            reads += 1
            slow = reads == 1
            text = await read(key, path)
            if slow:
                await go_on.wait()
            return text

        monkeypatch.setattr(a.stores.files, "read", read_slowly)
        coming = asyncio.create_task(a.service.events(ALICE, "s1", after=first))
        await settle()
        await b.say("s1", "two")
        await asleep(b)
        await a.say("s1", "three")
        go_on.set()
        reader = await coming
        events = [event.id for event in await a.service.reading.stored_events(ALICE, "s1")]
        assert stored(reader) == events[1:]
        reader.close()
