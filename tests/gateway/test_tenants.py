"""Whose sessions a native client sees, and what others and HTTP have to do with them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest
import pytest_asyncio
from copilot import CopilotClient, RuntimeConnection, ToolInvocation, ToolResult
from copilot._jsonrpc import JsonRpcError

from aerodrome.demo.model import ModelServer
from aerodrome.errors import StoreUnavailable
from aerodrome.model import SessionKey
from support.host import LASTING, Host, host, sse_events, until
from support.misbehaving import RawClient, raw
from support.sdk_clients import Chat, Endpoint, connected, custom_tool

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]

CALL = '[[tool: look {"x": "there"}]]'


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer.in_thread() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    limits = {"max_clients": 10, "max_requests": 20}
    sections: dict[str, Any] = {"coordination": LASTING, "limits": limits, "auth": {"key_cache": "100ms"}}
    async with host(tmp_path_factory.mktemp("node"), model, **sections) as running:
        yield running


async def endpoint_of(node: Host, user: str = "alice", tenant: str = "acme") -> Endpoint:
    return Endpoint("gateway", node.gateway_address, await node.key(user, tenant))


def free_tool(handler: Any = None) -> Any:
    return custom_tool("look", handler, skip_permission=True)


async def refused(work: Any, text: str) -> None:
    with pytest.raises(JsonRpcError, match=text):
        await work


async def test_nobody_learns_anything_of_somebody_else_s_session(node: Host) -> None:
    async with (
        connected(await endpoint_of(node)) as alice,
        connected(await endpoint_of(node, "bob")) as bob,
    ):
        told: list[Any] = []
        bob.sdk.on_lifecycle(told.append)
        mine = await alice.create(session_id="private")
        await mine.turn("My name is Ada")
        theirs = await bob.create()
        await theirs.turn("hello")
        assert [found.session_id for found in await bob.sdk.list_sessions()] == [theirs.id]
        assert await bob.sdk.get_session_metadata("private") is None
        not_found = "Session not found: private"
        await refused(bob.resume("private"), not_found)
        await refused(bob.create(session_id="private"), not_found)
        request = bob.sdk._client.request
        for method, params in (
            ("session.getMessages", {}),
            ("session.send", {"prompt": "spoken for alice"}),
            ("session.abort", {}),
            ("session.mode.set", {"mode": "plan"}),
            (
                "session.permissions.handlePendingPermissionRequest",
                {"requestId": "r", "result": {"kind": "approve-once"}},
            ),
            ("session.tools.handlePendingToolCall", {"requestId": "r", "result": "x"}),
            ("sessions.fork", {}),
        ):
            await refused(request(method, {"sessionId": "private", **params}), not_found)
        with pytest.raises(RuntimeError, match="Session file not found"):
            await bob.sdk.delete_session("private")
        assert {event.session_id for event in told} <= {theirs.id}
        # They share a runtime, so that nothing but the gateway is between them.
        assert node.runtime().key == ("acme", None)
        assert "Ada" in await mine.turn("What is my name?")


async def test_two_tenants_may_use_the_same_id(node: Host) -> None:
    async with (
        connected(await endpoint_of(node)) as acme,
        connected(await endpoint_of(node, "alice", "bank")) as bank,
    ):
        first, second = await acme.create(session_id="support"), await bank.create(session_id="support")
        await first.turn("My name is Ada")
        await second.turn("My name is Grace")
        assert "Ada" in await first.turn("What is my name?")
        assert "Grace" in await second.turn("What is my name?")
        assert node.runtime("acme").pid != node.runtime("bank").pid


async def test_http_and_native_are_one_session(node: Host) -> None:
    alice = await node.user("alice")
    await alice.open("both-ways")
    assert "Ada" in await alice.text("both-ways", "My name is Ada")
    async with connected(await endpoint_of(node)) as client:
        chat = await client.resume("both-ways", tools=[free_tool()])
        assert "Ada" in await chat.turn("What is my name?")
        chat.events.clear()
        async with alice.events("both-ways") as events:
            # What either says, both see; and the tool of the one answers the prompt of the other.
            assert await alice.text("both-ways", CALL) == "tool said: look got there"
            await chat.until("session.idle")
            assert chat.answer == "tool said: look got there"
            await chat.turn("said by the SDK")
            async for event in events:
                if event["event"] == "user.message" and event["data"]["data"]["content"] == "said by the SDK":
                    break
        assert [text for role, text in await alice.history("both-ways") if role == "user"] == [
            "My name is Ada",
            "What is my name?",
            CALL,
            "said by the SDK",
        ]


async def test_a_native_session_goes_on_over_http_when_its_client_has_gone(node: Host) -> None:
    alice = await node.user("alice")
    async with connected(await endpoint_of(node)) as client:
        chat = await client.create(system_message={"mode": "append", "content": "SPOKEN LIKE A PIRATE"})
        await chat.turn("My name is Ada")
    live = node.node.sessions.find_live(SessionKey("acme", chat.id))
    if live is not None:
        await until(lambda: live.evictable)
        await node.node.sessions.hibernate(live)
    assert "Ada" in await alice.text(chat.id, "What is my name?")


async def test_a_prompt_that_was_sent_twice_under_two_names_is_two(node: Host) -> None:
    async with connected(await endpoint_of(node)) as client:
        chat = await client.create()
        first, second = await chat.send("one"), await chat.session.send("two")
        await chat.until("assistant.message", 2)
        kinds = [event.type.value for event in chat.events]
        answered = len(kinds) - kinds[::-1].index("assistant.message")
        await until(lambda: "session.idle" in [event.type.value for event in chat.events[answered:]])
        assert first != second
        assert await chat.prompts_seen() == ["one", "two"]


async def test_the_turn_of_a_client_that_vanishes_goes_on(node: Host, model: ModelServer) -> None:
    endpoint = await endpoint_of(node)
    alice = await node.user("alice")
    async with connected(endpoint) as client:
        chat = await client.create()
        await chat.send("[[gate: vanished]] [[say: nobody hears this]]")
        await model.gate_reached("vanished")
        await client.vanish()
        model.open_gate("vanished")
        await answered(alice, chat)
    assert ("assistant", "nobody hears this") in await alice.history(chat.id)


async def test_a_tool_call_of_a_client_that_vanishes_is_failed(node: Host) -> None:
    called = asyncio.Event()

    async def never(invocation: ToolInvocation) -> ToolResult:
        called.set()
        await asyncio.Event().wait()
        raise AssertionError

    alice = await node.user("alice")
    async with connected(await endpoint_of(node)) as client:
        chat = await client.create(tools=[free_tool(never)])
        await chat.send(CALL)
        await called.wait()
        await client.vanish()
        await answered(alice, chat)
    assert "Tool execution failed" in (await alice.history(chat.id))[-1][1]


async def test_a_call_that_is_permitted_when_its_client_has_left_is_failed(node: Host) -> None:
    async def wait(_: Any, __: Any) -> Any:
        await asyncio.Event().wait()

    alice = await node.user("alice")
    async with connected(await endpoint_of(node)) as client:
        chat = await client.create(tools=[custom_tool("look")], on_permission_request=wait)
        await chat.send(CALL)
        asked = await chat.until("permission.requested")
        await chat.session.disconnect()
        path = f"/sessions/{chat.id}/requests/{asked.request_id}"
        assert (await alice.http.post(path, json={"decision": "approve"})).status_code == 204
        await answered(alice, chat)
    assert "Tool execution failed" in (await alice.history(chat.id))[-1][1]


async def test_a_prompt_that_runs_and_may_not_last_is_in_doubt_as_after_a_loss(
    node: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(run: Any) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(node.node.sessions.native, "keep", fails)
    alice = await node.user("alice")
    async with connected(await endpoint_of(node)) as client:
        chat = await client.create()
        with pytest.raises(JsonRpcError, match="perhaps will not last: the disk is full") as caught:
            await chat.send("hello")
        assert caught.value.data["code"] == "turn_interrupted"
        await chat.until("session.idle")
    assert [content for role, content in await alice.history(chat.id) if role == "user"] == ["hello"]


async def answered(user: Any, chat: Chat) -> None:
    async with asyncio.timeout(20):
        while not any(role == "assistant" and content for role, content in await user.history(chat.id)):
            await asyncio.sleep(0.02)


async def test_a_fork_has_the_history_and_goes_its_own_way(node: Host) -> None:
    from copilot.rpc import SessionsForkRequest

    async with connected(await endpoint_of(node)) as client:
        chat = await client.create()
        await chat.turn("My name is Ada")
        await chat.turn("My name is Grace")
        second = [e for e in await chat.session.get_events() if e.type.value == "user.message"][1]
        forked = await client.sdk.rpc.sessions.fork(
            SessionsForkRequest(session_id=chat.id, to_event_id=str(second.id), name="before Grace")
        )
        other = await client.resume(forked.session_id)
        assert await other.prompts_seen() == ["My name is Ada"]
        assert await chat.prompts_seen() == ["My name is Ada", "My name is Grace"]
        await refused(
            client.sdk.rpc.sessions.fork(SessionsForkRequest(session_id=chat.id, to_event_id="no-such-event")),
            "no such event",
        )


async def test_a_deleted_session_is_gone_for_all_who_were_attached(node: Host) -> None:
    alice = await node.user("alice")
    async with connected(await endpoint_of(node)) as client:
        told: list[Any] = []
        client.sdk.on_lifecycle(told.append)
        chat = await client.create()
        await chat.turn("hello")
        assert (await alice.http.delete(f"/sessions/{chat.id}")).status_code == 204
        await until(lambda: any((e.type, e.session_id) == ("session.deleted", chat.id) for e in told))
        await refused(chat.session.send("are you there?"), f"Session not found: {chat.id}")


# --- keys and limits ---


async def test_a_revoked_key_ends_the_connection(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    info, key = await node.node.stores.keys.create("acme", "eve", frozenset())
    async with raw(node.gateway_address, key) as client:
        assert (await client.request("ping"))["result"]["message"] == "pong"
        await node.node.stores.keys.revoke(info.id)
        await node.node.gateway.recheck()
        assert await gone(client)


async def test_a_revoked_key_ends_streams_of_events(node: Host) -> None:
    alice = await node.user("alice")
    await alice.open("followed")
    await alice.http.put("/sessions/followed/members/eve", json={"role": "reader"})
    info, key = await node.node.stores.keys.create("acme", "eve", frozenset())
    headers = {"Authorization": f"Bearer {key}"}
    async with alice.http.stream("GET", "/sessions/followed/events", headers=headers, timeout=20) as stream:
        assert stream.status_code == 200
        await node.node.stores.keys.revoke(info.id)
        [last] = [event async for event in sse_events(stream)]
    assert (last["event"], last["data"]["code"]) == ("error", "unauthenticated")


@contextmanager
def impatient(node: Host, limit: str) -> Iterator[None]:
    """With 2 s of 30, and for no other test: a client that is only slow would be cut off as well."""
    limits = node.node.gateway.limits
    usual = getattr(limits, limit)
    object.__setattr__(limits, limit, 2.0)
    try:
        yield
    finally:
        object.__setattr__(limits, limit, usual)


async def test_who_does_not_say_who_it_is_is_shown_the_door(node: Host) -> None:
    with impatient(node, "connect_timeout"):
        async with raw(node.gateway_address) as client:
            assert await gone(client)


async def gone(client: RawClient) -> bool:
    """Wait until the server has closed."""
    async with asyncio.timeout(20):
        with pytest.raises(ConnectionResetError):
            await _drained(client)
    return True


async def _drained(client: RawClient) -> None:
    while True:
        await client.receive()


async def test_no_more_clients_than_allowed_are_let_in(node: Host) -> None:
    key = await node.key()
    await until(lambda: not node.node.gateway.clients)  # of the test before
    async with AsyncExitStack() as stack:
        first = [await stack.enter_async_context(raw(node.gateway_address, key)) for _ in range(10)]
        eleventh = await stack.enter_async_context(raw(node.gateway_address))
        assert (await eleventh.connect(key))["error"]["data"]["code"] == "capacity"
        assert await gone(eleventh)
        assert {(await client.request("ping"))["result"]["message"] for client in first} == {"pong"}
    await until(lambda: not node.node.gateway.clients)
    async with raw(node.gateway_address, key) as client:
        assert (await client.request("ping"))["result"]["message"] == "pong"


async def test_more_requests_than_allowed_are_refused_and_the_others_answered(node: Host) -> None:
    async with connected(await endpoint_of(node)) as client:
        chat = await client.create()
        await chat.turn("hello")
        pid = node.runtime().pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            request = client.sdk._client.request
            reads = [asyncio.create_task(request("session.getMessages", {"sessionId": chat.id})) for _ in range(25)]
            done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_EXCEPTION)
            # One that was answered before the runtime stood still has none.
            error = next(filter(None, (read.exception() for read in done)))
            assert isinstance(error, JsonRpcError)
            assert error.data["code"] == "rate_limited"
        finally:
            os.kill(pid, signal.SIGCONT)
        answers = await asyncio.gather(*reads, return_exceptions=True)
        # Some may have been sent when there was room again.
        assert 20 <= len([answer for answer in answers if isinstance(answer, dict)]) < 25


async def test_a_client_that_does_not_read_is_cut_off_and_hinders_nobody(node: Host) -> None:
    endpoint = await endpoint_of(node)
    async with connected(endpoint) as other, raw(endpoint.address, endpoint.token) as slow:
        chat = await other.create(streaming=True)
        await chat.turn("hello")
        await slow.request("session.resume", {"sessionId": chat.id})
        gateway = node.node.gateway
        before = len(gateway.clients)
        with impatient(node, "write_timeout"):
            # From here on nobody reads there. Answers in 3,000 pieces are far more than sockets and buffers hold.
            for _ in range(40):
                await chat.turn("[[tokens: 3000]]")
                if len(gateway.clients) < before:
                    break
            await until(lambda: len(gateway.clients) < before)
        assert await chat.turn("and now?") == "echo: and now?"


async def test_an_sdk_without_a_key_is_told_so(node: Host) -> None:
    sdk = CopilotClient(connection=RuntimeConnection.for_uri(node.gateway_address))
    try:
        with pytest.raises(JsonRpcError) as caught:
            await sdk.start()
        assert caught.value.code == -32002
        assert "API key" in caught.value.data["detail"]
    finally:
        await sdk.force_stop()
