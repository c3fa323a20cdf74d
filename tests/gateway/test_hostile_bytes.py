"""Bytes that are chosen to cost much: of strangers, and of clients with a key."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import pytest_asyncio

from aerodrome.demo.model import ModelServer
from aerodrome.gateway import bodies
from aerodrome.gateway.client import GatewayClient
from aerodrome.model import SessionKey
from aerodrome.wire.framing import encode_frame
from support.host import LASTING, Host, host, until
from support.misbehaving import Fate, raw

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]

#: As many values as fit into a frame.
LISTS = b"[" + b",".join([b"[]"] * 21_000_000) + b"]"


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer.in_thread() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    directory = tmp_path_factory.mktemp("node")
    limits = {"max_clients_per_user": 3, "client_buffer": "70MiB"}
    async with host(directory, model, coordination=LASTING, limits=limits) as running:
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nobody_else(node: Host) -> None:
    """What is counted here, such as the clients of one user, has nobody in it of the test before."""
    await until(lambda: not node.node.gateway.clients)


class Stall:
    #: The longest time in which the loop did nothing for anybody, in seconds of the processor that this process has
    #: used: what others use meanwhile says nothing of us.
    worst = 0.0
    #: Whether a large body was ever read by the loop itself.
    in_the_way = False


@asynccontextmanager
async def watched() -> AsyncIterator[Stall]:
    stall = Stall()

    async def watch() -> None:
        while True:
            began = time.process_time()
            await asyncio.sleep(0.01)
            stall.worst = max(stall.worst, time.process_time() - began)

    def noting(body: bytes) -> bodies.Incoming:
        if len(body) > 1_000_000 and threading.current_thread() is threading.main_thread():
            stall.in_the_way = True
        return bodies.read(body)

    task = asyncio.ensure_future(watch())
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("aerodrome.gateway.large.read", noting)
            yield stall
    finally:
        task.cancel()


async def test_a_stranger_may_not_send_a_large_frame(node: Host) -> None:
    frame = encode_frame(b'{"jsonrpc":"2.0","id":1,"method":"connect","params":{"token":"none","x":%b}}' % LISTS)
    async with watched() as stall, raw(node.gateway_address) as stranger:
        with suppress(OSError):
            await stranger.write(frame)
        assert await stranger.fate() is Fate.CLOSED
    assert stall.worst < 1.0


async def test_a_frame_of_very_many_values_is_refused_and_stops_nobody(node: Host) -> None:
    async with raw(node.gateway_address, await node.key("alice")) as client:
        for method in (b"session.log", b"ping"):
            params = b'{"sessionId":"any","message":%b}' % LISTS
            async with watched() as stall:
                frame = encode_frame(b'{"jsonrpc":"2.0","id":1,"method":"%b","params":%b}' % (method, params))
                await client.write(frame)
                answer = await client.answer_to(1)
            assert answer["error"]["code"] == -32602
            assert stall.worst < 1.0
            assert not stall.in_the_way


async def test_a_large_frame_is_read_before_those_that_come_behind_it(node: Host) -> None:
    async with raw(node.gateway_address, await node.key("alice")) as client:
        large = {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"message": "x" * 5_000_000}}
        await client.send(large)
        for number in range(2, 6):
            await client.send({"jsonrpc": "2.0", "id": number, "method": "ping", "params": {}})
        assert [(await client.receive())["id"] for _ in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("size", [1, 500_000], ids=["small", "large"])
async def test_parameters_that_are_no_object_are_refused_and_nothing_behind_them_is_lost(node: Host, size: int) -> None:
    async with raw(node.gateway_address, await node.key("alice")) as client:
        for number, params in enumerate(([1], 7, "x", True)):
            wrong = {"jsonrpc": "2.0", "id": number, "method": "ping", "params": params, "more": "x" * size}
            await client.write(
                encode_frame(json.dumps(wrong).encode())
                + encode_frame(b'{"jsonrpc":"2.0","id":100,"method":"ping","params":{}}')
            )
            async with asyncio.timeout(20):
                assert (await client.answer_to(number))["error"]["code"] == -32602
                assert "result" in await client.answer_to(100)


@pytest.mark.parametrize("size", [1, 500_000], ids=["small", "large"])
async def test_a_message_in_which_we_fail_ends_its_connection_and_holds_nobody_up(
    node: Host, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def fail(_: object) -> None:
        raise LookupError("a mistake of ours")

    async with raw(node.gateway_address, await node.key("alice")) as client:
        (there,) = [each for each in node.node.gateway.clients if each.principal is not None]
        monkeypatch.setattr(there.router, "take", fail)
        await client.send({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"message": "x" * size}})
        async with asyncio.timeout(20):
            with pytest.raises(ConnectionError):
                await client.receive()


async def test_strangers_cannot_fill_the_memory(node: Host) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(8):
            stranger = await stack.enter_async_context(raw(node.gateway_address))
            with suppress(OSError):
                await stranger.write(b"Content-Length: 64000\r\n\r\n" + b"x" * 63_000)
                await stranger.write(b"Content-Length: 60000000\r\n\r\n" + b"x" * 1_000_000)
        gateway = node.node.gateway
        await until(lambda: len([client for client in gateway.clients if client.principal is None]) == 0)


async def test_requests_of_a_stranger_are_bounded_in_bytes(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()

    async def slow(credential: str) -> None:
        await gate.wait()

    monkeypatch.setattr(node.node.gateway, "authenticate", slow)
    async with raw(node.gateway_address) as stranger:
        params = {"token": "none", "x": "x" * 40_000}
        for number in (1, 2):
            await stranger.send({"jsonrpc": "2.0", "id": number, "method": "connect", "params": params})
        assert (await stranger.answer_to(2))["error"]["data"]["code"] == "rate_limited"
        gate.set()


async def test_strangers_keep_nobody_out(node: Host) -> None:
    most = node.node.gateway.limits.max_strangers
    async with AsyncExitStack() as stack:
        strangers = [await stack.enter_async_context(raw(node.gateway_address)) for _ in range(most)]
        async with raw(node.gateway_address, await node.key("alice")) as client:
            assert await client.fate() is Fate.ALIVE
        assert await strangers[0].fate() is Fate.CLOSED
        assert await strangers[-1].fate() is Fate.ALIVE


async def test_strangers_that_have_gone_are_not_remembered(node: Host) -> None:
    """As long as each had for its `connect`, 30 s, ten thousands of them would."""

    def remembered() -> int:
        gc.collect()
        return sum(isinstance(found, GatewayClient) for found in gc.get_objects())

    before = remembered()
    for _ in range(20):
        async with AsyncExitStack() as stack:
            for _ in range(50):
                await stack.enter_async_context(raw(node.gateway_address))
    await until(lambda: not node.node.gateway.clients)
    await until(lambda: remembered() - before < 100)


async def test_one_user_may_not_take_all_places(node: Host) -> None:
    key = await node.key("alice")
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(raw(node.gateway_address, key))
        async with raw(node.gateway_address) as fourth:
            assert (await fourth.connect(key))["error"]["data"]["code"] == "rate_limited"
            assert await fourth.fate() is Fate.CLOSED
        async with raw(node.gateway_address, await node.key("bob")) as other:
            assert await other.fate() is Fate.ALIVE
    await until(lambda: not node.node.gateway.clients)
    async with raw(node.gateway_address, key) as client:
        assert await client.fate() is Fate.ALIVE


async def test_unanswered_requests_are_bounded_in_bytes(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    answers = node.node.gateway.answers

    async def slow(*_: object) -> dict[str, object]:
        await gate.wait()
        return {}

    monkeypatch.setitem(answers._methods, "session.getLastId", slow)
    async with raw(node.gateway_address, await node.key("alice")) as client:
        params = {"x": "x" * 40_000_000}
        for number in (1, 2):
            await client.send({"jsonrpc": "2.0", "id": number, "method": "session.getLastId", "params": params})
        assert (await client.answer_to(2))["error"]["data"]["code"] == "rate_limited"
        gate.set()
        assert "result" in await client.answer_to(1)
        await client.send({"jsonrpc": "2.0", "id": 3, "method": "session.getLastId", "params": params})
        assert "result" in await client.answer_to(3)


async def test_a_system_message_is_as_long_as_over_http(node: Host) -> None:
    async with raw(node.gateway_address, await node.key("alice")) as client:
        message = {"mode": "append", "content": "x" * 200_000}
        answer = await client.request("session.create", {"sessionId": "large", "systemMessage": message})
        assert answer["error"]["data"]["code"] == "too_large"
        await client.request("session.create", {"sessionId": "small"})
        answer = await client.request("session.resume", {"sessionId": "small", "systemMessage": message})
        assert answer["error"]["data"]["code"] == "too_large"
    assert await node.node.stores.directory.get(SessionKey("acme", "large")) is None


async def test_attachments_count_as_part_of_the_prompt(node: Host) -> None:
    async with raw(node.gateway_address, await node.key("alice")) as client:
        await client.request("session.create", {"sessionId": "with-files"})
        attachment = {"type": "blob", "data": "A" * 30_000_000, "mimeType": "text/plain"}
        params = {"sessionId": "with-files", "prompt": "hi", "attachments": [attachment]}
        assert (await client.request("session.send", params))["error"]["data"]["code"] == "too_large"
