"""What a runtime says may be larger than a frame: that ends the turn which has made it, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from aerodrome.demo.model import ModelServer
from support.host import LASTING, Host, host
from support.misbehaving import raw

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer.in_thread() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    limits = {"max_frame": "256KiB", "max_body": "64KiB", "max_prompt": "64KiB"}
    async with host(tmp_path_factory.mktemp("node"), model, coordination=LASTING, limits=limits) as running:
        yield running


async def test_an_answer_larger_than_a_frame_ends_its_turn_and_not_the_runtime(node: Host) -> None:
    alice, bob = await node.user("alice"), await node.user("bob")
    await bob.open("victim")
    assert await bob.text("victim", "hello") == "echo: hello"
    runtime = node.runtime()
    await alice.open("large")
    answer = await alice.http.post("/sessions/large/messages", json={"prompt": "[[tokens: 45000]]"})
    assert answer.json()["code"] == "too_large", answer.text
    assert not answer.json()["retryable"]
    assert not runtime.lost.is_set(), runtime.lost_reason
    assert await bob.text("victim", "still there?") == "echo: still there?"
    assert await alice.text("large", "and now?") == "echo: and now?"
    assert node.runtime() is runtime


async def test_a_native_client_is_told_the_same(node: Host) -> None:
    async with raw(node.gateway_address, await node.key("alice")) as client, asyncio.timeout(30):
        await client.request("session.create", {"sessionId": "native"})
        runtime = node.runtime()
        params = {"sessionId": "native", "prompt": "[[tokens: 45000]]"}
        await client.send({"jsonrpc": "2.0", "id": 1, "method": "session.send", "params": params})
        kinds: list[str] = []
        while "session.idle" not in kinds:
            message = await client.receive()
            if message.get("method") == "session.event":
                kinds.append(message["params"]["event"]["type"])
        assert "session.error" in kinds
        assert not runtime.lost.is_set(), runtime.lost_reason


async def test_a_prompt_is_measured_as_json(node: Host) -> None:
    async with raw(node.gateway_address, await node.key("alice")) as client:
        await client.request("session.create", {"sessionId": "escaped"})
        params = {"sessionId": "escaped", "prompt": "\x01" * 20_000}
        assert (await client.request("session.send", params))["error"]["data"]["code"] == "too_large"
