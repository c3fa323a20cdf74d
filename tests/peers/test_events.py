"""A reader's stream that follows its session: each event once, in order, whatever its sources do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome.errors import Draining, NotFound, SessionBusy
from aerodrome.events import SessionEvent
from aerodrome.peers import events as peers_events
from aerodrome.peers.events import FollowingStream
from aerodrome.sessions.hub import Channel


def event(number: int) -> SessionEvent:
    name = f"e{number}"
    return SessionEvent(name, "assistant.message", b"{}", cursor=name)


@dataclass
class Subscription:
    where: str
    events: Any
    broken: bool = False


class Cluster:
    """A session of so many events, and what becomes of each subscription to it."""

    def __init__(self, count: int, script: list[tuple[str, int, int]]) -> None:
        self.count = count
        #: ("breaks" | "moves" | "refused", events that it tells, events that it repeats before them).
        self.script = list(script)
        self.stream: FollowingStream
        self.begun: list[str | None] = []
        self.nodes = 0

    async def begin(self, cursor: str | None) -> Subscription:
        self.begun.append(cursor)
        place = int(cursor[1:]) if cursor else 0
        fate, tells, repeats = self.script.pop(0) if self.script else ("ends", self.count, 0)
        if fate == "refused":
            raise SessionBusy("moving")
        self.nodes += 1
        subscription = Subscription(f"n{self.nodes}", Channel(1 << 20), broken=fate == "breaks")
        for number in range(max(1, place + 1 - repeats), min(self.count, place + tells) + 1):
            subscription.events.put(event(number))
        subscription.events.finish()
        if fate == "moves":
            # Said while it is being looked for.
            subscription.broken = True
            self.stream.runs_at(f"n{self.nodes}")
        return subscription


async def all_of(stream: FollowingStream) -> list[str]:
    return [found.id async for found in stream]


@given(
    st.integers(0, 12),
    st.lists(st.tuples(st.sampled_from(["breaks", "moves", "refused"]), st.integers(0, 5), st.integers(0, 5))),
)
def test_each_event_is_told_once_and_in_order(count: int, script: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        cluster = Cluster(count, script)
        first = Subscription("n0", Channel(1 << 20), broken=True)
        first.events.finish()
        cluster.stream = FollowingStream(cluster.begin, source=first, cursor="e0", on_close=lambda _: None)
        assert await all_of(cluster.stream) == [f"e{number}" for number in range(1, count + 1)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers_events, "_RETRY", 0)
        asyncio.run(run())


class Nodes:
    """Subscriptions that the test feeds."""

    def __init__(self) -> None:
        self.opened: asyncio.Queue[tuple[str | None, asyncio.Future[Subscription]]] = asyncio.Queue()
        self.closed = 0

    async def begin(self, cursor: str | None) -> Subscription:
        answer: asyncio.Future[Subscription] = asyncio.get_running_loop().create_future()
        self.opened.put_nowait((cursor, answer))
        return await answer

    def follow(self, first: Subscription, cursor: str | None = None) -> FollowingStream:
        def close(_: FollowingStream) -> None:
            self.closed += 1

        return FollowingStream(self.begin, source=first, cursor=cursor, on_close=close)


def at(where: str) -> Subscription:
    return Subscription(where, Channel(1 << 20))


async def test_a_session_that_moves_on_while_it_is_looked_for_is_followed_all_the_same() -> None:
    nodes, a, b, c = Nodes(), at("a"), at("b"), at("c")
    stream = nodes.follow(a, "e0")
    found: AsyncIterator[SessionEvent] = aiter(stream)
    async with aclosing(found):  # type: ignore[type-var]
        a.events.put(event(1))
        assert (await anext(found)).id == "e1"
        stream.runs_at("b")
        waiting = asyncio.ensure_future(anext(found))
        cursor, answer = await nodes.opened.get()
        assert cursor == "e1"
        stream.runs_at("c")
        answer.set_result(b)
        cursor, answer = await nodes.opened.get()
        assert cursor == "e1"
        answer.set_result(c)
        c.events.put(event(2))
        assert (await waiting).id == "e2"
        # And the hint that it had come to `b`, which comes late, or again, keeps nobody there.
        d = at("d")
        waiting = asyncio.ensure_future(anext(found))
        stream.runs_at("d")
        cursor, answer = await nodes.opened.get()
        assert cursor == "e2"
        stream.runs_at("d")
        answer.set_result(d)
        d.events.put(event(3))
        assert (await waiting).id == "e3"
        stream.close()
        stream.close()
    assert nodes.closed == 1


async def test_a_reader_that_goes_while_its_session_is_looked_for_leaves_no_subscription() -> None:
    nodes, a, b = Nodes(), at("a"), at("b")
    stream = nodes.follow(a)
    waiting = asyncio.ensure_future(all_of(stream))
    await asyncio.sleep(0)
    stream.runs_at("b")
    _, answer = await nodes.opened.get()
    stream.close()
    answer.set_result(b)
    assert await waiting == []
    b.events.put(event(1))
    assert b.events.backlog == ()


async def test_what_will_not_pass_is_told_to_the_reader() -> None:
    for error in (NotFound("gone"), Draining("go on elsewhere")):
        nodes, a = Nodes(), at("a")
        stream = nodes.follow(a)
        waiting = asyncio.ensure_future(all_of(stream))
        await asyncio.sleep(0)
        stream.runs_at("b")
        _, answer = await nodes.opened.get()
        answer.set_exception(error)
        with pytest.raises(type(error)):
            await waiting


async def test_the_session_s_end_is_the_stream_s() -> None:
    nodes, a = Nodes(), at("a")
    stream = nodes.follow(a)
    a.events.put(event(1))
    a.events.finish()
    assert await all_of(stream) == ["e1"]
    assert nodes.opened.empty()
