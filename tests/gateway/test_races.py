"""What happens between a look and what is done on its strength: requests and answers that overtake each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
import pytest_asyncio

from aerodrome.coordination.ports import Node
from aerodrome.demo.model import ModelServer
from aerodrome.model import SessionKey
from support.host import LASTING, Host, host, until
from support.misbehaving import RawClient, raw

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer.in_thread() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Host, Host]]:
    directory = tmp_path_factory.mktemp("pair")
    options: dict[str, Any] = {"coordination": LASTING, "limits": {"max_turns_per_tenant": 1}}
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(host(directory, model, server={"node_name": name}, **options))
            for name in ("a", "b")
        ]
        await until(lambda: not (first.node.cluster.alone or second.node.cluster.alone))
        yield first, second


async def told_until_idle(client: RawClient, session_id: str) -> list[str]:
    """Types of the session's events."""
    told: list[str] = []
    async with asyncio.timeout(30):
        while "session.idle" not in told:
            message = await client.receive()
            if message.get("method") == "session.event" and message["params"]["sessionId"] == session_id:
                told.append(message["params"]["event"]["type"])
    return told


@pytest.mark.parametrize("place", ["here", "there"])
async def test_a_client_that_leaves_a_session_and_is_back_before_the_answer_hears_it(
    nodes: tuple[Host, Host], place: str
) -> None:
    """As an application does in two places at once, or one that does not wait for its `disconnect`."""
    a, b = nodes
    session_id = f"back-{place}"
    at_a = await a.user()
    await at_a.open(session_id)
    await at_a.text(session_id, "hello")
    door = a if place == "here" else b
    async with raw(door.gateway_address, await door.key()) as client:
        await client.request("session.resume", {"sessionId": session_id})
        for number in range(20):
            # An id of its own for each: the answer to a prompt may come behind the end of its turn.
            leave, back, send = (f"{number}-{what}" for what in ("leave", "back", "send"))
            for request_id, method in ((leave, "session.detach"), (back, "session.resume")):
                params = {"sessionId": session_id}
                await client.send({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
            assert "result" in await client.answer_to(back)
            client.received.clear()
            prompt = {"sessionId": session_id, "prompt": f"[[say: {number}]]"}
            await client.send({"jsonrpc": "2.0", "id": send, "method": "session.send", "params": prompt})
            assert "assistant.message" in await told_until_idle(client, session_id)


async def test_prompts_that_are_sent_without_waiting_are_asked_in_order(
    nodes: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store answers the question about the second one first."""
    a, _ = nodes
    alice = await a.user()
    await alice.open("in-order")
    cluster, looks, second = a.node.cluster, 0, asyncio.Event()
    look = cluster.elsewhere

    async def late(key: SessionKey) -> Node | None:
        nonlocal looks
        looks += 1
        if looks == 1:
            with suppress(TimeoutError):
                await asyncio.wait_for(second.wait(), 0.5)
        else:
            second.set()
        return await look(key)

    async with raw(a.gateway_address, await a.key()) as client, asyncio.timeout(30):
        with monkeypatch.context() as patch:
            patch.setattr(cluster, "elsewhere", late)
            for number, text in enumerate(("one", "two", "three")):
                prompt = {"sessionId": "in-order", "prompt": text}
                await client.send({"jsonrpc": "2.0", "id": number, "method": "session.send", "params": prompt})
            answers: dict[int, dict[str, Any]] = {}
            while len(answers) < 3:
                message = await client.receive()
                if "method" not in message:
                    answers[message["id"]] = message
            assert all("result" in answer for answer in answers.values()), answers
        assert await alice.prompts_seen("in-order") == ["one", "two", "three"]


async def test_a_request_that_is_placed_anew_keeps_nothing_of_its_first_try(
    nodes: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other node loads the session between our look who runs it and our asking for its lease."""
    a, b = nodes
    at_a = await a.user()
    await at_a.open("overtaken")
    await at_a.text("overtaken", "hello")
    live = a.node.sessions.find_live(SessionKey("acme", "overtaken"))
    assert live is not None
    await until(lambda: live.evictable)
    assert await a.node.sessions.hibernate(live)
    cluster, looks = b.node.cluster, 0
    look = cluster.elsewhere

    async def late(key: SessionKey) -> Node | None:
        nonlocal looks
        found = await look(key)
        looks += 1
        if looks == 1:
            await at_a.text("overtaken", "and now?")
        return found

    monkeypatch.setattr(cluster, "elsewhere", late)
    async with raw(b.gateway_address, await b.key()) as client, asyncio.timeout(30):
        answer = await client.request("session.history.compact", {"sessionId": "overtaken"})
        assert "result" in answer, answer
        assert looks > 1
        kept = b.node.sessions.find_live(SessionKey("acme", "overtaken"))
        assert kept is None or not kept._holds
        gates = [each.node.sessions._context.admission.gate for each in nodes]
        await until(lambda: all(gate.free("acme", "bob") for gate in gates))
