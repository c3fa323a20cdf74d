"""Shared sessions with the official SDK and over HTTP: several users take part in one, and each by its role."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from copilot import PermissionHandler
from copilot._jsonrpc import JsonRpcError

from aerodrome.demo.model import ModelServer
from aerodrome.gateway.upstream import Upstream
from aerodrome.model import Role, SessionKey
from aerodrome.policy.method_rules import Handling
from aerodrome.policy.method_table import GROUPS
from aerodrome.policy.profiles import Profile
from support.host import LASTING, Host, host, until
from support.sdk_clients import Chat, Client, Endpoint, connected, custom_tool, requests_of, system_message

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]

CALL = '[[tool: look {"x": "there"}]]'


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer.in_thread() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Host]:
    async with host(tmp_path_factory.mktemp("node"), model, coordination=LASTING) as running:
        yield running


async def endpoint_of(node: Host, user: str = "alice", tenant: str = "acme") -> Endpoint:
    return Endpoint("gateway", node.gateway_address, await node.key(user, tenant))


async def share(node: Host, session_id: str, user: str, role: str) -> None:
    response = await (await node.user("alice")).http.put(f"/sessions/{session_id}/members/{user}", json={"role": role})
    assert response.status_code == 200, response.text
    assert {"user": user, "role": role} in response.json()["members"]


async def unshare(node: Host, session_id: str, user: str) -> None:
    response = await (await node.user("alice")).http.delete(f"/sessions/{session_id}/members/{user}")
    assert response.status_code == 204, response.text


async def refused(work: Any, code: str) -> None:
    with pytest.raises(JsonRpcError) as error:
        await work
    assert error.value.data["code"] == code, error.value


def request(client: Client, method: str, session_id: str, **params: Any) -> Any:
    return client.sdk._client.request(method, {"sessionId": session_id, **params})


def live_of(node: Host, session_id: str) -> Any:
    return node.node.sessions.find_live(SessionKey("acme", session_id))


async def test_two_users_in_one_session_see_each_other_live_in_one_order(node: Host) -> None:
    async with connected(await endpoint_of(node)) as alice, connected(await endpoint_of(node, "bob")) as bob:
        told: list[Any] = []
        bob.sdk.on_lifecycle(told.append)
        hers = await alice.create(session_id="team")
        await hers.turn("My name is Ada")
        await share(node, "team", "bob", "writer")
        await until(lambda: [(event.type, event.session_id) for event in told] == [("session.created", "team")])
        assert [found.session_id for found in await bob.sdk.list_sessions()] == ["team"]
        his = await bob.resume("team")
        hers.events.clear()
        assert "Ada" in await his.turn("What is my name?")
        await hers.until("session.idle")
        assert "Ada" in hers.answer
        his.events.clear()
        await hers.turn("said by alice")
        await his.until("session.idle")
        assert [data.content for data in his.data("user.message")] == ["said by alice"]

        # Prompts of both and one over HTTP at the same time: one queue, one order, and everybody sees the same.
        for chat in (hers, his):
            chat.events.clear()
        http = await node.user("bob")
        await asyncio.gather(
            hers.session.send("a1"), his.session.send("b1"), http.text("team", "b2"), hers.session.send("a2")
        )
        orders = []
        for chat in (hers, his):
            await chat.until("user.message", 4)
            orders.append([data.content for data in chat.data("user.message")])
        assert orders[0] == orders[1]
        await until(lambda: not live_of(node, "team").busy)
        page = (await http.http.get("/sessions/team/messages")).json()["messages"]
        said = [(message["author"], message["content"]) for message in page if message["role"] == "user"]
        assert [text for _, text in said[-4:]] == orders[0]
        assert dict(reversed(item) for item in said) == {
            "My name is Ada": "alice",
            "What is my name?": "bob",
            "said by alice": "alice",
            "a1": "alice",
            "a2": "alice",
            "b1": "bob",
            "b2": "bob",
        }


async def test_a_writer_brings_its_tools_and_they_answer_whoever_asks(node: Host) -> None:
    async with connected(await endpoint_of(node)) as alice, connected(await endpoint_of(node, "bob")) as bob:
        hers = await alice.create(session_id="tools")
        await hers.turn("hello")
        await share(node, "tools", "bob", "writer")
        await bob.resume("tools", tools=[custom_tool("look", skip_permission=True)])
        assert await hers.turn(CALL) == "tool said: look got there"


async def test_removal_ends_everything_at_once_on_both_doors(node: Host, model: ModelServer) -> None:
    async with connected(await endpoint_of(node)) as alice, connected(await endpoint_of(node, "bob")) as bob:
        told: list[Any] = []
        bob.sdk.on_lifecycle(told.append)
        hers = await alice.create(session_id="leave")
        await hers.turn("hello")
        await share(node, "leave", "bob", "writer")
        called = asyncio.Event()
        for_ever = asyncio.Event()

        async def look(invocation: Any) -> Any:
            called.set()
            await for_ever.wait()

        his = await bob.resume("leave", tools=[custom_tool("look", look, skip_permission=True)])
        http = await node.user("bob")
        async with http.events("leave") as events:
            # A turn of his own, which waits for his own tool.
            hers.events.clear()
            waiting = asyncio.create_task(http.http.post("/sessions/leave/messages", json={"prompt": CALL}))
            await called.wait()
            assert (await anext(events))["event"]
            await unshare(node, "leave", "bob")
            await bob.sdk.ping()  # what he was sent before is here
            seen = len(his.events)
            answer = await waiting
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
            last = [event async for event in events][-1]
            assert (last["event"], last["data"]["code"]) == ("error", "not_found")
        await until(lambda: ("session.deleted", "leave") in [(event.type, event.session_id) for event in told])
        # Nobody waits for the tool that went with him: the turn goes on, and he hears nothing of it.
        await hers.until("session.idle")
        assert len(his.events) == seen
        assert (await http.http.get("/sessions/leave/events")).status_code == 404
        assert (await http.http.get("/sessions/leave")).status_code == 404
        for method, params in (
            ("session.send", {"prompt": "again"}),
            ("session.getMessages", {}),
            ("session.mode.get", {}),
            ("session.tools.handlePendingToolCall", {"requestId": "r", "result": "x"}),
        ):
            await refused(request(bob, method, "leave", **params), "not_found")
        await refused(bob.resume("leave"), "not_found")
        await hers.turn("without bob")
        assert len(his.events) == seen
        assert "leave" not in [found.session_id for found in await bob.sdk.list_sessions()]
        bob.forget()


async def test_a_reader_writes_by_no_method_on_the_list(node: Host) -> None:
    async with connected(await endpoint_of(node)) as alice, connected(await endpoint_of(node, "bob")) as bob:
        hers = await alice.create(session_id="read")
        await hers.turn("My name is Ada")
        await share(node, "read", "bob", "reader")
        before = await hers.session.rpc.mode.get()
        # Attached and not: the gateway decides in two places.
        for attached in (False, True):
            if attached:
                await bob.resume("read")
            for _, lines in GROUPS:
                for rule in (rule for line in lines for rule in line):
                    if rule.role in (Role.WRITER, Role.OWNER) and Profile.ISOLATED in rule.profiles:
                        if attached and rule.method in (
                            "session.options.update",
                            "session.eventLog.registerInterest",
                            "session.eventLog.releaseInterest",
                        ):
                            continue  # answered, without effect
                        assert rule.handling in (Handling.FORWARD, Handling.GATEWAY)
                        prompt = {"prompt": "hello"} if rule.method == "session.send" else {}
                        await refused(request(bob, rule.method, "read", **prompt), "forbidden")
        await refused(request(bob, "session.options.update", "read", model="other"), "forbidden")
        assert await hers.session.rpc.mode.get() == before
        assert "Ada" in await hers.turn("What is my name?")
        http = await node.user("bob")
        for response in (
            await http.http.post("/sessions/read/messages", json={"prompt": "hello"}),
            await http.http.post("/sessions/read/abort"),
            await http.http.post("/sessions/read/requests/r1", json={"decision": "approve"}),
            await http.http.patch("/sessions/read", json={"title": "mine"}),
            await http.http.delete("/sessions/read"),
            await http.http.put("/sessions/read/members/carol", json={"role": "reader"}),
        ):
            assert (response.status_code, response.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("loaded", [True, False])
async def test_a_reader_follows_and_is_asked_nothing(node: Host, model: ModelServer, loaded: bool) -> None:
    session_id = f"follow-{loaded}"
    asked: list[str] = []

    async def look(invocation: Any) -> Any:
        asked.append("tool")

    async def permit(*_: Any) -> Any:
        asked.append("permission")

    async def transform(text: str) -> str:
        return text + "SPOKEN LIKE A PIRATE"

    async with connected(await endpoint_of(node)) as alice, connected(await endpoint_of(node, "bob")) as bob:
        sections = {"tone": {"action": transform}}
        hers = await alice.create(
            session_id=session_id,
            tools=[custom_tool("look")],
            on_permission_request=PermissionHandler.approve_all,
            system_message={"mode": "customize", "sections": sections},
        )
        await hers.turn("My name is Ada")
        await share(node, session_id, "bob", "reader")
        history = len(
            (await (await node.user("alice")).http.get(f"/sessions/{session_id}/messages")).json()["messages"]
        )
        if not loaded:
            await alice.leave()
            alice.forget()
            live = live_of(node, session_id)
            if live is not None:
                await until(lambda: live.evictable)
                await node.node.sessions.hibernate(live)
        his: Chat = await bob.resume(session_id, tools=[custom_tool("look", look)], on_permission_request=permit)
        assert "Ada" in str(await his.session.get_events())
        if loaded:
            assert await hers.turn(CALL) == "tool said: look got there"
            await his.until("session.idle")
            assert his.answer == "tool said: look got there"
            # What the owner has made of its session is untouched by a reader that came after it.
            assert "SPOKEN LIKE A PIRATE" in system_message(requests_of(model, CALL)[-1])
        else:
            assert "Ada" in await (await node.user("alice")).text(session_id, "What is my name?")
            await his.until("session.idle")
            assert "Ada" in his.answer
        assert asked == []
        kinds = {event.type.value for event in his.events}
        assert not {kind for kind in kinds if kind.endswith(".requested")}
        messages = (await (await node.user("alice")).http.get(f"/sessions/{session_id}/messages")).json()["messages"]
        assert len(messages) > history
        bob.forget()


async def test_a_writer_that_is_made_a_reader_loses_its_part_and_gets_it_back(node: Host) -> None:
    async with connected(await endpoint_of(node)) as alice, connected(await endpoint_of(node, "bob")) as bob:
        hers = await alice.create(session_id="demote")
        await hers.turn("hello")
        await share(node, "demote", "bob", "writer")
        tool = custom_tool("look", skip_permission=True)
        his = await bob.resume("demote", tools=[tool])
        assert await hers.turn(CALL) == "tool said: look got there"
        await share(node, "demote", "bob", "reader")
        await refused(his.session.send("hello"), "forbidden")
        await refused(request(bob, "session.mode.set", "demote", mode="plan"), "forbidden")
        # His tool has gone from the session, so that its name is free.
        await until(lambda: not live_of(node, "demote")._residency._transition.locked())
        again = await alice.resume("demote", tools=[custom_tool("look", skip_permission=True)])
        his.events.clear()
        assert await again.turn(CALL) == "tool said: look got there"
        await his.until("session.idle")
        await share(node, "demote", "bob", "writer")
        await request(bob, "session.mode.set", "demote", mode="plan")
        assert await request(alice, "session.mode.get", "demote") == "plan"
        assert await his.turn("hello again")


async def test_another_tenant_s_user_of_the_same_name_sees_nothing(node: Host) -> None:
    async with (
        connected(await endpoint_of(node)) as alice,
        connected(await endpoint_of(node, "bob", "bank")) as stranger,
    ):
        told: list[Any] = []
        stranger.sdk.on_lifecycle(told.append)
        hers = await alice.create(session_id="ours")
        await share(node, "ours", "bob", "writer")
        await hers.turn("hello")
        await refused(stranger.resume("ours"), "not_found")
        await refused(request(stranger, "session.send", "ours", prompt="hello"), "not_found")
        await refused(request(stranger, "session.getMessages", "ours"), "not_found")
        assert await stranger.sdk.list_sessions() == []
        http = await node.user("bob", "bank")
        assert (await http.http.get("/sessions/ours")).status_code == 404
        assert (await http.http.get("/sessions/ours/events")).status_code == 404
        assert (await http.http.put("/sessions/ours/members/bob", json={"role": "reader"})).status_code == 404
        assert (await http.http.delete("/sessions/ours/members/bob")).status_code == 404
        await unshare(node, "ours", "bob")
        assert told == []


def unshare_when_asked(node: Host, session: str, patched: pytest.MonkeyPatch) -> None:
    """Bob is taken out of the session in the moment in which the node asks what he may do there."""
    sessions = node.node.sessions.native
    asked = sessions.role

    async def role(*args: Any) -> Any:
        await unshare(node, session, "bob")
        return await asked(*args)

    patched.setattr(sessions, "role", role)


async def test_who_is_removed_while_it_resumes_is_not_let_in(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected(await endpoint_of(node)) as alice, connected(await endpoint_of(node, "bob")) as bob:
        hers = await alice.create(session_id="race")
        await hers.turn("hello")
        await share(node, "race", "bob", "writer")
        with monkeypatch.context() as patched:
            unshare_when_asked(node, "race", patched)
            await refused(bob.resume("race", tools=[custom_tool("look")]), "conflict")
        await refused(bob.resume("race"), "not_found")
        assert len(list(live_of(node, "race").attachments)) == 1
        # The name of its tool is free.
        assert await (await alice.resume("race", tools=[custom_tool("look", skip_permission=True)])).turn(CALL)


async def test_who_is_refused_has_left_its_runtime_by_then(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tools would be in the way of others."""
    leaving, may_leave = asyncio.Event(), asyncio.Event()
    ask = Upstream.request

    async def request(link: Upstream, method: str, params: Any, **more: Any) -> Any:
        if method == "session.detach":
            leaving.set()
            await may_leave.wait()
        return await ask(link, method, params, **more)

    async with connected(await endpoint_of(node)) as alice, connected(await endpoint_of(node, "bob")) as bob:
        hers = await alice.create(session_id="refused")
        await hers.turn("hello")
        await share(node, "refused", "bob", "writer")
        with monkeypatch.context() as patched:
            unshare_when_asked(node, "refused", patched)
            patched.setattr(Upstream, "request", request)
            refusal = asyncio.create_task(refused(bob.resume("refused", tools=[custom_tool("look")]), "conflict"))
            await leaving.wait()
            for _ in range(100):
                await bob.sdk.ping()
            assert not refusal.done()
            may_leave.set()
            await refusal


async def test_who_is_removed_and_back_at_once_hears_the_session(node: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same link: the runtime would take up that the client leaves behind that it is back."""
    async with connected(await endpoint_of(node)) as alice, connected(await endpoint_of(node, "bob")) as bob:
        hers = await alice.create(session_id="back")
        await hers.turn("hello")
        await share(node, "back", "bob", "writer")
        await bob.resume("back")
        leaving, go_on, asked = asyncio.Event(), asyncio.Event(), list[str]()
        ask = Upstream.request

        async def slowly(self: Upstream, method: str, params: Any, **more: Any) -> Any:
            asked.append(method)
            if method == "session.detach":
                leaving.set()
                await go_on.wait()
            return await ask(self, method, params, **more)

        monkeypatch.setattr(Upstream, "request", slowly)
        await unshare(node, "back", "bob")
        await leaving.wait()
        await share(node, "back", "bob", "writer")
        resuming = asyncio.create_task(bob.resume("back"))
        live = live_of(node, "back")
        await until(lambda: len(list(live.attachments)) == 2)
        for _ in range(10):
            await asyncio.sleep(0)
        go_on.set()
        asked_before_it_was_answered = list(asked)
        his = await resuming
        assert asked_before_it_was_answered == ["session.detach"]
        monkeypatch.undo()
        assert await his.turn("hello again") == "echo: hello again"


async def test_in_isolation_user_a_shared_session_runs_in_its_owner_s_runtime(
    model: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with (
        host(tmp_path_factory.mktemp("alone"), model, coordination=LASTING, isolation={"default": "user"}) as node,
        connected(await endpoint_of(node)) as alice,
        connected(await endpoint_of(node, "bob")) as bob,
    ):
        hers = await alice.create(session_id="ours")
        await hers.turn("My name is Ada")
        await share(node, "ours", "bob", "writer")
        his = await bob.resume("ours", tools=[custom_tool("look", skip_permission=True)])
        hers.events.clear()
        assert "Ada" in await his.turn("What is my name?")
        await hers.until("session.idle")
        assert await hers.turn(CALL) == "tool said: look got there"
        assert [runtime.key for runtime in node.node.pool.runtimes] == [("acme", "alice")]
        # What is the member's own runs in a runtime of its own, also when it was copied from there.
        copy = await request(bob, "sessions.fork", "ours")
        assert "Ada" in await (await bob.resume(copy["sessionId"])).turn("What is my name?")
        users = {runtime.key.user for runtime in node.node.pool.runtimes if runtime.key is not None}
        assert users == {"alice", "bob"}
