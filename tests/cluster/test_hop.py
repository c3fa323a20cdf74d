"""What a client sees whose sessions run at another node, when that node drains, or the link between the two is cut."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from copilot import ToolInvocation, ToolResult
from copilot._jsonrpc import JsonRpcError
from copilot.generated.rpc import PermissionDecisionApproveOnce

from aerodrome.app.observe import state_of
from aerodrome.demo.model import ModelServer
from aerodrome.gateway import away
from aerodrome.gateway import requests as gateway_requests
from aerodrome.gateway.bindings import NODE_LINK
from aerodrome.gateway.client import GatewayClient
from aerodrome.model import SessionKey
from aerodrome.peers.link import PeerLink
from support.hop import Hop, hop
from support.host import until
from support.misbehaving import raw
from support.sdk_clients import Chat, Client, Endpoint, connected, custom_tool

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]

#: A slow machine is no runtime that hangs.
PATIENT = {"ping_timeout": "20s"}
CALL = '[[tool: look {"x": "there"}]]'
QUESTION = '[[tool: ask_user {"question": "Which colour?"}]]'


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer.in_thread() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory, model: ModelServer) -> AsyncIterator[Hop]:
    async with hop(tmp_path_factory.mktemp("nodes"), model, runtime=PATIENT) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(nodes: Hop) -> AsyncIterator[Client]:
    await until(lambda: not nodes.front.node.gateway.clients and not relayed(nodes))
    async with connected(await endpoint(nodes)) as found:
        yield found


async def endpoint(nodes: Hop) -> Endpoint:
    return Endpoint("forwarded", nodes.front.gateway_address, await nodes.front.key())


def here(nodes: Hop) -> GatewayClient:
    """The client as the node sees it that it is connected to."""
    (found,) = nodes.front.node.gateway.clients
    return found


def relayed(nodes: Hop) -> list[GatewayClient]:
    return [found for found in nodes.back.node.gateway.clients if found.relayed and not found.gone]


def cut(nodes: Hop) -> None:
    """The link between the two nodes, on which the client's frames go."""
    (link,) = [link for link in here(nodes).links if link.id.startswith(NODE_LINK)]
    link.connection.abort("cut by the test")


class Seen:
    def __init__(self, chat: Chat) -> None:
        self.events: list[Any] = []
        chat.session.on(self.events.append)

    @property
    def repeated(self) -> list[str]:
        return [str(event) for event, times in Counter(event.id for event in self.events).items() if times > 1]


class Held:
    """A callback of the client that waits the first time it is called."""

    def __init__(self, answer: Any) -> None:
        self.called, self.answer_it = asyncio.Event(), asyncio.Event()
        self.times = 0
        self._answer = answer

    async def __call__(self, *_: Any) -> Any:
        self.times += 1
        if self.times == 1:
            self.called.set()
            await self.answer_it.wait()
        return self._answer


Open = Callable[[Client, Held], Awaitable[Chat]]


async def with_tool(client: Client, held: Held) -> Chat:
    async def look(invocation: ToolInvocation) -> ToolResult:
        await held()
        return ToolResult(text_result_for_llm="seen")

    return await client.create(tools=[custom_tool("look", look, skip_permission=True)])


async def with_permission(client: Client, held: Held) -> Chat:
    return await client.create(tools=[custom_tool("look")], on_permission_request=held)


async def with_input(client: Client, held: Held) -> Chat:
    return await client.create(on_user_input_request=held)


async def with_hook(client: Client, held: Held) -> Chat:
    return await client.create(tools=[custom_tool("look", skip_permission=True)], hooks={"on_pre_tool_use": held})


@pytest.mark.parametrize(
    ("begin", "answer", "prompt"),
    [
        (with_tool, None, CALL),
        (with_permission, PermissionDecisionApproveOnce(), CALL),
        (with_input, {"answer": "blue", "wasFreeform": True}, QUESTION),
        (with_hook, None, CALL),
    ],
    ids=["tool", "permission", "input", "hook"],
)
async def test_the_link_is_cut_while_the_client_is_asked_something(
    nodes: Hop, client: Client, begin: Open, answer: Any, prompt: str
) -> None:
    """As if the client had connected anew: the turn ends, and the next one is as any."""
    held = Held(answer)
    chat = await begin(client, held)
    seen = Seen(chat)
    await chat.turn("one")
    await chat.send(prompt)
    await asyncio.wait_for(held.called.wait(), 20)
    cut(nodes)
    await until(lambda: bool(relayed(nodes)) and here(nodes).router.sessions.is_ready(chat.id))
    held.answer_it.set()
    await chat.until("session.idle")
    assert seen.repeated == []
    assert await chat.turn(prompt) != ""
    assert held.times >= 2
    assert await chat.prompts_seen() == ["one", prompt, prompt]
    assert seen.repeated == []
    assert nodes.front.node.pool.runtimes == []


async def test_a_drain_takes_the_sessions_to_the_client_s_own_node(
    tmp_path: Path, model: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_requests, "_RETURNS", 3)
    async with (
        hop(tmp_path, model, server={"drain_timeout": "60s"}, runtime=PATIENT) as nodes,
        connected(await endpoint(nodes)) as client,
    ):
        await _drained(nodes, client, model)


async def _drained(nodes: Hop, client: Client, model: ModelServer) -> None:
    calls: list[str] = []

    async def look(invocation: ToolInvocation) -> ToolResult:
        calls.append("called")
        return ToolResult(text_result_for_llm="seen")

    chat = await client.create(tools=[custom_tool("look", look, skip_permission=True)])
    seen = Seen(chat)
    assert await chat.turn(CALL) == "tool said: seen"
    await chat.session.set_model("gpt-4.1-mini")
    await chat.send("[[gate: last]] two")
    await model.gate_reached("last")
    draining = asyncio.create_task(nodes.back.node.drain())
    await until(lambda: nodes.back.node.sessions.draining)
    # As long as it has the session, somebody else's prompt is given back; who sends it is not kept waiting for ever.
    with pytest.raises(JsonRpcError) as caught:
        await chat.session.send("now")
    assert caught.value.data["code"] == "session_busy"
    model.open_gate("last")
    await chat.until("session.idle")
    assert chat.answer.endswith("two")
    # Also while the other still holds it: nothing is answered `draining`.
    assert await chat.turn(CALL) == "tool said: seen"
    await draining
    key = SessionKey("acme", chat.id)
    assert nodes.front.node.sessions.is_loaded(key)
    assert not nodes.back.node.sessions.is_loaded(key)
    assert len(calls) == 2
    assert (await chat.session.rpc.model.get_current()).model_id == "gpt-4.1-mini"
    said = [prompt.rpartition("\n")[2] for prompt in await chat.prompts_seen()]
    assert said == [CALL, "[[gate: last]] two", CALL]
    assert seen.repeated == []
    assert here(nodes).away.keys == []


async def test_nothing_is_left_when_the_client_goes_in_the_middle_of_a_move(nodes: Hop, client: Client) -> None:
    chat = await client.create()
    await chat.turn("one")
    mine = here(nodes)
    cut(nodes)
    await client.vanish()
    client.forget()
    await until(lambda: not nodes.front.node.gateway.clients and not relayed(nodes))
    assert mine.attachments == {}
    assert list(mine.links) == []
    assert not mine.links.opening
    live = nodes.back.node.sessions.find_live(SessionKey("acme", chat.id))
    await until(lambda: live is None or not live.attachments)


async def test_a_deleted_session_is_forgotten_at_both_nodes(nodes: Hop, client: Client) -> None:
    chat = await client.create()
    await chat.turn("one")
    alice = await nodes.back.user("alice")
    assert (await alice.http.delete(f"/sessions/{chat.id}")).status_code == 204
    await until(lambda: here(nodes).away.keys == [] and not here(nodes).router.sessions.is_bound(chat.id))
    client.forget()


async def test_a_link_between_nodes_is_not_taken_for_a_stranger(nodes: Hop, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = nodes.back.node.gateway
    monkeypatch.setattr(gateway, "limits", replace(gateway.limits, connect_timeout=0.2))
    (node,) = [found for found in await nodes.front.node.stores.coordination.nodes() if found.name == "back"]
    link = await PeerLink.open(node, own="front-1", timeout=10, silence=10)
    with pytest.raises(ConnectionResetError):  # whoever comes later and says nothing is cut off
        async with raw(nodes.back.gateway_address) as stranger:
            await stranger.receive()
    assert not link.closed
    await link.aclose()


async def test_a_client_whose_sessions_run_at_another_node_is_counted_once(nodes: Hop, client: Client) -> None:
    chat = await client.create()
    await chat.turn("one")
    assert len(relayed(nodes)) == 1
    front, back = (state_of(each.node, "1.0") for each in (nodes.front, nodes.back))
    assert (front.gateway_clients, back.gateway_clients) == (1, 0)


async def test_only_who_has_a_node_s_token_speaks_for_others(nodes: Hop, client: Client) -> None:
    chat = await client.create()
    await chat.turn("one")
    alice = {"tenant": "acme", "user": "alice", "roles": ["admin"]}
    bob = await nodes.front.key("bob")
    tokens = {node.name: node.peer_token for node in await nodes.front.node.stores.coordination.nodes()}
    for token in ("", "wrong", tokens["front"]):
        async with raw(nodes.back.gateway_address) as stranger:
            for hello in ({"onBehalfOf": alice}, {"node": "front-1"}):
                answer = await stranger.request("connect", {"token": token, **hello})
                assert answer["error"]["code"] == -32002
    async with raw(nodes.front.gateway_address) as stranger:
        mine: dict[str, Any] = {"token": bob, "onBehalfOf": alice, "node": "front-1"}
        assert "result" in await stranger.request("connect", mine)
        said = await stranger.request("auth.getStatus", {"sessionId": chat.id})
        assert said["result"]["login"] == "bob"
        # Nothing but what concerns a session goes to the node that runs it, were it named.
        answer = await stranger.request("connect", {"token": "wrong", "onBehalfOf": alice, "sessionId": chat.id})
        assert answer["error"]["code"] == -32002
        assert {found.who.user for found in relayed(nodes)} == {"alice"}
        answer = await stranger.request("session.getMessages", {"sessionId": chat.id})
        assert "Session not found" in answer["error"]["message"]
        for method in ("aerodrome.send", "aerodrome.events", "aerodrome.call"):
            answer = await stranger.request(method, {"who": alice, "session": chat.id, "sessionId": chat.id})
            assert answer["error"]["data"]["code"] == "forbidden"


async def test_a_session_whose_node_cannot_be_reached_is_not_waited_for_for_ever(
    nodes: Hop, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is there again when the node is."""
    chat = await client.create()
    seen = Seen(chat)
    await chat.turn("one")
    cluster = nodes.front.node.cluster
    with monkeypatch.context() as unreachable:
        unreachable.setattr(nodes.front.node.gateway, "patience", 0.5)
        unreachable.setattr(away, "_LOOK", 0.1)
        wrong = replace(nodes.front.node.cluster.node(nodes.back.node.cluster.own), address="127.0.0.1:1")  # type: ignore[type-var]

        async def elsewhere(key: SessionKey) -> Any:
            return wrong

        unreachable.setattr(cluster, "elsewhere", elsewhere)
        cut(nodes)
        for call in (chat.session.get_events(), chat.session.send("two")):
            with pytest.raises(JsonRpcError) as caught:
                await asyncio.wait_for(call, 20)
            assert caught.value.data["code"] == "session_busy"
    assert await chat.turn("three") == "echo: three"
    assert seen.repeated == []
    assert await chat.prompts_seen() == ["one", "three"]
