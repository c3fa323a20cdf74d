"""Two nodes on the same stores: either takes any request, whoever runs the session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from copilot import ToolInvocation, ToolResult
from copilot._jsonrpc import JsonRpcError

from aerodrome.coordination.ports import Lease
from aerodrome.demo.model import ModelServer
from aerodrome.errors import StoreUnavailable
from aerodrome.events import SessionEvent
from aerodrome.gateway.away import AwaySessions
from aerodrome.gateway.bindings import NODE_LINK
from aerodrome.model import SessionKey
from aerodrome.sessions.live import LiveSession
from support.host import Host, User, host, until
from support.sdk_clients import Client, Endpoint, connected, custom_tool

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer.in_thread() as server:
        yield server


class Pair:
    def __init__(self, a: Host, b: Host, keys: dict[str, str], stack: AsyncExitStack) -> None:
        self.a, self.b = a, b
        self._keys = keys
        self._stack = stack

    async def users(self, name: str = "alice") -> tuple[User, User]:
        return await self.a.user(name), await self.b.user(name)

    async def client(self, host: Host, name: str = "alice") -> Client:
        if name not in self._keys:
            self._keys[name] = await host.key(name)
        return await self._stack.enter_async_context(
            connected(Endpoint("gateway", host.gateway_address, self._keys[name]))
        )

    def live(self, session_id: str) -> dict[str, LiveSession]:
        """By node: the session where it is loaded."""
        nodes = {"a": self.a.node, "b": self.b.node}
        found = {name: node.sessions.find_live(SessionKey("acme", session_id)) for name, node in nodes.items()}
        return {name: live for name, live in found.items() if live is not None and live.activation is not None}

    def runs_at(self, session_id: str) -> str:
        """Names of the nodes that have it loaded."""
        return "".join(self.live(session_id))

    async def hibernate(self, session_id: str) -> None:
        for name, live in self.live(session_id).items():
            running = {"a": self.a, "b": self.b}[name]
            async with asyncio.timeout(20):
                while not await running.node.sessions.hibernate(live):
                    await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    directory = tmp_path_factory.mktemp("pair")
    sections: dict[str, Any] = {
        "coordination": {"heartbeat": "100ms", "ttl": "10s"},
        "runtime": {"ping_timeout": "20s"},
    }
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(host(directory, model, server={"node_name": name}, **sections))
            for name in ("a", "b")
        ]
        await until(lambda: not any(running.node.cluster.alone for running in hosts))
        clients = await stack.enter_async_context(AsyncExitStack())
        yield Pair(hosts[0], hosts[1], {}, clients)


async def test_prompts_over_http_go_to_the_node_that_runs_the_session(pair: Pair) -> None:
    at_a, at_b = await pair.users()
    await at_a.open("http-1")
    assert await at_a.text("http-1", "[[say: one]]") == "one"
    assert pair.runs_at("http-1") == "a"
    assert await at_b.text("http-1", "[[say: two]]") == "two"
    assert pair.runs_at("http-1") == "a"
    assert await at_b.prompts_seen("http-1") == ["[[say: one]]", "[[say: two]]"]
    assert await at_b.history("http-1") == await at_a.history("http-1")


async def test_a_stream_of_a_turn_comes_through_another_node(pair: Pair) -> None:
    at_a, at_b = await pair.users()
    await at_a.open("http-2")
    await at_a.text("http-2", "[[say: one]]")
    async with at_b.http.stream(
        "POST",
        "/sessions/http-2/messages",
        json={"prompt": "[[say: a b c d]]"},
        headers={"Accept": "text/event-stream"},
    ) as response:
        assert response.status_code == 200
        lines = [line async for line in response.aiter_lines()]
    seen = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert "user.message" in seen
    assert "assistant.message" in seen
    assert seen[-1] == "end"


async def test_an_error_of_the_other_node_is_told_as_it_is(pair: Pair, model: ModelServer) -> None:
    at_a, at_b = await pair.users()
    await at_a.open("http-3")
    running = asyncio.create_task(at_a.say("http-3", "[[gate: held]]"))
    await model.gate_reached("held")
    busy = await at_b.say("http-3", "now", on_busy="reject", expect=409)
    assert busy["code"] == "session_busy"
    assert busy["turn"].startswith("turn_")
    aborted = await at_b.http.post("/sessions/http-3/abort")
    assert aborted.json() == {"aborted": True}
    model.open_gate("held")
    assert (await running)["turn"]["status"] == "aborted"
    stranger = await pair.b.user("mallory")
    assert (await stranger.http.get("/sessions/http-3")).status_code == 404
    assert (await stranger.say("http-3", "hello", expect=404))["code"] == "not_found"


async def test_a_reader_follows_the_session_from_node_to_node(pair: Pair) -> None:
    at_a, at_b = await pair.users()
    await at_a.open("http-4")
    seen: list[str] = []
    arrived = asyncio.Event()

    async def read() -> None:
        async with at_b.events("http-4") as events:
            arrived.set()
            async for event in events:
                if event["event"] in ("user.message", "assistant.message"):
                    seen.append(event["data"]["data"]["content"])  # noqa: PERF401 - as they come

    reading = asyncio.create_task(read())
    await arrived.wait()
    expected: list[str] = []
    for number, (where, user) in enumerate((("a", at_a), ("b", at_b), ("a", at_a), ("b", at_b))):
        assert await user.text("http-4", f"[[say: {number}]]") == str(number)
        assert pair.runs_at("http-4") == where
        expected += [f"[[say: {number}]]", str(number)]
        await until(partial(lambda count: len(seen) >= count, len(expected)))
        await pair.hibernate("http-4")
    assert seen == expected
    reading.cancel()


async def test_two_first_prompts_at_two_nodes_are_one_queue(pair: Pair) -> None:
    at_a, at_b = await pair.users()
    for number in range(4):
        session_id = f"race-{number}"
        await at_a.open(session_id)
        users = [at_a, at_b] * 3
        answers = await asyncio.gather(
            *(user.text(session_id, f"[[say: {place}]]") for place, user in enumerate(users))
        )
        assert answers == [str(place) for place in range(6)]
        history = await at_a.history(session_id)
        prompts = [content for role, content in history if role == "user"]
        assert sorted(prompts) == sorted(f"[[say: {place}]]" for place in range(6))


async def test_deleted_at_one_node_is_gone_at_the_other(pair: Pair) -> None:
    at_a, at_b = await pair.users()
    await at_a.open("http-5")
    await at_a.text("http-5", "[[say: one]]")
    assert (await at_b.http.delete("/sessions/http-5")).status_code == 204
    assert (await at_a.http.get("/sessions/http-5")).status_code == 404
    assert pair.runs_at("http-5") == ""


async def test_a_client_takes_part_in_a_session_of_the_other_node(pair: Pair) -> None:
    client_a, client_b = await pair.client(pair.a), await pair.client(pair.b)
    calls: list[str] = []

    async def look(invocation: ToolInvocation) -> ToolResult:
        calls.append("b")
        return ToolResult(text_result_for_llm="seen")

    first = await client_a.create(session_id="sdk-1")
    assert await first.turn("[[say: one]]") == "one"
    second = await client_b.resume("sdk-1", tools=[custom_tool("look", look, skip_permission=True)])
    assert await second.turn('[[tool: look {"x": "there"}]][[then]][[say: two]]') == "two"
    assert calls == ["b"]
    assert pair.runs_at("sdk-1") == "a"
    await first.until("session.idle", times=2)
    assert first.answer == "two"
    assert [m for m in await second.prompts_seen() if m == "[[say: one]]"] == ["[[say: one]]"]


async def test_a_client_s_session_moves_and_its_tools_with_it(pair: Pair) -> None:
    """The client is at node b, the session first at b, then loaded by a, then by b again."""
    at_a, _ = await pair.users()
    client = await pair.client(pair.b)
    calls: list[str] = []

    async def look(invocation: ToolInvocation) -> ToolResult:
        calls.append("called")
        return ToolResult(text_result_for_llm="seen")

    chat = await client.create(session_id="sdk-2", tools=[custom_tool("look", look, skip_permission=True)])
    assert await chat.turn("[[say: one]]") == "one"
    assert pair.runs_at("sdk-2") == "b"
    await pair.hibernate("sdk-2")
    chat.events.clear()
    assert await at_a.text("sdk-2", "[[say: two]]") == "two"
    assert pair.runs_at("sdk-2") == "a"
    await chat.until("session.idle")
    assert chat.answers == ["two"]
    assert await chat.turn('[[tool: look {"x": "there"}]][[then]][[say: three]]') == "three"
    assert calls == ["called"]
    assert pair.runs_at("sdk-2") == "a"
    await pair.hibernate("sdk-2")
    assert await chat.turn('[[tool: look {"x": "there"}]][[then]][[say: four]]') == "four"
    assert calls == ["called", "called"]
    assert await chat.prompts_seen() == [
        "[[say: one]]",
        "[[say: two]]",
        '[[tool: look {"x": "there"}]][[then]][[say: three]]',
        '[[tool: look {"x": "there"}]][[then]][[say: four]]',
    ]


async def test_a_client_that_comes_late_is_told_of_a_turn_that_it_has_missed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first event to its end, which is stored nowhere."""
    at_a, _ = await pair.users()
    client = await pair.client(pair.b)
    chat = await client.create(session_id="sdk-3", streaming=True)
    assert await chat.turn("[[say: one]]") == "one"
    await pair.hibernate("sdk-3")
    chat.events.clear()
    with monkeypatch.context() as late:
        late.setattr(AwaySessions, "runs_at", lambda *_: None)
        assert await at_a.text("sdk-3", "[[say: t w o]]") == "t w o"
    (mine,) = [found for found in pair.b.node.gateway.clients if "sdk-3" in found.attachments]
    mine.away.move("sdk-3")
    await chat.until("session.idle")
    assert chat.answers == ["t w o"]
    assert chat.data("session.error") == []
    kinds = [event.type.value for event in chat.events]
    assert kinds.index("user.message") < kinds.index("assistant.message") < kinds.index("session.idle")
    told = [event.id for event in chat.events]
    assert len(told) == len(set(told))


async def test_members_at_different_nodes_see_one_order_and_lose_access_at_once(pair: Pair) -> None:
    at_a, _ = await pair.users()
    bob_at_b = await pair.b.user("bob")
    await at_a.open("team-1")
    assert await at_a.text("team-1", "[[say: one]]") == "one"
    assert (await bob_at_b.say("team-1", "me too", expect=404))["code"] == "not_found"
    # Said at the node that does not run it.
    at_b = await pair.b.user("alice")
    shared = await at_b.http.put("/sessions/team-1/members/bob", json={"role": "writer"})
    assert shared.status_code == 200, shared.text
    seen: list[str] = []
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        async with bob_at_b.events("team-1") as events:
            arrived.set()
            async for event in events:
                if event["event"] in ("user.message", "error"):
                    seen.append(event["event"])  # noqa: PERF401 - as they come
        ended.set()

    reading = asyncio.create_task(read())
    await asyncio.wait_for(arrived.wait(), 20)
    client = await pair.client(pair.b, "bob")
    chat = await client.resume("team-1")
    answers = await asyncio.gather(
        *(
            user.text("team-1", f"[[say: {name}{number}]]")
            for number in range(3)
            for name, user in (("alice", at_a), ("bob", bob_at_b))
        )
    )
    assert answers == [f"{name}{number}" for number in range(3) for name in ("alice", "bob")]
    written = (await at_a.http.get("/sessions/team-1/messages")).json()["messages"]
    authors = {message["content"]: message["author"] for message in written if message["role"] == "user"}
    assert authors["[[say: bob1]]"] == "bob"
    assert authors["[[say: alice1]]"] == "alice"
    await until(lambda: seen.count("user.message") >= 6)
    await until(lambda: len(chat.answers) >= 6)
    assert chat.answers == [content for role, content in await at_a.history("team-1") if role == "assistant"][1:]
    assert pair.runs_at("team-1") == "a"
    assert (await at_a.http.delete("/sessions/team-1/members/bob")).status_code == 204
    await asyncio.wait_for(ended.wait(), 20)
    assert seen[-1] == "error"
    assert (await bob_at_b.say("team-1", "still here", expect=404))["code"] == "not_found"
    with pytest.raises(JsonRpcError, match="not found"):
        await chat.turn("still here")
    reading.cancel()


@pytest.mark.parametrize("door", ["http", "gateway"])
async def test_a_lease_that_was_not_given_back_leads_to_the_node_that_has_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    """The session is not loaded there (any more), and is loaded there again: nobody is sent back and forth."""
    at_a, at_b = await pair.users()
    name = f"kept-{door}"
    key = SessionKey("acme", name)
    await at_a.open(name)
    assert await at_a.text(name, "[[say: one]]") == "one"
    lost: list[Lease] = []
    release_in_store = pair.a.node.stores.coordination.release

    async def release(lease: Lease) -> bool:
        if lease.key != key:
            return await release_in_store(lease)
        lost.append(lease)
        raise StoreUnavailable("it could not be asked")

    # It is tried again all the time, and gets through when the session has been loaded again.
    with monkeypatch.context() as patch:
        patch.setattr(pair.a.node.stores.coordination, "release", release)
        await pair.hibernate(name)
        await until(lambda: bool(lost))
        assert pair.runs_at(name) == ""
        assert await pair.b.node.stores.coordination.holder(key) == lost[0]
        async with asyncio.timeout(20):
            if door == "http":
                assert await at_b.text(name, "[[say: two]]") == "two"
            else:
                client = await pair.client(pair.b)
                assert await (await client.resume(name)).turn("[[say: two]]") == "two"
        assert pair.runs_at(name) == "a"
    assert await at_b.prompts_seen(name) == ["[[say: one]]", "[[say: two]]"]


async def test_a_session_that_is_given_back_late_stays_where_its_client_is(pair: Pair) -> None:
    """The node that ran it says so when the client has long been elsewhere."""
    client = await pair.client(pair.b)
    chat = await client.create(session_id="late-1")
    assert await chat.turn("[[say: one]]") == "one"
    (mine,) = [found for found in pair.b.node.gateway.clients if "late-1" in found.attachments]
    attachment = mine.attachments["late-1"]
    body = b'{"jsonrpc":"2.0","method":"aerodrome.moved","params":{"sessionId":"late-1"}}'
    commands = mine.router.from_runtime(f"{NODE_LINK}{pair.a.node.cluster.own}", body)
    assert commands
    mine.run(commands)
    assert mine.away._returning == {}
    assert mine.attachments["late-1"] is attachment
    assert await chat.turn("[[say: two]]") == "two"


async def test_a_hint_that_comes_late_takes_nobody_away(pair: Pair) -> None:
    """Where the session was loaded before is told behind where it is now, and while somebody else attaches to it."""
    at_a, _ = await pair.users()
    await at_a.open("late-2")
    assert await at_a.text("late-2", "[[say: one]]") == "one"
    client = await pair.client(pair.b)
    chat = await client.resume("late-2")
    live = pair.live("late-2")["a"]
    (mine,) = [found for found in pair.a.node.gateway.clients if "late-2" in found.attachments]
    assert mine.relayed
    attachment = mine.attachments["late-2"]
    async with live._residency._transition:
        pair.a.node.cluster._awake(SessionKey("acme", "late-2"), pair.b.node.cluster.own)
        await asyncio.sleep(0)
        assert mine.attachments.get("late-2") is attachment
    assert await chat.turn("[[say: two]]") == "two"
    assert mine.attachments.get("late-2") is attachment


async def test_a_session_that_is_given_back_while_it_moves_is_looked_for_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await pair.client(pair.b)
    at_a, _ = await pair.users()
    await at_a.open("late-3")
    assert await at_a.text("late-3", "[[say: one]]") == "one"
    chat = await client.resume("late-3")
    (mine,) = [found for found in pair.b.node.gateway.clients if "late-3" in found.away._away]
    (relayed,) = [found for found in pair.a.node.gateway.clients if "late-3" in found.attachments]
    attached, go_on = asyncio.Event(), asyncio.Event()

    async def missed(session_id: str) -> list[SessionEvent]:
        attached.set()
        await go_on.wait()
        return []

    monkeypatch.setattr(mine.away, "_missed", missed)
    mine.away.move("late-3")
    await asyncio.wait_for(attached.wait(), 20)
    # The other node lets go of it, and says so, before the move has come to its end.
    await relayed.detach("late-3")
    mine.away.given_back("late-3", f"{NODE_LINK}{pair.a.node.cluster.own}")
    go_on.set()
    await until(lambda: not mine.away.moving)
    chat.events.clear()
    assert await at_a.text("late-3", "[[say: two]]") == "two"
    await chat.until("session.idle")
    assert chat.answers == ["two"]
