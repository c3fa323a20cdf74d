"""A request reaches its node and its outcome comes back, whatever is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from aerodrome._util.clock import SystemClock
from aerodrome._util.tasks import TaskOwner
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.ports import ClusterEvent, Node
from aerodrome.errors import AerodromeError, Conflict, NotFound, RuntimeUnavailable
from aerodrome.operators import administration
from aerodrome.operators.administration import Administration
from aerodrome.operators.requests import OPERATIONS, REQUESTED, Request, RequestDesk, State, Verb
from support.waiting import until

pytestmark = pytest.mark.timeout(60)


class Place:
    """A node with one runtime, over a store in memory."""

    def __init__(self, store: MemoryCoordination, name: str, runtime: str) -> None:
        self.store = store
        self.incarnation = f"{name}-1"
        self.runtime = runtime
        self.done: list[tuple[str, str, str]] = []
        self.failure: Exception | None = None
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.deaf = 0
        self.tasks = TaskOwner(name)
        self.desk = RequestDesk(
            self, own=lambda: self.incarnation, tasks=self.tasks, clock=SystemClock(), on_news=self.beat
        )
        self._stop: Callable[[], None] = store.listen(self._hear)

    async def join(self) -> None:
        await self.store.join(Node(self.incarnation.removesuffix("-1"), self.incarnation, load=self.load()), 1e9)

    def load(self) -> dict[str, Any]:
        return {"runtimes": [{"id": self.runtime}], OPERATIONS: self.desk.describe()}

    def beat(self) -> None:
        if not self.tasks.closed:
            self.tasks.start(self.store.heartbeat(self.incarnation, self.load()), "beat")

    def _hear(self, event: ClusterEvent) -> None:
        if self.deaf:
            self.deaf -= 1
        else:
            self.desk.hear(event)

    async def recycle(self, runtime_id: str, reason: str) -> None:
        await self._perform("recycle", runtime_id, reason)

    async def drain(self, runtime_id: str) -> None:
        await self._perform("drain", runtime_id, "")

    async def _perform(self, *call: str) -> None:
        self.done.append(call)  # type: ignore[arg-type]
        await self.may_end.wait()
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def store() -> MemoryCoordination:
    return MemoryCoordination()


@pytest.fixture
async def place(store: MemoryCoordination) -> AsyncIterator[Place]:
    place = Place(store, "a", "rt-1")
    await place.join()
    yield place
    await place.tasks.aclose()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"_LOOK": 0.01, "_AGAIN": 0.05}.items():
        monkeypatch.setattr(administration, name, seconds)


@pytest.mark.parametrize("verb", Verb)
async def test_the_node_that_has_the_runtime_does_it_once_and_the_end_is_told(
    store: MemoryCoordination, place: Place, verb: Verb
) -> None:
    other = Place(store, "b", "rt-2")
    await other.join()
    accepted: list[str] = []
    retirement = await Administration(store).retire("rt-1", verb, reason="worn", on_accepted=accepted.append)
    assert (retirement.node, retirement.operation.state, accepted) == ("a", State.DONE, ["a"])
    assert place.done == [(verb.value, "rt-1", "worn" if verb is Verb.RECYCLE else "")]
    assert other.done == []
    await other.tasks.aclose()


async def test_a_request_that_was_lost_is_sent_again_and_taken_once(store: MemoryCoordination, place: Place) -> None:
    place.deaf = 3
    place.may_end.clear()
    asking = asyncio.create_task(Administration(store).retire("rt-1", Verb.DRAIN))
    await until(lambda: len(place.done) == 1)
    request = Request(place.desk.describe()[0]["id"], Verb.DRAIN, "rt-1", place.incarnation, "")
    place.desk.hear(request.event())  # comes late, too
    place.may_end.set()
    await asking
    assert len(place.done) == 1


async def test_an_error_of_the_node_is_the_error_here(store: MemoryCoordination, place: Place) -> None:
    place.failure = RuntimeUnavailable("no replacement can be started: disk full")
    with pytest.raises(RuntimeUnavailable, match="disk full"):
        await Administration(store).retire("rt-1", Verb.RECYCLE)
    place.failure = ValueError("secret")
    with pytest.raises(AerodromeError, match="internal error: ValueError") as failed:
        await Administration(store).retire("rt-1", Verb.RECYCLE)
    assert "secret" not in failed.value.detail


async def test_a_runtime_that_nobody_has(store: MemoryCoordination, place: Place) -> None:
    with pytest.raises(NotFound, match="runtimes ls"):
        await Administration(store).retire("rt-9", Verb.RECYCLE)


async def test_two_who_ask_for_the_same_both_learn_of_the_end(store: MemoryCoordination, place: Place) -> None:
    place.may_end.clear()
    asking = [asyncio.create_task(Administration(store).retire("rt-1", Verb.RECYCLE)) for _ in range(2)]
    await until(lambda: len(place.done) == 2)  # the pool makes one of them
    place.may_end.set()
    assert [(await task).operation.state for task in asking] == [State.DONE, State.DONE]


async def test_two_who_ask_for_different_things_are_told(store: MemoryCoordination, place: Place) -> None:
    place.may_end.clear()
    first = asyncio.create_task(Administration(store).retire("rt-1", Verb.DRAIN))
    await until(lambda: len(place.done) == 1)
    with pytest.raises(Conflict, match="drain"):
        await Administration(store).retire("rt-1", Verb.RECYCLE)
    place.may_end.set()
    await first


async def test_a_node_that_dies_meanwhile(store: MemoryCoordination, place: Place) -> None:
    place.may_end.clear()
    asking = asyncio.create_task(Administration(store).retire("rt-1", Verb.DRAIN))
    await until(lambda: len(place.done) == 1)
    await store.leave(place.incarnation)
    with pytest.raises(RuntimeUnavailable, match="node a has gone"):
        await asking


async def test_a_node_that_does_not_understand(
    store: MemoryCoordination, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(administration, "_ACKNOWLEDGED_WITHIN", 0.5)
    place.deaf = 1000
    with pytest.raises(RuntimeUnavailable, match="does not say"):
        await Administration(store).retire("rt-1", Verb.DRAIN)
    assert place.done == []


async def test_who_waits_no_longer_than_some_time_is_told_that_it_goes_on(
    store: MemoryCoordination, place: Place
) -> None:
    place.may_end.clear()
    retirement = await Administration(store).retire("rt-1", Verb.DRAIN, wait=0.05)
    assert retirement.describe()["state"] == "running"
    assert retirement.describe()["seconds"] is None
    place.may_end.set()
    await until(lambda: place.desk.describe()[0]["state"] == "done")


async def test_what_a_node_says_of_requests_is_bounded(store: MemoryCoordination, place: Place) -> None:
    for number in range(200):
        place.desk.hear(Request(f"op-{number}", Verb.DRAIN, "rt-1", place.incarnation, "").event())
    await until(lambda: len(place.done) == 200)
    await until(lambda: all(told["state"] == "done" for told in place.desk.describe()))
    told = place.desk.describe()
    assert [row["id"] for row in told] == [f"op-{number}" for number in range(150, 200)]
    place.desk._operations = {
        key: replace(operation, ended_at=operation.ended_at - 61 if operation.ended_at else None)
        for key, operation in place.desk._operations.items()
    }
    assert place.desk.describe() == []


@pytest.mark.parametrize("subject", ["", "[]", "{}", '{"verb": "explode"}', '{"verb": "drain", "more": 1}'])
async def test_a_request_of_another_release_is_ignored(place: Place, subject: str) -> None:
    place.desk.hear(ClusterEvent(REQUESTED, subject))
    assert place.done == []


async def test_a_node_is_asked_to_drain_by_name_or_incarnation(store: MemoryCoordination, place: Place) -> None:
    operators = Administration(store)
    assert (await operators.drain_node("a")).incarnation == "a-1"
    assert (await operators.drain_node("a-1")).name == "a"
    await store.join(Node("a", "a-2"), 1e9)
    with pytest.raises(Conflict, match="a-1, a-2"):
        await operators.drain_node("a")
    with pytest.raises(NotFound, match="nodes ls"):
        await operators.drain_node("z")
