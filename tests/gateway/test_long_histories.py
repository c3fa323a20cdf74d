"""Long histories are looked through in threads: whoever has one waits for it, and nobody else."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from aerodrome.demo.model import ModelServer
from aerodrome.events import SessionEvent
from aerodrome.model import SessionKey
from aerodrome.sessions.fork import forked_history
from aerodrome.sessions.replay import unpublished
from aerodrome.sessions.wake import take_lease
from aerodrome.statestore.provider import EVENTS_PATH
from support.host import LASTING, Host, host
from support.misbehaving import raw

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]

KEY = SessionKey("acme", "long")


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer.in_thread() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    async with host(tmp_path_factory.mktemp("node"), model, coordination=LASTING) as running:
        context = running.node.sessions._context
        await (await running.user("alice")).open("long")
        kinds = ("assistant.message", "user.message")
        lines = [
            json.dumps({"id": str(uuid.uuid4()), "type": kinds[n % 2], "data": {"content": "y" * 900}})
            for n in range(1_001)
        ]
        row = await context.directory.get(KEY)
        assert row is not None
        lease, _ = await take_lease(context, row)
        await context.files.write(KEY, lease.epoch, EVENTS_PATH, "\n".join(lines) + "\n")
        await context.leases.release(lease)
        yield running


def spied(function: Callable[..., Any], found: list[bool]) -> Callable[..., Any]:
    """Notes whether it is called where everybody waits for it."""

    def call(*args: Any, **more: Any) -> Any:
        found.append(threading.current_thread() is threading.main_thread())
        return function(*args, **more)

    return call


async def test_a_fork(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_way: list[bool] = []
    monkeypatch.setattr("aerodrome.sessions.fork.forked_history", spied(forked_history, in_the_way))
    async with raw(node.gateway_address, await node.key("alice")) as client:
        answer = await client.request("sessions.fork", {"sessionId": "long", "toEventId": "nope"})
    assert answer["error"]["data"]["code"] == "invalid"
    assert in_the_way == [False]


async def test_what_nobody_was_told_of(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_way: list[bool] = []
    monkeypatch.setattr("aerodrome.sessions.live.unpublished", spied(unpublished, in_the_way))
    row = await node.node.sessions._context.directory.get(KEY)
    assert row is not None
    live = node.node.sessions._sessions.ensure(row)
    live.hub.publish(SessionEvent("e-cut-off", "user.message", b'{"id":"e-cut-off","type":"user.message"}'))
    await live._on_history(await node.node.sessions._context.files.read(KEY, EVENTS_PATH))
    assert in_the_way == [False]
