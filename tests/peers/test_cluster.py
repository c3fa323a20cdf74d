"""What one node knows of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.ports import ClusterEvent, Node
from aerodrome.errors import SessionElsewhere
from aerodrome.model import SessionKey
from aerodrome.peers import cluster as peers_cluster
from aerodrome.peers.cluster import Cluster
from aerodrome.sessions.hints import AWAKE, DELETED

KEY = SessionKey("acme", "s")


class Slow:
    """A membership whose answers come when the test says so."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[list[Node]]] = []

    async def nodes(self) -> list[Node]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]


@pytest.fixture
async def store() -> AsyncIterator[MemoryCoordination]:
    found = MemoryCoordination()
    await found.open()
    for name in ("a", "b"):
        await found.join(Node(name, f"{name}-1", f"127.0.0.1:{ord(name)}"), 60)
    yield found
    await found.aclose()


class Mute:
    """Hints get lost."""

    async def publish(self, event: ClusterEvent) -> None: ...

    def listen(self, callback: Callable[[ClusterEvent], None]) -> Callable[[], None]:
        return lambda: None


def cluster_of(store: MemoryCoordination, loaded: set[SessionKey], interval: float = 60.0) -> Cluster:
    return Cluster(store, store, Mute(), incarnation=lambda: "a-1", loaded=lambda key: key in loaded, interval=interval)


async def test_who_runs_a_session_is_asked_of_the_store_unless_it_is_here(store: MemoryCoordination) -> None:
    loaded: set[SessionKey] = set()
    cluster = cluster_of(store, loaded)
    await cluster.refresh()
    assert await cluster.elsewhere(KEY) is None
    assert await store.acquire(KEY, "b-1")
    found = await cluster.elsewhere(KEY)
    assert found is not None
    assert found.name == "b"
    loaded.add(KEY)
    assert await cluster.elsewhere(KEY) is None


async def test_a_node_that_came_a_moment_ago_is_found(store: MemoryCoordination) -> None:
    cluster = cluster_of(store, set())
    await cluster.refresh()
    await store.join(Node("c", "c-1", "127.0.0.1:3"), 60)
    await store.acquire(KEY, "c-1")
    found = await cluster.elsewhere(KEY)
    assert found is not None
    assert found.name == "c"


async def test_a_node_without_an_address_cannot_be_asked(store: MemoryCoordination) -> None:
    cluster = cluster_of(store, set())
    await store.join(Node("c", "c-1"), 60)
    await store.acquire(KEY, "c-1")
    await cluster.refresh()
    with pytest.raises(SessionElsewhere, match=r"server\.advertise"):
        await cluster.elsewhere(KEY)


async def test_who_runs_a_session_is_remembered_until_something_speaks_against_it(store: MemoryCoordination) -> None:
    loaded: set[SessionKey] = set()
    cluster = cluster_of(store, loaded)
    await cluster.refresh()
    assert await cluster.elsewhere(KEY) is None
    assert cluster.remembered(KEY) is None
    lease = await store.acquire(KEY, "b-1")
    assert lease is not None

    async def asked() -> bool:
        """Ask, and say whether the answer is remembered."""
        await cluster.elsewhere(KEY)
        node = cluster.remembered(KEY)
        return node is not None and node.name == "b"

    assert await asked()
    cluster._on_event(ClusterEvent(AWAKE, str(KEY), "b-1"))
    assert cluster.remembered(KEY) is not None
    reasons: list[Callable[[], None]] = [
        lambda: cluster.forget(KEY),
        lambda: cluster._on_event(ClusterEvent(AWAKE, str(KEY), "c-1")),
        lambda: cluster._on_event(ClusterEvent(DELETED, str(KEY), "b-1")),
        lambda: cluster.announce(DELETED, KEY),
        lambda: loaded.add(KEY),
    ]
    for against in reasons:
        assert await asked()
        against()
        assert cluster.remembered(KEY) is None
        loaded.clear()
    await store.release(lease)
    assert await cluster.elsewhere(KEY) is None
    assert cluster.remembered(KEY) is None
    await store.acquire(KEY, "b-1")
    assert await asked()
    await store.leave("b-1")
    await cluster.refresh()
    assert cluster.remembered(KEY) is None
    await cluster.aclose()


async def test_the_sessions_that_were_asked_for_last_are_remembered(
    store: MemoryCoordination, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_cluster, "_REMEMBERED", 2)
    cluster = cluster_of(store, set())
    await cluster.refresh()
    first, second, third = keys = [SessionKey("acme", name) for name in ("first", "second", "third")]
    for key in keys:
        await store.acquire(key, "b-1")
    await cluster.elsewhere(first)
    await cluster.elsewhere(second)
    assert cluster.remembered(first) is not None
    await cluster.elsewhere(third)
    assert [key.id for key in keys if cluster.remembered(key) is not None] == ["first", "third"]


async def test_an_earlier_look_does_not_replace_a_later_one(store: MemoryCoordination) -> None:
    slow = Slow()
    a, b = await store.nodes()
    cluster = Cluster(
        slow,  # type: ignore[arg-type]
        store,
        Mute(),
        incarnation=lambda: "a-1",
        loaded=lambda _: False,
        interval=60,
    )
    gone: list[frozenset[str]] = []
    cluster.on_gone.append(gone.append)
    looks = [asyncio.ensure_future(cluster.refresh()) for _ in range(2)]
    await asyncio.sleep(0)
    assert len(slow.asked) == 1
    slow.asked[0].set_result([a])
    await looks[0]
    await asyncio.sleep(0)
    slow.asked[1].set_result([a, b])
    await looks[1]
    assert cluster.lives("b-1")
    assert gone == []


async def test_what_is_done_here_is_known_here_without_the_store(store: MemoryCoordination) -> None:
    cluster = cluster_of(store, {KEY})
    await cluster.start()
    awake: list[tuple[SessionKey, str]] = []
    cluster.on_awake.append(lambda key, incarnation: awake.append((key, incarnation)))
    deleted: list[SessionKey] = []
    cluster.on_deleted.append(deleted.append)
    cluster.announce(AWAKE, KEY)
    assert awake == [(KEY, "a-1")]
    cluster.announce(DELETED, KEY)
    assert deleted == []  # by others only
    await cluster.aclose()


async def test_lost_hints_are_made_up_for(store: MemoryCoordination) -> None:
    """For what others have loaded, and for what was loaded here while somebody follows it elsewhere."""
    other = SessionKey("acme", "other")
    cluster = cluster_of(store, {KEY}, interval=0.01)
    cluster.followed.append(lambda: [KEY, other])
    await store.acquire(other, "b-1")
    awake: set[tuple[SessionKey, str]] = set()
    both = asyncio.Event()

    def on_awake(key: SessionKey, incarnation: str) -> None:
        awake.add((key, incarnation))
        if len(awake) == 2:
            both.set()

    cluster.on_awake.append(on_awake)
    await cluster.start()
    await asyncio.wait_for(both.wait(), 10)
    await cluster.aclose()
    assert awake == {(KEY, "a-1"), (other, "b-1")}
