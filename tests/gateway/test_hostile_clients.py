"""Clients that ask for what a runtime chokes on, or keep it waiting: their tenant's runtime goes on for all others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from aerodrome.demo.model import ModelServer
from aerodrome.model import SessionKey
from aerodrome.sessions import attachments
from aerodrome.sessions.requests import MAX_HELD
from support.host import LASTING, Host, User, host, until
from support.misbehaving import RawClient, raw

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]

#: More digits than any runtime reads.
BIG = int("9" * 400)


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer.in_thread() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    async with host(tmp_path_factory.mktemp("node"), model, coordination=LASTING) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def victim(node: Host) -> AsyncIterator[User]:
    """Another user of the tenant, who has a session in the runtime before, and the same one afterwards."""
    bob = await node.user("bob")
    await bob.open("victim")
    await bob.say("victim", "hello")
    runtime = node.runtime()
    yield bob
    assert not runtime.lost.is_set(), runtime.lost_reason
    assert await bob.text("victim", "still there?") == "echo: still there?"
    assert node.node.sessions.find_live(SessionKey("acme", "victim")).activation.runtime is runtime  # type: ignore[union-attr]


async def answered_or_cut_off(client: RawClient, method: str, params: dict[str, Any], patience: float = 20.0) -> Any:
    """The error; ``None``: the connection was closed."""
    async with asyncio.timeout(patience):
        try:
            return (await client.request(method, params))["error"]
        except OSError:
            return None


async def test_a_number_that_no_runtime_reads(node: Host, victim: User) -> None:
    async with raw(node.gateway_address, await node.key("alice")) as client:
        limits = {"maxAiCredits": BIG}
        error = await answered_or_cut_off(client, "session.create", {"sessionId": "big", "sessionLimits": limits})
        assert error["code"] == -32602
        await client.request("session.create", {"sessionId": "big"})
        params = {"sessionId": "big", "prompt": "x", "responseFormat": {"x": BIG}}
        assert (await answered_or_cut_off(client, "session.send", params))["code"] == -32602


@pytest.mark.parametrize("value", [b'"\\ud800"', b"1e999", b"9" * 400])
async def test_what_the_runtime_does_not_answer_is_answered(node: Host, victim: User, value: bytes) -> None:
    async with raw(node.gateway_address, await node.key("alice")) as client:
        await client.request("session.create", {"sessionId": "odd"})
        body = b'{"jsonrpc":"2.0","id":5,"method":"session.log","params":{"sessionId":"odd","message":"m","x":%b}}'
        await client.write(b"Content-Length: %d\r\n\r\n" % len(body % value) + body % value)
        async with asyncio.timeout(20):
            await client.answer_to(5)
        live = node.node.sessions.find_live(SessionKey("acme", "odd"))
        assert live is not None
        assert not live.engaged


async def test_a_transform_that_is_not_answered(node: Host, victim: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "ASK_TIMEOUT", 1.0)
    async with raw(node.gateway_address, await node.key("alice")) as client:
        sections = {"custom_instructions": {"action": "transform"}}
        params = {"sessionId": "transformed", "systemMessage": {"mode": "customize", "sections": sections}}
        await client.send({"jsonrpc": "2.0", "id": 7, "method": "session.create", "params": params})
        async with asyncio.timeout(20):
            await client.answer_to(7)


async def test_a_client_that_keeps_the_runtime_waiting_is_cut_off_and_its_session_goes_on(
    node: Host, victim: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more patience for the client than for the runtime, it is the runtime that does not answer in time."""
    # As configured by default 30 s.
    monkeypatch.setattr(node.node.gateway, "request_timeout", 3.0)
    monkeypatch.setattr(node.runtime().control, "_timeout", 3.0)
    alice = await node.user("alice")
    async with raw(node.gateway_address, await node.key("alice")) as client:
        sections = {"custom_instructions": {"action": "transform"}}
        params = {"sessionId": "kept", "systemMessage": {"mode": "customize", "sections": sections}}
        await answered_or_cut_off(client, "session.create", params)
    await until(lambda: not node.node.gateway.clients)
    await alice.open("kept")
    assert await alice.text("kept", "and now?") == "echo: and now?"


async def test_hooks_that_are_not_answered_are_when_the_turn_is_aborted(node: Host, victim: User) -> None:
    async with raw(node.gateway_address, await node.key("alice")) as client:
        await client.request("session.create", {"sessionId": "hooked", "hooks": True})
        prompt = {"sessionId": "hooked", "prompt": "hi"}
        await client.send({"jsonrpc": "2.0", "id": 1, "method": "session.send", "params": prompt})
        async with asyncio.timeout(20):
            while (await client.receive()).get("method") != "hooks.invoke":
                pass
            await client.send({"jsonrpc": "2.0", "id": 2, "method": "session.abort", "params": {"sessionId": "hooked"}})
            assert "result" in await client.answer_to(2)
        live = node.node.sessions.find_live(SessionKey("acme", "hooked"))
        assert live is not None
        await until(lambda: not live.busy)
        assert live.activation is not None
        assert not live.activation.lost.done()


async def test_questions_of_one_session_do_not_fill_the_control_link(node: Host, victim: User) -> None:
    alice = await node.user("alice")
    await alice.open("asker", tools=["ask_user"])
    calls = "".join(f'[[tool: ask_user {{"question": "q{number}"}}]]' for number in range(300))
    async with alice.events("asker") as events:
        asking = asyncio.ensure_future(alice.http.post("/sessions/asker/messages", json={"prompt": calls}))
        try:
            asked = 0
            async for event in events:
                asked += event["event"] == "user_input.requested"
                if asked == 300:
                    break
            live = node.node.sessions.find_live(SessionKey("acme", "asker"))
            assert live is not None
            assert live.activation is not None
            await until(lambda: len(live.activation._requests._held) == MAX_HELD)  # type: ignore[union-attr]
            assert await victim.text("victim", "and I?") == "echo: and I?"
        finally:
            asking.cancel()
            await alice.http.post("/sessions/asker/abort")


async def test_a_client_that_reads_slowly(node: Host, victim: User, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = await node.user("alice")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.setblocking(False)
    address, _, port = node.gateway_address.rpartition(":")
    await asyncio.get_running_loop().sock_connect(sock, (address, int(port)))
    client = RawClient(*await asyncio.open_connection(sock=sock))

    async def trickle() -> None:
        while await client.reader.read(200_000):
            await asyncio.sleep(0.1)

    try:
        await client.connect(await node.key("alice"))
        await client.request("session.create", {"sessionId": "slow"})
        (connection,) = [c.connection for c in node.node.gateway.clients if "slow" in c.attachments]
        await client.send({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"message": "x" * 30_000_000}})
        reading = asyncio.ensure_future(trickle())
        await until(lambda: connection.paused)
        live = node.node.sessions.find_live(SessionKey("acme", "slow"))
        assert live is not None
        assert await node.node.sessions.hibernate(live)
        # It was not waited for: it has more than ten seconds to go on reading what it was sent before.
        assert connection.paused
        assert not connection.closed
        assert await alice.text("slow", "hello") == "echo: hello"
        reading.cancel()
    finally:
        client.writer.transport.abort()


async def test_a_client_that_takes_too_little_is_cut_off(
    node: Host, victim: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: not node.node.gateway.clients)
    async with raw(node.gateway_address, await node.key("alice")) as client:
        (connection,) = [c.connection for c in node.node.gateway.clients if c.connection.connected]
        object.__setattr__(node.node.gateway.limits, "write_timeout", 1.0)
        try:
            await client.send({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"message": "x" * 30_000_000}})
            await until(lambda: connection.paused)

            async def sip() -> None:
                while await client.reader.read(1000):
                    await asyncio.sleep(0.1)

            reading = asyncio.ensure_future(sip())
            await until(lambda: connection.closed)
            reading.cancel()
        finally:
            object.__setattr__(node.node.gateway.limits, "write_timeout", 30.0)
