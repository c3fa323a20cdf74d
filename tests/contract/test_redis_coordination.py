"""What only the Redis adapter has to know: servers that restart, hang, refuse, fail over, or are a cluster."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from aerodrome._util.redis_url import RedisUrl
from aerodrome.coordination.backends.redis import RedisCoordination
from aerodrome.coordination.backends.redis_client import RedisClient, Script, load_script
from aerodrome.coordination.ports import Admission, Beat, Cap, ClusterEvent, Lease, Node, Rate
from aerodrome.errors import ConfigError, StoreUnavailable
from aerodrome.model import SessionKey
from support.coordination import TTL, taken
from support.relay import relaying
from support.stores import ValkeyServer, paused, valkey
from support.waiting import until

KEY = SessionKey("acme", "chat")
ROOT = Path(__file__).parents[2]
LUA = ROOT / "src" / "aerodrome" / "coordination" / "backends" / "lua"
#: A time to live that no test outlives.
LONG = 600.0


@asynccontextmanager
async def store(url: str, **options: Any) -> AsyncIterator[RedisCoordination]:
    """One that a slow machine does not make give up, unless it is told otherwise."""
    coordination = RedisCoordination(RedisUrl.parse(url), **{"timeout": 20.0, "patience": 20.0, **options})
    await coordination.open()
    try:
        yield coordination
    finally:
        await coordination.aclose()


@contextmanager
def given_up_soon(coordination: RedisCoordination) -> Iterator[None]:
    """What is not answered during the block."""
    client = coordination._client
    before = client._timeout, client._patience
    client._timeout = client._patience = 0.3
    try:
        yield
    finally:
        client._timeout, client._patience = before


async def hear(heard: list[ClusterEvent], publisher: RedisCoordination, event: ClusterEvent) -> None:
    """What is published while a connection that listens is made anew is lost: until it is heard."""
    async with asyncio.timeout(30):
        while event not in heard:
            await publisher.publish(event)
            await asyncio.sleep(0.05)


async def works(coordination: RedisCoordination) -> None:
    """A little of everything."""
    await coordination.join(Node("a", "a-1", "127.0.0.1:1"), LONG)
    assert await coordination.heartbeat("a-1", {"sessions": 1}) is Beat.ALIVE
    assert [node.name for node in await coordination.nodes()] == ["a"]
    lease = await taken(coordination, KEY, "a-1", floor=4)
    assert await coordination.holders([KEY]) == {KEY: lease}
    assert await coordination.clear_dead() == 0
    assert await coordination.release(lease)
    assert lease == Lease(KEY, "a-1", 5)
    admission = await coordination.admit("t", "a-1", rates=[Rate("r", 1, 60.0)], caps=[Cap("c", 1)])
    assert (admission.exceeded, admission.full) == (None, None)
    await coordination.vacate("t", "a-1")
    heard: list[ClusterEvent] = []
    coordination.listen(heard.append)
    await coordination.publish(ClusterEvent("k", "s"))
    await until(lambda: heard == [ClusterEvent("k", "s")])
    await coordination.join(Node("b", "b-1"), LONG)
    assert await coordination.ask_to_drain("b-1")
    assert await coordination.heartbeat("b-1") is Beat.DRAIN
    await coordination.leave("b-1")


async def test_an_emptied_server_is_filled_again_by_those_who_are_there() -> None:
    with valkey() as server:
        async with store(server.url) as a, store(server.url) as b:
            heard: list[ClusterEvent] = []
            a.listen(heard.append)
            await a.join(Node("a", "a-1"), LONG)
            lease = await taken(a, KEY, "a-1", floor=7)
            await a.admit("t-1", "a-1", caps=[Cap("c", 1)])
            for lose in (server.empty, server.restart):
                lose()
                # Scripts, heartbeats, leases and listeners: nothing that was there is there any more.
                assert await a.heartbeat("a-1") is Beat.DEAD
                assert await a.nodes() == []
                assert await b.acquire(KEY, "a-1") is None
                assert not await a.release(lease)
                await a.join(Node("a", "a-1"), LONG)
                before, lease = lease, await taken(a, KEY, "a-1", floor=lease.epoch)
                assert lease.epoch == before.epoch + 1
                assert (await a.admit("t-2", "a-1", caps=[Cap("c", 1)])).full is None
                heard.clear()
                await hear(heard, b, ClusterEvent("after", ""))


async def test_a_server_that_is_away_for_a_moment_is_waited_for() -> None:
    with valkey() as server:
        async with store(server.url, patience=20.0) as a:
            await a.join(Node("a", "a-1"), LONG)
            server.stop()
            waiting = asyncio.create_task(a.nodes())
            with pytest.raises(StoreUnavailable) as caught:
                await a.heartbeat("a-1")  # tried once: the next is due soon
            assert caught.value.detail == "the Redis server cannot be reached"
            await asyncio.to_thread(server.start)
            assert await waiting == []


async def test_a_server_that_hangs_is_given_up_in_time_and_all_goes_on_afterwards() -> None:
    with valkey() as server:
        async with store(server.url) as a:
            await a.join(Node("a", "a-1"), LONG)
            heard: list[ClusterEvent] = []
            a.listen(heard.append)
            await hear(heard, a, ClusterEvent("before", ""))
            began = monotonic()
            with paused(server), given_up_soon(a):
                calls = [a.heartbeat("a-1"), a.acquire(KEY, "a-1"), a.nodes(), a.publish(ClusterEvent("lost", ""))]
                failed = await asyncio.gather(*calls, return_exceptions=True)
            assert monotonic() - began < 15.0
            assert [str(error) for error in failed] == ["the Redis server does not answer"] * 4
            assert await a.heartbeat("a-1") is Beat.ALIVE
            lease = await taken(a, KEY, "a-1")
            assert await a.holder(KEY) == lease  # no answer to an earlier question is taken for this one's
            await hear(heard, a, ClusterEvent("after", ""))


async def test_a_burst_of_calls_takes_no_more_connections_than_its_share() -> None:
    with valkey() as server:
        async with store(server.url, timeout=30.0) as a:
            await a.join(Node("a", "a-1"), LONG)
            leases = await asyncio.gather(*(taken(a, SessionKey("acme", f"s-{n}"), "a-1") for n in range(500)))
            assert {lease.epoch for lease in leases} == {1}
            (clients,) = re.findall(rb"connected_clients:(\d+)", server.command("INFO", "clients"))
            assert int(clients) <= 64 + 1  # and the one that asks


async def test_a_heartbeat_waits_for_no_other_call(valkey_server: ValkeyServer) -> None:
    prefix = f"test-{secrets.token_hex(6)}"
    async with store(valkey_server.url, prefix=prefix) as a:
        await a.join(Node("a", "a-1"), LONG)
        for _ in range(64):
            await a._client._room.acquire()
        assert await a.heartbeat("a-1") is Beat.ALIVE
        with given_up_soon(a), pytest.raises(StoreUnavailable, match="slower than it is asked"):
            await a.nodes()


async def test_a_connection_that_listens_and_is_cut_is_made_again() -> None:
    with valkey() as server:
        async with store(server.url) as a, store(server.url) as b:
            heard: list[ClusterEvent] = []
            a.listen(heard.append)
            await hear(heard, a, ClusterEvent("before", ""))
            assert server.command("CLIENT", "KILL", "TYPE", "pubsub") == b":1\r\n"
            await hear(heard, b, ClusterEvent("after", ""))


async def test_a_connection_that_listens_to_nobody_is_noticed() -> None:
    with valkey() as server:
        async with store(server.url) as a:
            a._events._idle = 0.05
            heard: list[ClusterEvent] = []
            a.listen(heard.append)
            await hear(heard, a, ClusterEvent("before", ""))
            with paused(server):
                await until(lambda: not a._events._subscription._began.is_set())
            await until(lambda: a._events._subscription._began.is_set())
            await hear(heard, a, ClusterEvent("after", ""))


def documented_rules() -> list[str]:
    """What `docs/fleet-stores.md` says that a user needs, for the prefix `fleet` and with a password of ours."""
    (command,) = re.findall(
        r"ACL SETUSER aerodrome (.*?)```", (ROOT / "docs" / "fleet-stores.md").read_text(), re.DOTALL
    )
    return str(command).replace("{aerodrome}", "{fleet}").replace(">PASSWORD", ">s3cret/#x").split()


async def test_the_documented_rights_are_enough_for_every_script(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = documented_rules()
    texts = {file.stem: file.read_text() for file in LUA.glob("*.lua")}
    # Of every branch, whether this test comes through it or not.
    used = {f"+{name.lower()}" for text in texts.values() for name in re.findall(r"redis\.call\('(\w+)'", text)}
    assert used <= {*rules}
    ran = set()
    run = RedisClient.run

    async def running(client: RedisClient, script: Script, *args: Any, **options: Any) -> Any:
        ran.add(script)
        return await run(client, script, *args, **options)

    monkeypatch.setattr(RedisClient, "run", running)
    with valkey() as server:
        assert server.command("ACL", "SETUSER", "aerodrome", *rules) == b"+OK\r\n"
        async with store(f"redis://aerodrome:s3cret%2F%23x@127.0.0.1:{server.port}", prefix="fleet") as a:
            await works(a)
    assert ran == {load_script(name) for name in texts if name != "common"}


async def test_refusals_say_what_is_wrong_and_tell_no_secret() -> None:
    rules = " ".join(documented_rules())
    poor = rules.partition("-@all")[0] + "-@all +ping"
    users = [f"default {rules}", f"poor {poor}", f"older {rules} -hscan", "nobody on nopass -@all"]
    with valkey({"user": users}) as server:
        at = f"127.0.0.1:{server.port}"
        async with store(f"redis://older:s3cret%2F%23x@{at}", prefix="fleet") as a:
            await a.join(Node("a", "a-1"), LONG)
            with pytest.raises(StoreUnavailable, match="see its ACL"):
                await a.clear_dead()  # in the middle of a script
        for credentials, words in (
            ("default:wr0ng", "refuses the user or the password"),
            ("poor:s3cret%2F%23x", "does not let this user do what is needed; see its ACL"),
        ):
            with pytest.raises(StoreUnavailable) as caught:
                async with store(f"redis://{credentials}@{at}", prefix="fleet") as a:
                    await a.join(Node("a", "a-1"), LONG)
            assert caught.value.detail == f"the Redis server {words}"
        async with store(f"redis://default:s3cret%2F%23x@{at}", prefix="another") as a:
            with pytest.raises(StoreUnavailable, match="see its ACL"):
                await a.nodes()


async def test_an_admission_whose_answer_is_lost_is_counted_once(valkey_server: ValkeyServer) -> None:
    prefix, lose = f"test-{secrets.token_hex(6)}", False

    def tap(link: int, up: bool, data: bytes) -> None:
        nonlocal lose
        if lose and not up and b"NOSCRIPT" not in data:
            lose = False
            raise ConnectionResetError

    async with (
        relaying("127.0.0.1", valkey_server.port, lambda: tap) as address,
        store(f"redis://{address}", prefix=prefix) as a,
    ):
        await a.join(Node("a", "a-1"), LONG)
        await a.admit("t", "a-1")
        rate, cap = Rate("r", 2, 600.0), Cap("c", 1)
        for number in range(2):
            lose = True
            assert await a.admit(f"t-{number}", "a-1", rates=[rate]) == Admission()
            assert not lose
        assert (await a.admit("t-2", "a-1", rates=[rate])).exceeded == rate
        await a.admit("t-3", "a-1", caps=[cap])
        lose = True
        assert (await a.admit("t-4", "a-1", rates=[Rate("other", 2, 600.0)], caps=[cap])).full == cap
        assert (await a.admit("t-4", "a-1", rates=[Rate("other", 2, 600.0)])).exceeded is None
        assert (await a.admit("t-4", "a-1", rates=[Rate("other", 2, 600.0)])).exceeded is not None


async def test_a_socket_and_a_database_of_its_own() -> None:
    socket = f"/tmp/aerodrome-{secrets.token_hex(4)}.sock"
    with valkey({"unixsocket": socket}) as server:
        async with store(f"unix://{socket}?db=3") as a, store(server.url) as other:
            await works(a)
            assert await other.nodes() == []
        async with store(f"redis://127.0.0.1:{server.port}/3") as same:
            assert len(await same.nodes()) == 1


async def test_tls_is_of_use_only_with_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with valkey({"requirepass": "s3cret"}) as server:
        async with in_front(server.port, context) as port:
            async with store(f"rediss://:s3cret@127.0.0.1:{port}?ca_file={certificate}") as a:
                await works(a)
            with pytest.raises(StoreUnavailable, match="certificate that is not trusted; see ca_file"):
                async with store(f"rediss://:s3cret@127.0.0.1:{port}"):
                    pass
            with pytest.raises(ConfigError, match="names a ca_file that is not there: /nowhere"):
                async with store(f"rediss://:s3cret@127.0.0.1:{port}?ca_file=/nowhere"):
                    pass


def make_certificate(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "cert.pem", directory / "key.pem"
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=aerodrome", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


@asynccontextmanager
async def in_front(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port that speaks TLS, before one that does not."""
    ways: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.TaskGroup() as group:
                ways.update(group.create_task(pump(*way)) for way in ((reader, ahead), (behind, writer)))
        finally:
            ahead.close()
            writer.close()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]
        await until(lambda: all(way.done() for way in ways))


async def test_several_fleets_share_a_server_by_their_prefix(valkey_server: ValkeyServer) -> None:
    one, two = f"f-{secrets.token_hex(4)}", f"f-{secrets.token_hex(4)}"
    async with store(valkey_server.url, prefix=one) as a, store(valkey_server.url, prefix=two) as b:
        heard: list[ClusterEvent] = []
        b.listen(heard.append)
        await b.publish(ClusterEvent("mine", ""))
        await works(a)
        assert await b.nodes() == []
        await b.publish(ClusterEvent("last", ""))
        await until(lambda: len(heard) >= 2)
        assert [event.kind for event in heard] == ["mine", "last"]


async def test_a_cluster_keeps_all_of_a_fleet_in_one_slot() -> None:
    with valkey({"cluster-enabled": "yes"}) as one, valkey({"cluster-enabled": "yes"}) as two:
        assert one.command("CLUSTER", "ADDSLOTSRANGE", "0", "8191") == b"+OK\r\n"
        assert two.command("CLUSTER", "ADDSLOTSRANGE", "8192", "16383") == b"+OK\r\n"
        assert one.command("CLUSTER", "MEET", "127.0.0.1", str(two.port), str(two.bus_port)) == b"+OK\r\n"
        await until(lambda: all(b"cluster_state:ok" in server.command("CLUSTER", "INFO") for server in (one, two)))
        for number in range(6):  # in slots of either
            server = (one, two)[number % 2]
            async with store(f"redis+cluster://127.0.0.1:{server.port}", prefix=f"fleet-{number}") as a:
                await works(a)
        sizes = [int(server.command("DBSIZE")[1:-2]) for server in (one, two)]
        assert all(sizes)


def leads(server: ValkeyServer) -> bool:
    try:
        return b"role:master" in server.command("INFO", "replication")
    except OSError:
        return False  # whoever promotes it cuts its clients off


async def test_sentinels_lead_to_whoever_is_the_primary() -> None:
    with valkey() as primary, valkey({"replicaof": f"127.0.0.1 {primary.port}"}) as replica:
        await until(lambda: b"master_link_status:up" in replica.command("INFO", "replication"))
        config = {
            "sentinel monitor": f"mymaster 127.0.0.1 {primary.port} 1",
            "sentinel down-after-milliseconds": "mymaster 300",
            "sentinel failover-timeout": "mymaster 2000",
        }
        with valkey(config, sentinel=True) as sentinel:
            sentinels = f"127.0.0.1:1,127.0.0.1:{sentinel.port}"  # one of them is down
            async with store(f"redis+sentinel://{sentinels}/mymaster", timeout=5.0, patience=30.0) as a:
                await works(a)
                port = str(replica.port).encode()
                await until(lambda: port in sentinel.command("SENTINEL", "REPLICAS", "mymaster"), timeout=30.0)
                before = await taken(a, KEY, "a-1")
                primary.stop(signal.SIGKILL)
                await until(lambda: leads(replica), timeout=30.0)
                again = await taken(a, KEY, "a-1", floor=before.epoch)
                assert again.epoch > before.epoch
                assert await a.heartbeat("a-1") is Beat.ALIVE
                heard: list[ClusterEvent] = []
                a.listen(heard.append)
                await hear(heard, a, ClusterEvent("after", ""))


async def test_what_is_stored_does_not_grow_with_what_was(valkey_server: ValkeyServer) -> None:
    prefix, offset = f"test-{secrets.token_hex(6)}", 0.0

    def size(name: str) -> bytes:
        return valkey_server.command({"nodes": "ZCARD", "drain": "SCARD"}.get(name, "HLEN"), f"{{{prefix}}}:{name}")

    async with store(valkey_server.url, prefix=prefix, offset=lambda: offset) as a:
        for life in range(5):
            incarnation = f"a-{life}"
            await a.join(Node("a", incarnation), TTL)
            await a.ask_to_drain(incarnation)
            for number in range(10):
                lease = await taken(a, SessionKey("acme", f"s-{number}"), incarnation)
                await a.release(lease)
                await a.admit(f"t-{life}-{number}", incarnation, caps=[Cap("c", 1000)])
            offset += TTL
        await a.join(Node("b", "b-1"), TTL)
        assert [size(name) for name in ("nodes", "node", "ttl", "load")] == [b":1\r\n"] * 4
        # One that died with its successor there already: nobody joins after it.
        await a.join(Node("b", "b-2"), TTL * 2)
        await a.admit("t-1", "b-1", caps=[Cap("c", 1000), Cap("d", 1000)])
        await a.admit("t-2", "b-1", caps=[Cap("d", 1000)])
        offset += TTL
        await a.admit("t-3", "b-2", caps=[Cap("c", 1000)])
        await a.clear_dead()
        assert [size(name) for name in ("drain", "leases", "cap:d")] == [b":0\r\n"] * 3
        assert [size(name) for name in ("places", "cap:c")] == [b":1\r\n"] * 2


async def test_names_with_any_character_are_one_key_each(valkey_server: ValkeyServer) -> None:
    async with store(valkey_server.url, prefix=f"test-{secrets.token_hex(6)}") as a:
        await a.join(Node("a", "a-1"), LONG)
        keys = [SessionKey("a", "b c"), SessionKey("a b", "c"), SessionKey('a"', ",b"), SessionKey("ü", "\ud800")]
        leases = {key: await taken(a, key, "a-1") for key in keys}
        assert await a.holders(keys) == leases
