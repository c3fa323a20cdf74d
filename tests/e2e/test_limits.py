"""A user over the rate, at both front doors."""

from __future__ import annotations

from pathlib import Path

import pytest

from aerodrome.demo.model import ModelServer
from support.host import host
from support.sdk_clients import Endpoint, connected


async def test_a_user_over_the_rate_is_told_when_to_come_again(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model, limits={"turns_per_minute": 2, "max_turns_per_user": 1}) as running:
        alice, bob = await running.user("alice"), await running.user("bob")
        await alice.open("s1")
        await alice.say("s1", "one")
        await alice.say("s1", "two")
        response = await alice.http.post("/sessions/s1/messages", json={"prompt": "three"})
        problem = response.json()
        assert (response.status_code, problem["code"], problem["retryable"]) == (429, "rate_limited", True)
        assert 0 < problem["retry_after"] <= 30
        assert 1 <= int(response.headers["Retry-After"]) <= 30
        async with connected(Endpoint("gateway", running.gateway_address, await running.key("alice"))) as client:
            chat = await client.resume("s1")
            with pytest.raises(Exception, match="turns a minute") as refused:
                await chat.send("four")
            assert getattr(refused.value, "data", {}).get("code") == "rate_limited"
            assert 0 < getattr(refused.value, "data", {})["retry_after"] <= 30
        await bob.open("b1")
        await bob.say("b1", "one")
        history = (await alice.http.get("/sessions/s1/messages")).json()["messages"]
        assert [message["content"] for message in history if message["role"] == "user"] == ["one", "two"]
