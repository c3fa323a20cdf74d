"""Attached servers without a Copilot CLI: which there are, whose they are, and what an outlier gets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aerodrome._util.clock import ManualClock
from aerodrome.coordination.backends.memory import MemoryCoordination
from aerodrome.coordination.ports import Node
from aerodrome.errors import Capacity, Conflict, Invalid, NotFound, RuntimeUnavailable, StoreUnavailable
from aerodrome.model import PlacementStrategy, RuntimeKey
from aerodrome.placement.outliers import OutlierOptions
from aerodrome.runtime.attached import server as server_module
from aerodrome.runtime.attached.admin import AttachAdmin, normal_address
from aerodrome.runtime.attached.backends.memory import MemoryAttachStore
from aerodrome.runtime.attached.entry import AttachEntry, plan
from aerodrome.runtime.attached.fleet import HeartbeatFleet
from aerodrome.runtime.attached.places import AttachedPoolOptions
from aerodrome.runtime.attached.pool import AttachedPool
from aerodrome.runtime.attached.ports import Binding, StoredServer
from aerodrome.runtime.attached.resolver import SystemResolver
from aerodrome.runtime.attached.runtime import AttachedOptions, AttachedRuntime
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.release import PINNED
from aerodrome.statestore.ports import SharedVolume
from support.peer import Peer
from support.ports import free_port
from support.waiting import until

ACME, GLOBEX, ALICE = RuntimeKey("acme", None), RuntimeKey("globex", None), RuntimeKey("acme", "alice")


# The plan


def test_each_address_of_a_name_is_a_server() -> None:
    entry = AttachEntry("fleet", 4321)
    found = plan([entry, AttachEntry("other", 1)], {"fleet": ["10.0.0.1", "fd00::1"], "other": []}, {})
    assert found.servers == {"10.0.0.1:4321": entry, "[fd00::1]:4321": entry}
    assert found.unused == {}


OURS = AttachEntry("a", 1, tenant="acme", attached_at=2.0)
THEIRS = AttachEntry("b", 1, tenant="globex", attached_at=1.0)
OF_SETTINGS = AttachEntry("c", 1)
SAME = {"a": ["10.0.0.1"], "b": ["10.0.0.1"], "c": ["10.0.0.1"]}


@pytest.mark.parametrize(
    ("entries", "owner", "used", "unused"),
    [
        ([OURS, THEIRS], None, THEIRS, (OURS,)),  # it was there first
        ([OURS, THEIRS, OF_SETTINGS], None, OF_SETTINGS, (THEIRS, OURS)),
        ([OURS, THEIRS], "acme", OURS, (THEIRS,)),
        ([OURS, THEIRS, OF_SETTINGS], "acme", OF_SETTINGS, (OURS, THEIRS)),
        ([OURS, THEIRS], "initech", THEIRS, (OURS,)),
    ],
)
def test_an_endpoint_of_several_entries_is_whose_it_is_or_the_firsts(
    entries: list[AttachEntry], owner: str | None, used: AttachEntry, unused: tuple[AttachEntry, ...]
) -> None:
    bindings = {"10.0.0.1:1": RuntimeKey(owner, None)} if owner is not None else {}
    found = plan(entries, SAME, bindings)
    assert found.servers == {"10.0.0.1:1": used}
    assert found.unused == {"10.0.0.1:1": unused}


@given(
    names=st.lists(st.sampled_from("abc"), max_size=5),
    addresses=st.dictionaries(st.sampled_from("abc"), st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2"]), max_size=3)),
)
def test_no_endpoint_is_two_servers_and_none_is_forgotten(names: list[str], addresses: dict[str, list[str]]) -> None:
    entries = [AttachEntry(name, 1, tenant=str(number)) for number, name in enumerate(names)]
    found = plan(entries, addresses, {})
    assert set(found.servers) == {f"{address}:1" for name in names for address in addresses.get(name, ())}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("CLI-1:4321", "cli-1:4321"), (" 10.0.0.1:1 ", "10.0.0.1:1"), ("[fd00::1]:80", "[fd00::1]:80")],
)
def test_an_address_has_one_spelling(text: str, expected: str) -> None:
    assert normal_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "cli-1", "cli-1:", ":1", "cli-1:0", "cli-1:99999", "a b:1", "http://a:1", "a/b:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        normal_address(text)


def test_no_token_is_shown() -> None:
    assert "hush" not in repr(AttachEntry("a", 1, token="hush"))


async def test_a_name_with_two_families_leads_to_each_server_once(monkeypatch: pytest.MonkeyPatch) -> None:
    four = [(socket.AF_INET, 1, 6, "", (f"10.0.0.{number}", 0)) for number in (2, 1)]
    six = [(socket.AF_INET6, 1, 6, "", (f"fd00::{number}", 0, 0, 0)) for number in (1, 2)]
    answer: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: answer)
    resolver = SystemResolver()
    for found, expected in (
        ([*six, *four], ["fd00::1", "fd00::2"]),
        ([*four, *six], ["fd00::1", "fd00::2"]),  # and stays with what it has begun with
        (four, ["10.0.0.1", "10.0.0.2"]),
        ([*six, *four], ["10.0.0.1", "10.0.0.2"]),
        ([], []),
    ):
        answer = found
        assert await resolver.resolve("cli-1") == expected


# The pool, over servers that speak just enough


class FakeServer:
    """Answers `connect`, `ping` and `session.getMetadata`, as far as it is told to."""

    def __init__(self, *sees: str) -> None:
        """Args:
        sees: Tenants whose directory it says to see.
        """
        self.sees = sees
        self.port = 0
        self.connections = 0
        #: Set while it answers which sessions it sees.
        self.tells = asyncio.Event()
        self.tells.set()
        #: Set while it answers pings.
        self.awake = asyncio.Event()
        self.awake.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        # The same when it comes back, and nobody else's meanwhile.
        self.port = self.port or free_port()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)

        async def perform(request: dict[str, Any]) -> Any:
            if request["method"] == "connect":
                return {"ok": True, "protocolVersion": 3, "version": PINNED.version}
            if request["method"] == "ping":
                await self.awake.wait()
            if request["method"] == "session.getMetadata":
                await self.tells.wait()
                if request["params"]["sessionId"] in self.sees:
                    return {"session": {"sessionId": request["params"]["sessionId"]}}
            return {}

        await Peer(reader, writer).serve(perform)
        self._writers.discard(writer)
        writer.close()


class Literal:
    """Addresses are what they are called."""

    async def resolve(self, host: str) -> Sequence[str]:
        return [host]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SETTLES", 0.01)
    monkeypatch.setattr(server_module, "RETRY", 0.01)


@asynccontextmanager
async def pool_of(
    *fakes: FakeServer, store: MemoryAttachStore | None = None, tenant: str | None = None, **options: Any
) -> AsyncIterator[AttachedPool]:
    made = AttachedPoolOptions(
        server=AttachedOptions(ping_interval=0.05, ping_timeout=30.0), **{"capacity_timeout": 60.0, **options}
    )
    for fake in fakes:
        if not fake.port:
            await fake.start()
    entries = [AttachEntry("127.0.0.1", fake.port, tenant=tenant) for fake in fakes]
    pool = AttachedPool(made, store or MemoryAttachStore(), Literal(), None, entries)
    await pool.start()
    try:
        await until(lambda: len(pool.runtimes) == len(fakes))
        yield pool
    finally:
        await pool.aclose()
        for fake in fakes:
            await fake.stop()


def bound(pool: AttachedPool) -> dict[str, str | None]:
    return {row["server"]: row["tenant"] for row in pool.describe()}


async def test_a_free_server_goes_to_the_first_and_the_next_to_the_next() -> None:
    one, two = FakeServer(), FakeServer()
    async with pool_of(one, two) as pool:
        assert pool.has(ACME)
        first = await pool.reserve(ACME)
        assert (await pool.reserve(ACME)) is first, "what has room needs no other"
        other = await pool.reserve(GLOBEX)
        assert other is not first
        assert {first.key, other.key} == {ACME, GLOBEX}
        assert not pool.has(RuntimeKey("third", None)), "what is somebody's is nobody else's"


async def test_a_server_that_hangs_takes_no_prompt_and_is_lost() -> None:
    fake = FakeServer()
    await fake.start()
    options = AttachedOptions(ping_timeout=30.0)
    runtime = AttachedRuntime(("127.0.0.1", fake.port), AttachEntry("x", fake.port), options, lambda *_: None)
    try:
        await runtime.open()
        assert await runtime.takes_prompts()
        fake.awake.clear()
        runtime._options = replace(options, ping_timeout=0.5)
        assert not await runtime.takes_prompts()
        assert runtime.lost.is_set()
        assert "it hangs" in runtime.lost_reason
    finally:
        fake.awake.set()
        await runtime.aclose()
        await fake.stop()


class SlowStore(MemoryAttachStore):
    async def bind(self, endpoint: str, address: str, key: RuntimeKey) -> Binding:
        for _ in range(5):
            await asyncio.sleep(0)
        return await super().bind(endpoint, address, key)


class Volume:
    """Implements what attached servers need of `statestore.ports.SharedVolume`: a session is called like its tenant."""

    error: StoreUnavailable | None = None

    async def check_sight(self, tenant: str, sees: Callable[[str], Awaitable[bool]]) -> bool:
        if self.error is not None:
            raise self.error
        return await sees(tenant)


@asynccontextmanager
async def pool_on(
    volume: Volume, *entries: tuple[FakeServer, str | None], **options: Any
) -> AsyncIterator[AttachedPool]:
    for fake, _ in entries:
        await fake.start()
    made = AttachedPoolOptions(**{"capacity_timeout": 60.0, **options})
    attached = [AttachEntry("127.0.0.1", fake.port, tenant=tenant) for fake, tenant in entries]
    pool = AttachedPool(made, MemoryAttachStore(), Literal(), cast("SharedVolume", volume), attached)
    await pool.start()
    try:
        await until(lambda: len(pool.runtimes) == len(entries))
        yield pool
    finally:
        for fake, _ in entries:
            fake.tells.set()
        await pool.aclose()
        for fake, _ in entries:
            await fake.stop()


async def test_a_server_that_does_not_say_what_it_sees_holds_up_nobody_else() -> None:
    mute, other, of_globex = FakeServer("acme"), FakeServer("acme"), FakeServer("globex")
    mute.tells.clear()
    async with pool_on(Volume(), (mute, None), (of_globex, "globex")) as pool:
        options, pool._options = pool._options, replace(pool._options, capacity_timeout=0.3)
        waiting = asyncio.create_task(pool.reserve(ACME))
        await asyncio.sleep(0)
        pool._options = options  # of those that come behind it
        await until(lambda: any("sight" in task.get_name() for task in asyncio.all_tasks()))
        # Others are bound, and the list is read.
        assert (await pool.reserve(GLOBEX)).key == GLOBEX
        await pool.refresh()
        with pytest.raises(RuntimeUnavailable):
            await waiting
        await other.start()
        entries = [AttachEntry("127.0.0.1", fake.port) for fake in (mute, other)]
        await pool.reload(entries, {})
        await until(lambda: any(s.name == other.name and s.runtime is not None for s in pool._all))
        # The one that answers is taken.
        runtime = await pool.reserve(ACME)
        assert next(s.name for s in pool._all if s.runtime is runtime) == other.name
    await other.stop()


async def test_a_store_that_does_not_answer_keeps_a_request_no_longer_than_its_deadline() -> None:
    class Stuck(MemoryAttachStore):
        async def bind(self, endpoint: str, address: str, key: RuntimeKey) -> Binding:
            await asyncio.Event().wait()
            raise AssertionError

    async with pool_of(FakeServer(), store=Stuck(), capacity_timeout=0.1) as pool:
        async with asyncio.timeout(30):
            with pytest.raises(RuntimeUnavailable):
                await pool.reserve(ACME)


async def test_who_finds_no_server_of_its_own_is_told_at_once() -> None:
    async with pool_on(Volume(), (FakeServer("globex"), None), capacity_timeout=3600.0) as pool:
        assert pool.has(ACME), "it may be"
        with pytest.raises(RuntimeUnavailable):
            await pool.reserve(ACME)
        assert not pool.has(ACME)
        assert (await pool.reserve(GLOBEX)).key == GLOBEX


async def test_a_volume_that_is_away_is_told_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aerodrome.runtime.attached.sights._FRESH", 0.05)
    volume = Volume()
    async with pool_on(volume, (FakeServer("acme"), None)) as pool:
        volume.error = StoreUnavailable("the volume is away")
        with pytest.raises(StoreUnavailable, match="the volume is away"):
            await pool.reserve(ACME)
        volume.error = None

        async def bound() -> bool:
            with suppress(StoreUnavailable):
                return (await pool.reserve(ACME)).key == ACME
            return False

        async with asyncio.timeout(60):
            while not await bound():
                await asyncio.sleep(0.01)


async def test_many_at_once_bind_one_server() -> None:
    async with pool_of(FakeServer(), FakeServer(), FakeServer(), store=SlowStore()) as pool:
        found = await asyncio.gather(*(pool.reserve(ACME) for _ in range(8)))
        assert len(set(found)) == 1
        assert sorted(str(tenant) for tenant in bound(pool).values()) == ["None", "None", "acme"]


class HeldStore(MemoryAttachStore):
    """Answers what was so when it was asked, and late."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = asyncio.Event(), asyncio.Event()
        self.go.set()

    async def bindings(self) -> dict[str, Binding]:
        found = await super().bindings()
        self.asked.set()
        await self.go.wait()
        return found


async def test_a_look_at_the_store_does_not_undo_what_is_bound_meanwhile() -> None:
    store = HeldStore()
    async with pool_of(FakeServer(), store=store, refresh=3600.0) as pool:
        store.asked.clear()
        store.go.clear()
        looking = asyncio.create_task(pool.refresh())
        await store.asked.wait()
        reserving = asyncio.create_task(pool.reserve(ACME))
        for _ in range(50):
            await asyncio.sleep(0)
        store.go.set()
        await looking
        assert (await reserving).key == ACME
        assert [row["state"] for row in pool.describe()] == ["claimed"]


async def test_one_more_is_bound_when_those_there_are_are_full() -> None:
    async with pool_of(FakeServer(), FakeServer(), max_sessions=1) as pool:
        assert (await pool.reserve(ACME)) is not (await pool.reserve(ACME))


async def test_a_tenant_has_all_servers_that_name_it_at_once() -> None:
    async with pool_of(FakeServer(), FakeServer(), tenant="acme") as pool:
        assert len({(await pool.reserve(ACME)).id for _ in range(2)}) == 2
        assert not pool.has(GLOBEX)


async def test_under_isolation_user_a_server_is_one_users() -> None:
    async with pool_of(FakeServer(), FakeServer(), tenant="acme", capacity_timeout=0.05) as pool:
        alices = await pool.reserve(ALICE)
        bobs = await pool.reserve(RuntimeKey("acme", "bob"))
        assert alices is not bobs
        assert (await pool.reserve(ALICE)) is alices
        with pytest.raises(RuntimeUnavailable):
            await pool.reserve(RuntimeKey("acme", "carol"))


async def test_two_nodes_agree_whose_a_server_is() -> None:
    store, fake = MemoryAttachStore(), FakeServer()
    async with pool_of(fake, store=store) as one:
        other = AttachedPool(
            AttachedPoolOptions(capacity_timeout=0.05),
            store,
            Literal(),
            None,
            [AttachEntry("127.0.0.1", fake.port)],
        )
        await other.start()
        try:
            await until(lambda: len(other.runtimes) == 1)
            await one.reserve(ACME)
            with pytest.raises(RuntimeUnavailable):
                await other.reserve(GLOBEX)
            assert (await other.reserve(ACME)).key == ACME
        finally:
            await other.aclose()


class Names:
    """Names lead to this machine."""

    async def resolve(self, host: str) -> Sequence[str]:
        if host == "nowhere":
            raise OSError("no such name")
        return [host if host[0].isdigit() else "127.0.0.1"]


def admin_of(store: MemoryAttachStore, *entries: AttachEntry) -> AttachAdmin:
    return AttachAdmin(
        store,
        MemoryCoordination(ManualClock()),
        tokens=lambda: None,
        on_volume=True,
        clock=ManualClock(),
        resolver=Names(),
        entries=lambda: entries,
    )


async def test_nobody_takes_a_server_over_by_attaching_it_under_another_name() -> None:
    store, fake = MemoryAttachStore(), FakeServer()
    await fake.start()
    # Both are there already, as after two calls at once; by address the intruder comes first.
    await store.attach(StoredServer(f"cli-1:{fake.port}", "acme", attached_at=1.0))
    await store.attach(StoredServer(f"127.0.0.1:{fake.port}", "globex", weight=0.5, workspace="/x", attached_at=2.0))
    pool = AttachedPool(AttachedPoolOptions(capacity_timeout=60.0), store, Names(), None, [])
    await pool.start()
    try:
        await until(lambda: len(pool.runtimes) == 1)
        runtime = await pool.reserve(ACME)
        await pool.refresh()
        assert not pool.has(GLOBEX)
        assert (runtime.state.serves, str(runtime.workspace)) == (True, "/tmp")
        used, unused = pool.describe()
        assert (used["tenant"], used["state"], used["weight"]) == ("acme", "claimed", 1.0)
        assert (unused["tenant"], unused["state"]) == ("globex", "unused")
        assert unused["reason"] == f"{fake.name} is a server of another organisation already"
        # What is left of the other one after a detach is not taken over either: somebody's turns may be in it.
        await store.detach(f"cli-1:{fake.port}")
        await pool.refresh()
        pool.release(runtime)
        await until(lambda: [row["state"] for row in pool.describe()] == ["unused"])
        (row,) = pool.describe()
        assert (row["tenant"], "serves another organisation" in row["reason"]) == ("globex", True)
        assert not pool.has(GLOBEX)
        assert not pool.has(ACME)
    finally:
        await pool.aclose()
        await fake.stop()


async def test_what_somebody_else_has_attached_cannot_be_attached() -> None:
    store = MemoryAttachStore()
    admin = admin_of(store, AttachEntry("cli-0", 4320, token="x"))
    await admin.attach(StoredServer("cli-1:4321", "acme"))
    for address, tenant, reason in (
        ("cli-1:4321", "acme", "attached already; detach it first"),
        ("cli-2:4321", "acme", "is attached already as cli-1:4321; detach that first"),
        ("127.0.0.1:4321", "globex", "attached for another organisation"),
        ("cli-0:4320", "acme", "is attached already as cli-0:4320"),
    ):
        with pytest.raises(Conflict, match=reason):
            await admin.attach(StoredServer(address, tenant))
    await store.bind("127.0.0.1:4399", "cli-9:4399", GLOBEX)
    with pytest.raises(Conflict, match=r"127.0.0.1:4399 serves another organisation; detach 127.0.0.1:4399"):
        await admin.attach(StoredServer("cli-9:4399", "acme"))
    await admin.attach(StoredServer("cli-9:4399", "globex"))
    await admin.attach(StoredServer("nowhere:1", "acme"))  # it may be known tomorrow


async def test_full_servers_make_room_or_are_at_capacity() -> None:
    asked: list[RuntimeKey | None] = []
    async with pool_of(FakeServer(), max_sessions=1, capacity_timeout=0.2) as pool:
        held = await pool.reserve(ACME)

        async def make_room(key: RuntimeKey) -> bool:
            asked.append(key)
            if len(asked) == 1:
                pool.release(held)
                return True
            return False

        pool.make_room = make_room
        assert (await pool.reserve(ACME)) is held
        with pytest.raises(Capacity):
            await pool.reserve(ACME)
        assert set(asked) == {ACME}


async def test_users_take_turns_for_the_places_of_their_tenant() -> None:
    async with pool_of(FakeServer(), tenant="acme", max_sessions=1) as pool:
        held = await pool.reserve(ACME, "s0", "alice")
        order: list[str] = []

        async def one(user: str, number: int) -> None:
            runtime = await pool.reserve(ACME, f"{user}-{number}", user)
            order.append(user)
            await asyncio.sleep(0)
            pool.release(runtime)

        alices = [asyncio.create_task(one("alice", number)) for number in range(30)]
        await until(lambda: pool._queue.waiting == {"acme": 30})
        bobs = asyncio.create_task(one("bob", 0))
        await until(lambda: pool._queue.waiting == {"acme": 31})
        pool.release(held)
        await asyncio.gather(*alices, bobs)
        assert order.index("bob") <= 1
        assert pool._queue.waiting == {}


async def test_when_to_come_again_is_told_by_how_many_wait_and_how_fast_places_come_back() -> None:
    async with pool_of(FakeServer(), tenant="acme", max_sessions=1, capacity_timeout=0.05) as pool:
        for number in range(20):
            pool.release(await pool.reserve(ACME, f"s{number}"))
        await pool.reserve(ACME)
        refused = await asyncio.gather(*(pool.reserve(ACME) for _ in range(3)), return_exceptions=True)
        for error in refused:
            assert isinstance(error, Capacity)
            assert error.retry_after is not None
            assert error.retry_after >= 1.0, "and not the time-out"


async def test_a_user_has_a_line_of_its_own_and_that_has_an_end() -> None:
    async with pool_of(FakeServer(), tenant="acme", max_sessions=1, max_waiting_per_user=2) as pool:
        held = await pool.reserve(ACME, "s0", "alice")
        waiting = [asyncio.create_task(pool.reserve(ACME, f"s{number}", "alice")) for number in (1, 2)]
        await until(lambda: pool._queue.waiting == {"acme": 2})
        with pytest.raises(Capacity, match="2 requests of yours"):
            await pool.reserve(ACME, "s3", "alice")
        bobs = asyncio.create_task(pool.reserve(ACME, "s4", "bob"))
        waiting[0].cancel()  # whoever goes away leaves the line
        await until(lambda: pool._queue.waiting == {"acme": 2})
        for _ in range(2):
            pool.release(held)
            await asyncio.wait({waiting[1], bobs}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(waiting[1], bobs)


async def test_who_waits_for_a_server_to_let_go_of_its_session_keeps_nobody_waiting() -> None:
    async with pool_of(FakeServer(), tenant="acme") as pool:
        runtime = await pool.reserve(ACME)
        task = asyncio.create_task(asyncio.sleep(60, result=False))
        runtime.letting_go["s1"] = task
        waiting = asyncio.create_task(pool.reserve(ACME, "s1", "alice"))
        await asyncio.sleep(0)
        assert (await pool.reserve(ACME, "s2", "alice")) is runtime
        assert not waiting.done()
        del runtime.letting_go["s1"]
        task.cancel()
        pool.notify()
        assert (await waiting) is runtime


async def test_a_session_does_not_come_to_a_server_that_has_not_let_go_of_it() -> None:
    async with pool_of(FakeServer(), FakeServer(), tenant="acme", placement=PlacementStrategy.STICKY) as pool:
        first = await pool.reserve(ACME, "s1", "alice")
        task = asyncio.create_task(asyncio.sleep(60, result=False))
        first.letting_go["s1"] = task
        assert (await pool.reserve(ACME, "s1", "alice")) is not first
        assert (await pool.reserve(ACME, "s2", "alice")) is first
        task.cancel()


async def test_a_lost_server_is_told_of_once_and_comes_back() -> None:
    fake = FakeServer()
    lost: list[str] = []
    async with pool_of(fake, tenant="acme") as pool:
        pool.on_lost = lambda runtime: lost.append(runtime.id)
        first = await pool.reserve(ACME)
        await fake.stop()
        await until(lambda: not pool.runtimes)
        assert lost == [first.id]
        waiting = asyncio.create_task(pool.reserve(ACME))
        await fake.start()
        second = await waiting
        assert second is not first
        assert second.key == ACME


async def test_connections_of_clients_are_cut_with_the_server() -> None:
    class Connection:
        reason = ""

        def abort(self, reason: str) -> None:
            self.reason = reason

    connection = Connection()
    async with pool_of(FakeServer()) as pool:
        runtime = await pool.reserve(ACME)
        runtime.adopt(connection)
        runtime.kill("the lease is void")
        assert connection.reason == "the lease is void"
        assert runtime.lost.is_set()


async def test_an_outlier_gets_nothing_for_a_while() -> None:
    options = OutlierOptions(consecutive_failures=2, ejection=3600.0)
    async with pool_of(FakeServer(), FakeServer(), tenant="acme", outliers=options) as pool:
        bad, good = await pool.reserve(ACME), await pool.reserve(ACME)
        assert bad is not good
        server = next(s for s in pool._all if s.runtime is bad)
        while pool.describe()[0]["state"] != "ejected" and pool.describe()[1]["state"] != "ejected":
            pool.observed(server, False, 0.0)
        assert {(await pool.reserve(ACME)).id for _ in range(4)} == {good.id}
        row = next(row for row in pool.describe() if row["server"] == server.name)
        assert (row["state"], row["reason"]) == ("ejected", "2 failures in a row")


async def test_each_tenant_has_outliers_of_its_own() -> None:
    fakes = [FakeServer() for _ in range(4)]
    for fake in fakes:
        await fake.start()
    owners = ["acme", "acme", "globex", "globex"]
    entries = [AttachEntry("127.0.0.1", f.port, tenant=t) for f, t in zip(fakes, owners, strict=True)]
    options = AttachedPoolOptions(capacity_timeout=60.0, outliers=OutlierOptions(consecutive_failures=2))
    pool = AttachedPool(options, MemoryAttachStore(), Literal(), None, entries)
    await pool.start()
    try:
        await until(lambda: len(pool.runtimes) == len(fakes))
        for key in (ACME, GLOBEX):
            await pool.reserve(key)
        for bad in (fakes[0], fakes[2]):
            server = pool.find(bad.name)
            assert server is not None
            for _ in range(2):
                pool.observed(server, False, 0.0)
        states = {row["server"]: row["state"] for row in pool.describe()}
        assert [states[fake.name] for fake in fakes] == ["ejected", "claimed", "ejected", "claimed"]
    finally:
        await pool.aclose()
        for fake in fakes:
            await fake.stop()


async def test_a_tenants_only_server_is_not_held_against_those_of_others() -> None:
    tenants = ["acme", "globex", "initech", "umbrella"]
    fakes = [FakeServer() for _ in tenants]
    for fake in fakes:
        await fake.start()
    entries = [AttachEntry("127.0.0.1", f.port, tenant=t) for f, t in zip(fakes, tenants, strict=True)]
    options = AttachedPoolOptions(capacity_timeout=60.0, outliers=OutlierOptions(consecutive_failures=2))
    pool = AttachedPool(options, MemoryAttachStore(), Literal(), None, entries)
    await pool.start()
    try:
        await until(lambda: len(pool.runtimes) == len(fakes))
        runtime = await pool.reserve(ACME)
        for tenant in tenants:
            await pool.reserve(RuntimeKey(tenant, None))
        for server in pool._all:
            for _ in range(12):
                pool.observed(server, True, 0.5 if server.entry.tenant == "acme" else 0.02)
        pool._standings.look(0.0)
        assert {row["state"] for row in pool.describe()} == {"claimed"}
        server = next(s for s in pool._all if s.runtime is runtime)
        for _ in range(4):
            pool.observed(server, False, 0.0)
        assert (await pool.reserve(ACME)) is runtime, "there is nobody else to do its work"
    finally:
        await pool.aclose()
        for fake in fakes:
            await fake.stop()


async def test_an_ejected_server_comes_back_when_the_others_are_lost() -> None:
    options = OutlierOptions(consecutive_failures=2, ejection=3600.0)
    one, two = FakeServer(), FakeServer()
    async with pool_of(one, two, tenant="acme", outliers=options) as pool:
        held = [await pool.reserve(ACME), await pool.reserve(ACME)]
        bad = next(s for s in pool._all if s.name == one.name)
        for _ in range(2):
            pool.observed(bad, False, 0.0)
        assert {(await pool.reserve(ACME)).id for _ in range(3)} == {r.id for r in held if r is not bad.runtime}
        await two.stop()
        await until(lambda: len(pool.runtimes) == 1)
        assert (await pool.reserve(ACME)) is bad.runtime
        await two.start()


async def test_one_that_refuses_every_session_is_passed_over_by_the_retry_and_then_ejected() -> None:
    options = OutlierOptions(consecutive_failures=5, ejection=3600.0)
    async with pool_of(FakeServer(), FakeServer(), FakeServer(), tenant="acme", outliers=options) as pool:
        bad = (await pool.reserve(ACME, "s0")).id
        for runtime in pool.runtimes:
            runtime.reserved = 0
        refusals = 0
        for number in range(40):
            runtime = await pool.reserve(ACME, f"s{number}")
            if runtime.id == bad:
                refusals += 1
                runtime.note_load(f"s{number}", taken=False)
                pool.release(runtime)
                runtime = await pool.reserve(ACME, f"s{number}")
                assert runtime.id != bad, "the retry comes to another one"
            runtime.note_load(f"s{number}", taken=True)
        assert refusals == 5
        (row,) = [row for row in pool.describe() if row["state"] == "ejected"]
        assert (row["id"], row["reason"]) == (bad, "5 sessions in a row refused that others took")


async def test_what_every_server_refuses_is_held_against_none() -> None:
    options = OutlierOptions(consecutive_failures=2, ejection=3600.0)
    async with pool_of(FakeServer(), FakeServer(), FakeServer(), tenant="acme", outliers=options) as pool:
        for number in range(10):
            asked = set()
            for _ in range(4):
                runtime = await pool.reserve(ACME, f"s{number}")
                asked.add(runtime.id)
                runtime.note_load(f"s{number}", taken=False)
                pool.release(runtime)
            assert len(asked) == 3
        assert {row["state"] for row in pool.describe()} == {"claimed"}


async def test_who_has_refused_is_asked_again_when_the_others_are_full() -> None:
    async with pool_of(FakeServer(), FakeServer(), tenant="acme", max_sessions=1) as pool:
        asked: list[RuntimeKey | None] = []

        async def make_room(key: RuntimeKey | None) -> bool:
            asked.append(key)
            return False

        pool.make_room = make_room
        await pool.reserve(ACME)
        runtime = await pool.reserve(ACME, "s1")
        runtime.note_load("s1", taken=False)
        pool.release(runtime)
        assert (await pool.reserve(ACME, "s1")) is runtime
        assert asked == [ACME]


async def test_who_waits_in_vain_is_told_of_ejected_servers() -> None:
    options = OutlierOptions(consecutive_failures=2, ejection=3600.0)
    async with pool_of(
        FakeServer(), FakeServer(), tenant="acme", outliers=options, max_sessions=1, capacity_timeout=0.05
    ) as pool:
        held = await pool.reserve(ACME)
        bad = next(s for s in pool._all if s.runtime is not held)
        for _ in range(2):
            pool.observed(bad, False, 0.0)
        with pytest.raises(Capacity, match=f"{bad.name} is ejected for a while: 2 failures in a row"):
            await pool.reserve(ACME)


async def test_the_weight_may_change_under_the_sessions_and_the_token_may_not() -> None:
    fake = FakeServer()
    async with pool_of(fake, tenant="acme", drain_timeout=0.05) as pool:
        runtime = await pool.reserve(ACME)
        (server,) = pool._all
        await pool.reload([replace(server.entry, weight=3.0)], {})
        assert (pool._all, pool.runtimes[0]) == ([server], runtime)
        assert pool.describe()[0]["weight"] == 3.0
        await pool.reload([replace(server.entry, token="another")], {})
        assert pool.describe()[0]["state"] == "draining"
        await until(lambda: bool(pool.runtimes) and pool.runtimes[0].token == "another")
        assert runtime.lost.is_set(), "what did not leave in time was taken from it"


async def test_a_server_that_is_set_free_drains_before_it_is_somebody_elses() -> None:
    store, fake = MemoryAttachStore(), FakeServer()
    async with pool_of(fake, store=store) as pool:
        runtime = await pool.reserve(ACME)
        await store.release(fake.name, "r1")
        await pool.refresh()
        assert [row["state"] for row in pool.describe()] == ["draining"]
        waiting = asyncio.create_task(pool.reserve(GLOBEX))
        await pool.refresh()
        assert [row["tenant"] for row in pool.describe()] == ["acme"]
        pool.release(runtime)
        assert (await waiting).key == GLOBEX


class Both:
    """Implements `attached.ports.Fleet` for pools of one process."""

    def __init__(self) -> None:
        self.pools: list[AttachedPool] = []

    async def has_let_go(self, endpoint: str, release: str) -> bool:
        return all(pool.released.get(endpoint) == release for pool in self.pools)

    async def has_drained(self, endpoint: str) -> bool:
        rows = [row for pool in self.pools for row in pool.describe() if row["server"] == endpoint]
        return all(row["state"] == "drained" for row in rows)


async def test_a_server_that_is_set_free_is_nobody_elses_while_another_node_runs_turns_in_it() -> None:
    store, fake, fleet = MemoryAttachStore(), FakeServer(), Both()
    await fake.start()
    options = AttachedPoolOptions(capacity_timeout=60.0, refresh=0.05)
    entries = [AttachEntry("127.0.0.1", fake.port, tenant="acme")]
    one, two = (AttachedPool(options, store, Literal(), None, entries, fleet=fleet) for _ in range(2))
    fleet.pools += [one, two]
    try:
        for pool in (one, two):
            await pool.start()
        await until(lambda: len(one.runtimes) == len(two.runtimes) == 1)
        alices = await two.reserve(ALICE)
        await one.refresh()
        await admin_of(store).detach(fake.name)
        # In the order in which it went wrong: one drains nothing, and is the first to look.
        waiting = asyncio.create_task(one.reserve(RuntimeKey("acme", "bob")))
        await one.refresh()
        await until(lambda: bool(one.released))
        await one.refresh()
        assert (await store.bindings())[fake.name].key == ALICE
        await two.refresh()
        assert [(row["state"], row["user"]) for row in two.describe()] == [("draining", "alice")]
        await one.refresh()
        assert (await store.bindings())[fake.name].key == ALICE
        assert not waiting.done()
        assert not two.released
        two.release(alices)
        assert (await waiting).key == RuntimeKey("acme", "bob")
        assert (await store.bindings())[fake.name] == Binding(RuntimeKey("acme", "bob"))
    finally:
        await one.aclose()
        await two.aclose()
        await fake.stop()


async def test_a_node_that_binds_what_is_being_released_leaves_it_alone() -> None:
    store, fake, fleet = MemoryAttachStore(), FakeServer(), Both()
    async with pool_of(fake, store=store, refresh=3600.0, capacity_timeout=0.2) as pool:
        pool._releases._fleet = fleet
        fleet.pools = [pool, AttachedPool(AttachedPoolOptions(), store, Literal(), None)]
        await store.bind(fake.name, fake.name, ALICE)
        await store.release(fake.name, "r1")
        with pytest.raises(RuntimeUnavailable):
            await pool.reserve(ALICE)
        await until(lambda: pool.released == {fake.name: "r1"})
        assert await store.bindings() == {fake.name: Binding(ALICE, "r1")}
        fleet.pools = [pool]
        await pool.refresh()
        assert await store.bindings() == {}


async def test_the_fleet_has_let_go_when_every_living_node_has_said_so() -> None:
    coordination = MemoryCoordination(ManualClock())
    fleet = HeartbeatFleet(coordination, lambda: "a")
    assert not await fleet.has_let_go("10.0.0.1:1", "r1"), "not a node itself"
    said = {"10.0.0.1:1": "r1"}
    await coordination.join(Node("a", "a", load={"released": said}), 5.0)
    assert await fleet.has_let_go("10.0.0.1:1", "r1")
    assert not await fleet.has_let_go("10.0.0.1:1", "r2")
    loads: list[dict[str, Any]] = [{}, {"released": {}}, {"released": {"10.0.0.1:1": "r0"}}]
    for load in loads:
        await coordination.join(Node("b", "b", load=load), 5.0)
        assert not await fleet.has_let_go("10.0.0.1:1", "r1")
    await coordination.join(Node("b", "b", load={"released": said}), 5.0)
    assert await fleet.has_let_go("10.0.0.1:1", "r1")


async def test_detaching_releases_only_what_is_ones_own() -> None:
    store = MemoryAttachStore()
    admin = admin_of(store)
    await store.attach(StoredServer("cli-1:1", "acme"))
    await store.bind("10.0.0.1:1", "cli-1:1", ACME)
    await store.attach(StoredServer("10.0.0.1:1", "globex"))  # unused
    await admin.detach("10.0.0.1:1", "globex")
    assert [server.address for server in await store.attached()] == ["cli-1:1"]
    assert await store.bindings() == {"10.0.0.1:1": Binding(ACME)}
    for address in ("10.0.0.1:1", "cli-1:1"):
        with pytest.raises(NotFound):
            await admin.detach(address, "globex")
    await admin.detach("cli-1:1", "acme")
    assert await store.attached() == []
    assert (await store.bindings())["10.0.0.1:1"].release is not None
    with pytest.raises(NotFound):
        await admin.detach("cli-1:1", "acme")


async def test_a_drained_server_that_is_nobodys_is_given_to_nobody() -> None:
    store, fake = MemoryAttachStore(), FakeServer()
    async with pool_of(fake, store=store, capacity_timeout=0.2) as pool:
        server = pool.find(fake.name)
        assert server is not None
        await pool.drains.drain(server)
        assert not pool.has(ACME)
        with pytest.raises(RuntimeUnavailable, match="it is drained"):
            await pool.reserve(ACME)
        assert await store.bindings() == {}
        await admin_of(store).undrain(fake.name)
        await pool.refresh()
        assert (await pool.reserve(ACME)).key == ACME


async def test_a_drained_server_is_empty_at_every_node_and_gets_nothing_until_it_is_undrained() -> None:
    store, fleet = MemoryAttachStore(), Both()
    servers = FakeServer(), FakeServer()
    for fake in servers:
        await fake.start()
    entries = [AttachEntry("127.0.0.1", fake.port, tenant="acme") for fake in servers]
    options = AttachedPoolOptions(capacity_timeout=60.0, refresh=0.05)
    one, two = (AttachedPool(options, store, Literal(), None, entries, fleet=fleet) for _ in range(2))
    fleet.pools += [one, two]
    moved: list[AttachedRuntime] = []

    async def move(runtime: Any, reload: bool) -> bool:
        moved.append(runtime)
        one.release(runtime)
        return True

    one.move_sessions = move
    try:
        for pool in (one, two):
            await pool.start()
        await until(lambda: len(one.runtimes) == len(two.runtimes) == 2)
        idle = [await one.reserve(ACME), await one.reserve(ACME)]
        busy = [await two.reserve(ACME), await two.reserve(ACME)]
        server = one.find(servers[0].name)
        assert server is not None
        assert server.runtime in idle
        assert one.find(server.runtime.id) is server
        draining = asyncio.create_task(one.drains.drain(server))
        await until(lambda: bool(moved))
        assert moved == [server.runtime]
        held = next(r for r in busy if r.address[1] == servers[0].port)
        await until(lambda: held.state is RuntimeState.RETIRING)
        assert {(await pool.reserve(ACME)).address[1] for pool in (one, two)} == {servers[1].port}
        assert not draining.done(), "another node runs a turn in it"
        two.release(held)
        await draining
        assert {r["state"] for p in (one, two) for r in p.describe() if r["server"] == server.name} == {"drained"}
        # It outlives a restart of the server, and of the node.
        await servers[0].stop()
        await until(lambda: len(one.runtimes) == 1)
        await servers[0].start()
        await until(lambda: len(one.runtimes) == 2)
        assert (await one.reserve(ACME)).address[1] == servers[1].port
        await admin_of(store).undrain(server.name)
        await one.refresh()
        assert (await one.reserve(ACME)).address[1] == servers[0].port
        with pytest.raises(NotFound):
            await admin_of(store).undrain(server.name)
    finally:
        await one.aclose()
        await two.aclose()
        for fake in servers:
            await fake.stop()


async def test_a_drain_that_is_taken_back_says_so_and_the_sessions_stay() -> None:
    store = MemoryAttachStore()
    async with pool_of(FakeServer(), store=store, tenant="acme", capacity_timeout=0.05) as pool:
        runtime = await pool.reserve(ACME)
        (server,) = pool._all
        draining = asyncio.create_task(pool.drains.drain(server))
        await until(lambda: runtime.state is RuntimeState.RETIRING)
        with pytest.raises(RuntimeUnavailable, match="it is drained"):
            await pool.reserve(ACME)
        await store.undrain(server.name)
        await pool.refresh()
        with pytest.raises(Conflict):
            await draining
        assert runtime.state is RuntimeState.CLAIMED
        assert (await pool.reserve(ACME)) is runtime


async def test_what_was_looked_at_before_a_drain_does_not_undo_it() -> None:
    """Stores answer on several connections, and in any order."""

    class Late(MemoryAttachStore):
        held: asyncio.Event | None = None

        async def drained(self) -> frozenset[str]:
            found = await super().drained()
            if (held := self.held) is not None:
                self.held = None
                await held.wait()
            return found

    store = Late()
    async with pool_of(FakeServer(), store=store, tenant="acme") as pool:
        runtime = await pool.reserve(ACME)
        (server,) = pool._all
        store.held = answered = asyncio.Event()
        looking = asyncio.create_task(pool.refresh())
        await until(lambda: store.held is None)
        draining = asyncio.create_task(pool.drains.drain(server))
        for _ in range(20):
            await asyncio.sleep(0)
        answered.set()
        await looking
        await until(lambda: runtime.state is RuntimeState.RETIRING)
        assert server in pool.drains
        pool.release(runtime)
        await draining


async def test_to_detach_ends_a_drain_of_ones_own_server_only() -> None:
    store = MemoryAttachStore()
    admin = admin_of(store)
    await store.attach(StoredServer("10.0.0.1:1", "globex"))  # unused
    await store.attach(StoredServer("cli-1:1", "acme"))
    await store.drain("10.0.0.1:1", "cli-1:1")
    await admin.detach("10.0.0.1:1", "globex")
    assert await store.drained() == {"10.0.0.1:1"}
    await admin.detach("cli-1:1", "acme")
    assert await store.drained() == frozenset()


async def test_the_fleet_has_drained_when_no_living_node_has_sessions_there() -> None:
    coordination = MemoryCoordination(ManualClock())
    fleet = HeartbeatFleet(coordination, lambda: "a")
    assert not await fleet.has_drained("10.0.0.1:1")

    async def say(name: str, state: str) -> None:
        rows = [{"server": "10.0.0.1:1", "state": state}, {"server": "10.0.0.2:1", "state": "claimed"}, {"id": "rt-1"}]
        await coordination.join(Node(name, name, load={"runtimes": rows}), 5.0)

    await say("a", "drained")
    assert await fleet.has_drained("10.0.0.1:1")
    for state in ("claimed", "draining", "failed"):
        await say("b", state)
        assert not await fleet.has_drained("10.0.0.1:1")
    await say("b", "drained")
    assert await fleet.has_drained("10.0.0.1:1")
