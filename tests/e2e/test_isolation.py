"""Who shares what with whom, who may see what, and what a session is opened with."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.host import Host, host

pytestmark = pytest.mark.cli


async def test_isolation_user_gives_each_user_a_runtime_and_tenant_shares_one(
    tmp_path: Path, model: ModelServer
) -> None:
    async with host(tmp_path, model, isolation={"default": "tenant", "tenants": {"bank": "user"}}) as running:
        for tenant in ("acme", "bank"):
            for name in ("alice", "bob"):
                user = await running.user(name, tenant)
                await user.open(f"chat-{name}")
                await user.say(f"chat-{name}", f"I am {name} of {tenant}")
        keys = sorted(str(runtime.key) for runtime in running.node.pool.runtimes if runtime.key)
        assert keys == ["acme/*", "bank/alice", "bank/bob"]


async def test_trap_04_ownership_is_a_row_and_not_part_of_the_id(acme: Host) -> None:
    """`alice` neither opens nor sees `alice-bob-1`, which belongs to `alice-bob`."""
    alice, alice_bob, eve = (
        await acme.user("alice"),
        await acme.user("alice-bob"),
        await acme.user("alice-bob", tenant="evil"),
    )
    await alice_bob.open("alice-bob-1")
    await alice_bob.say("alice-bob-1", "secret")
    for intruder in (alice, eve):
        for method, path in [
            ("GET", "/sessions/alice-bob-1"),
            ("PATCH", "/sessions/alice-bob-1"),
            ("DELETE", "/sessions/alice-bob-1"),
            ("GET", "/sessions/alice-bob-1/messages"),
            ("POST", "/sessions/alice-bob-1/messages"),
            ("GET", "/sessions/alice-bob-1/events"),
            ("POST", "/sessions/alice-bob-1/abort"),
            ("POST", "/sessions/alice-bob-1/requests/r1"),
        ]:
            body = {"PATCH": {"title": "mine"}}.get(method, {"prompt": "x"} if "messages" in path else None)
            if "requests" in path:
                body = {"decision": "approve"}
            present = await intruder.http.request(method, path, json=body)
            absent = await intruder.http.request(method, path.replace("alice-bob-1", "no-such"), json=body)
            assert present.status_code == 404, (method, path, present.text)
            strip = {"request_id", "instance"}
            assert {k: v for k, v in present.json().items() if k not in strip} == {
                k: v for k, v in absent.json().items() if k not in strip
            }
    assert (await alice.http.post("/sessions", json={"id": "alice-bob-1"})).status_code == 404
    # Another tenant has the same id for itself.
    assert (await eve.http.post("/sessions", json={"id": "alice-bob-1"})).status_code == 201
    assert await eve.prompts_seen("alice-bob-1") == []
    assert next(c for _, c in await alice_bob.history("alice-bob-1")) == "secret"


async def test_trap_18_lists_show_a_caller_its_own_sessions_only(acme: Host) -> None:
    """The runtime would tell every connection of every session; here three users share one."""
    names = [("alice", "acme"), ("bob", "acme"), ("alice", "bank")]
    for number, (name, tenant) in enumerate(names):
        user = await acme.user(name, tenant)
        await user.open(f"s{number}", title=f"of {name}")
        await user.say(f"s{number}", "hello")
    for number, (name, tenant) in enumerate(names):
        user = await acme.user(name, tenant)
        listed = (await user.http.get("/sessions")).json()["sessions"]
        assert [session["id"] for session in listed] == [f"s{number}"]


async def test_trap_05_sessions_without_an_id_never_collide(acme: Host) -> None:
    alice = await acme.user("alice")
    opened = await asyncio.gather(*(alice.http.post("/sessions", json={}) for _ in range(50)))
    assert len({response.json()["id"] for response in opened}) == 50


async def test_trap_12_opening_again_is_the_same_session(acme: Host) -> None:
    alice = await acme.user("alice")
    assert (await alice.http.post("/sessions", json={"id": "s1"})).status_code == 201
    await alice.say("s1", "one")
    assert (await alice.http.post("/sessions", json={"id": "s1"})).status_code == 200
    assert await alice.prompts_seen("s1") == ["one"]


async def test_trap_11_concurrent_opens_and_first_prompts_make_one_session(acme: Host) -> None:
    alice = await acme.user("alice")

    async def open_and_say(number: int) -> int:
        status = (await alice.http.post("/sessions", json={"id": "s1"})).status_code
        await alice.say("s1", f"prompt {number}")
        return status

    statuses = await asyncio.gather(*(open_and_say(number) for number in range(8)))
    assert sorted(statuses) == [200] * 7 + [201]
    assert sorted(await alice.prompts_seen("s1")) == [f"prompt {number}" for number in range(8)]
    assert acme.runtime().reserved == 1


async def test_trap_15_credentials_are_injected_at_every_resume_and_never_stored(
    tmp_path: Path, model: ModelServer
) -> None:
    provider = {"api_key": "sk-very-secret-value"}
    async with host(tmp_path, model, provider=provider) as running:
        alice = await running.user("alice")
        await alice.open("s1")
        await alice.say("s1", "one")
        for _ in range(2):
            assert await running.node.sessions.hibernate(running.node.sessions.live[0])
            await alice.say("s1", "again")
        running.process().kill()
        assert await alice.prompts_seen("s1") == ["one", "again", "again"]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"sk-very-secret-value" not in path.read_bytes(), path


async def test_a_session_gets_only_the_tools_that_policy_allows(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    refused = await alice.http.post("/sessions", json={"id": "s1", "tools": ["bash"]})
    assert refused.status_code == 400
    assert "bash" in refused.json()["detail"]
    assert "ask_user" in refused.json()["detail"]
    await alice.open("s2", tools=["ask_user"])
    await alice.say("s2", "hello")
    offered = set(model.requests[-1].tools)
    assert offered == {"ask_user"}
    await alice.open("s3", tools=[])
    await alice.say("s3", "hello")
    assert not model.requests[-1].tools
    # A model that calls a tool it was not offered gets nothing done.
    marker = Path(f"/tmp/aerodrome-{model.port}")
    command = json.dumps({"command": f"touch {marker}", "description": "x"})
    await alice.say("s3", f"[[tool: bash {command}]]")
    assert not marker.exists()


async def test_host_tools_ask_for_permission_over_http(tmp_path: Path, model: ModelServer) -> None:
    policy = {"host_tools": ["bash"], "allow_unsandboxed": True}
    async with host(tmp_path, model, isolation={"default": "user"}, policy=policy) as running:
        alice = await running.user("alice")
        await alice.open("s1", tools=["bash"])
        for decision, happens in (("deny", False), ("approve", True)):
            marker = tmp_path / f"made-{decision}"
            command = json.dumps({"command": f"touch {marker}", "description": "make a file"})
            async with alice.events("s1") as events:
                turn = asyncio.create_task(alice.say("s1", f"[[tool: bash {command}]]"))
                async for event in events:
                    if event["event"] == "permission.requested":
                        break
                request_id = event["data"]["data"]["requestId"]
                answered = await alice.http.post(f"/sessions/s1/requests/{request_id}", json={"decision": decision})
                assert answered.status_code in (200, 204), answered.text
                await turn
            assert marker.exists() is happens


async def test_a_request_that_nobody_answers_is_denied_and_says_so(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model, sessions={"request_timeout": "300ms"}) as running:
        alice = await running.user("alice")
        await alice.open("s1")
        question = json.dumps({"question": "Anybody?"})
        async with alice.events("s1") as events:
            answer = await alice.text("s1", f"[[tool: ask_user {question}]]")
            async for event in events:
                if event["event"] == "aerodrome.request_expired":
                    break
        assert "Nobody answered" in answer


async def test_system_message_and_model_of_the_session_reach_the_model(acme: Host, model: ModelServer) -> None:
    alice = await acme.user("alice")
    await alice.open("s1", system_message="Always answer in rhyme.", model="gpt-4.1")
    await alice.say("s1", "hello")
    assert await acme.node.sessions.hibernate(acme.node.sessions.live[0])
    await alice.say("s1", "hello")
    for request in model.requests[-2:]:
        system = next(m for m in request.messages if m["role"] == "system")
        assert "Always answer in rhyme." in str(system["content"])
        assert "/home" not in str(system["content"])
