"""What goes wrong while a client attaches to a session, and must leave nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
from msgspec import Raw, UnsetType

from aerodrome.demo.model import ModelServer
from aerodrome.gateway.upstream import Upstream
from aerodrome.model import SessionKey
from aerodrome.sessions.wake import read_history
from support.host import LASTING, Host, host, until
from support.misbehaving import RawClient, raw

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer.in_thread() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    limits = {"max_turns_per_tenant": 1}
    async with host(tmp_path_factory.mktemp("node"), model, coordination=LASTING, limits=limits) as running:
        yield running


async def everything(client: RawClient) -> list[dict[str, Any]]:
    """What has come until now."""
    await client.send({"jsonrpc": "2.0", "id": "last", "method": "ping", "params": {}})
    found = []
    while (message := await client.receive()).get("id") != "last":
        found.append(message)
    return found


async def test_a_session_that_is_deleted_while_a_client_attaches(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await node.key("alice")
    asked, go_on = asyncio.Event(), asyncio.Event()
    ask = Upstream.request

    async def late(self: Upstream, method: str, params: Mapping[str, Any], **more: Any) -> Raw | UnsetType:
        result = await ask(self, method, params, **more)
        if method == "session.resume":
            asked.set()
            await go_on.wait()
        return result

    async with (
        raw(node.gateway_address, key) as one,
        raw(node.gateway_address, key) as two,
        raw(node.gateway_address, await node.key("bob")) as bob,
    ):
        await one.request("session.create", {"sessionId": "shared"})
        await two.request("session.create", {"sessionId": "other"})  # has a link to the runtime
        monkeypatch.setattr(Upstream, "request", late)
        await two.send({"jsonrpc": "2.0", "id": 77, "method": "session.resume", "params": {"sessionId": "shared"}})
        await asked.wait()
        await one.send({"jsonrpc": "2.0", "id": 78, "method": "session.delete", "params": {"sessionId": "shared"}})
        live = node.node.sessions.find_live(SessionKey("acme", "shared"))
        assert live is not None
        while live._residency._closed_with is None:
            await asyncio.sleep(0)
        go_on.set()
        assert (await two.answer_to(77))["error"]["data"]["code"] == "not_found"
        assert "result" in await one.answer_to(78)
        monkeypatch.undo()
        await everything(two)
        await bob.request("session.create", {"sessionId": "shared"})
        secret = {"sessionId": "shared", "prompt": "my secret is 4711", "wait": True}
        assert "result" in await bob.request("session.send", secret)
        assert not await everything(two)
        assert not await everything(one)


async def test_everybody_is_told_once_that_a_session_is_deleted(node: Host) -> None:
    key = await node.key("alice")
    async with (
        raw(node.gateway_address, key) as one,
        raw(node.gateway_address, key) as two,
        raw(node.gateway_address, key) as three,
    ):
        await one.request("session.create", {"sessionId": "deleted"})
        await two.request("session.resume", {"sessionId": "deleted"})
        assert (await one.request("session.delete", {"sessionId": "deleted"}))["result"] == {"success": True}
        for client in (two, three):
            told = [message["params"] for message in await everything(client) if message.get("method")]
            lives = [params["type"] for params in told if params["sessionId"] == "deleted" and "type" in params]
            assert lives.count("session.deleted") == 1, lives


async def test_a_resume_that_is_refused_leaves_the_session_as_it_was(node: Host) -> None:
    alice = await node.user("alice")
    async with raw(node.gateway_address, await node.key("alice")) as client:
        await client.request("session.create", {"sessionId": "kept"})
        answer = await client.request("session.resume", {"sessionId": "kept", "agent": "nobody"})
        assert "error" in answer, answer
        assert "result" in await client.request("session.mode.get", {"sessionId": "kept"})
        assert await alice.text("kept", "hello") == "echo: hello"
        assert [m for m in await everything(client) if m.get("params", {}).get("sessionId") == "kept"]
        live = node.node.sessions.find_live(SessionKey("acme", "kept"))
        assert live is not None
        assert await node.node.sessions.hibernate(live)
        assert await alice.text("kept", "and now?") == "echo: and now?"
        told = [m["params"]["event"]["type"] for m in await everything(client) if m.get("method") == "session.event"]
        assert "assistant.message" in told


async def test_a_link_that_dies_as_it_is_opened_leaves_nobody_waiting(
    node: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await node.key("alice")
    async with raw(node.gateway_address, key) as client:
        await client.request("session.create", {"sessionId": "mine"})
        opened = Upstream.open

        async def dies(*args: Any, **more: Any) -> Upstream:
            link = await opened(*args, **more)
            asyncio.get_running_loop().call_soon(link.connection.abort, "it died")
            return link

        monkeypatch.setattr(Upstream, "open", dies)
        async with raw(node.gateway_address, key) as other, asyncio.timeout(10):
            answer = await other.request("session.mode.get", {"sessionId": "mine"})
            assert answer["error"]["data"]["code"] in ("runtime_unavailable", "turn_interrupted")
            monkeypatch.undo()
            assert "result" in await other.request("session.mode.get", {"sessionId": "mine"})


async def test_what_asks_the_model_takes_the_place_of_a_turn(node: Host) -> None:
    gate = node.node.sessions._context.admission.gate
    async with raw(node.gateway_address, await node.key("alice")) as client:
        await client.request("session.create", {"sessionId": "compacted"})
        sent = await client.request("session.send", {"sessionId": "compacted", "prompt": "hello", "wait": True})
        assert "result" in sent, sent
        async with gate.hold("acme", "bob"):
            params = {"sessionId": "compacted"}
            await client.send({"jsonrpc": "2.0", "id": 1, "method": "session.history.compact", "params": params})
            await client.request("ping")
            request = next(r for c in node.node.gateway.clients for r in c.router.unanswered if r.id == 1)
            assert request.link is None
        async with asyncio.timeout(20):
            await client.answer_to(1)
        await until(lambda: gate.free("acme", "bob"))


async def test_forks_are_made_one_after_the_other(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most = 0, 0

    async def counted(*args: Any) -> str:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            await asyncio.sleep(0.01)
            return await read_history(*args)
        finally:
            under_way -= 1

    monkeypatch.setattr("aerodrome.sessions.fork.read_history", counted)
    async with raw(node.gateway_address, await node.key("alice")) as client:
        await client.request("session.create", {"sessionId": "forked"})
        sent = await client.request("session.send", {"sessionId": "forked", "prompt": "hello", "wait": True})
        assert "result" in sent, sent
        for number in range(5):
            params = {"sessionId": "forked"}
            await client.send({"jsonrpc": "2.0", "id": number, "method": "sessions.fork", "params": params})
        async with asyncio.timeout(20):
            answers = 0
            while answers < 5:
                answers += "result" in await client.receive()
    assert most == 1
