"""A user over the rate, at both front doors."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.host import host, until
from support.sdk_clients import Endpoint, connected


async def test_a_user_over_the_rate_is_told_when_to_come_again(tmp_path: Path, model: ModelServer) -> None:
    # One more each minute, which is time enough to be refused twice.
    async with host(tmp_path, model, limits={"turns_per_minute": 1, "max_turns_per_user": 1}) as running:
        alice, bob = await running.user("alice"), await running.user("bob")
        await alice.open("s1")
        await alice.say("s1", "one")
        response = await alice.http.post("/sessions/s1/messages", json={"prompt": "two"})
        problem = response.json()
        assert (response.status_code, problem["code"], problem["retryable"]) == (429, "rate_limited", True)
        assert 0 < problem["retry_after"] <= 60
        assert 1 <= int(response.headers["Retry-After"]) <= 60
        async with connected(Endpoint("gateway", running.gateway_address, await running.key("alice"))) as client:
            chat = await client.resume("s1")
            with pytest.raises(Exception, match="turns a minute") as refused:
                await chat.send("three")
            assert getattr(refused.value, "data", {}).get("code") == "rate_limited"
            assert 0 < getattr(refused.value, "data", {})["retry_after"] <= 60
        await bob.open("b1")
        await bob.say("b1", "one")
        history = (await alice.http.get("/sessions/s1/messages")).json()["messages"]
        assert [message["content"] for message in history if message["role"] == "user"] == ["one"]


async def test_one_prompt_too_many_is_refused_at_both_doors_and_told_when_to_come_again(
    tmp_path: Path, model: ModelServer
) -> None:
    async with host(tmp_path, model, limits={"max_turns": 1, "max_waiting_per_user": 1}) as running:
        alice, bob = await running.user("alice"), await running.user("bob")
        for session in ("s1", "s2", "s3"):
            await alice.open(session)
        turn = asyncio.create_task(alice.text("s1", "[[gate: held]] [[say: finished]]"))
        await model.gate_reached("held")
        waiting = asyncio.create_task(alice.text("s2", "[[say: at last]]"))
        await until(lambda: running.node.sessions.waiting == {"acme": 1})
        response = await alice.http.post("/sessions/s3/messages", json={"prompt": "one more"})
        problem = response.json()
        assert (response.status_code, problem["code"], problem["retryable"]) == (429, "rate_limited", True)
        assert 1 <= problem["retry_after"] <= 150
        assert problem["retry_after"] <= int(response.headers["Retry-After"]) <= 150
        async with connected(Endpoint("gateway", running.gateway_address, await running.key("alice"))) as client:
            chat = await client.resume("s3")
            with pytest.raises(Exception, match="wait already") as refused:
                await chat.send("one more")
            data = getattr(refused.value, "data", {})
            assert (data["code"], data["retryable"]) == ("rate_limited", True)
            assert 1 <= data["retry_after"] <= 150
        await bob.open("b1")
        other = asyncio.create_task(bob.text("b1", "[[say: mine]]"))  # his own line is empty
        await until(lambda: running.node.sessions.waiting == {"acme": 2})
        model.open_gate("held")
        assert [await task for task in (turn, waiting, other)] == ["finished", "at last", "mine"]
        assert (await alice.http.get("/sessions/s3/messages")).json()["messages"] == []
        assert running.node.sessions.waiting == {}
