"""Options of a session: what the host forces, and what a client has chosen, in the next runtime too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.gateway.upstream import Upstream
from aerodrome.runtime.control import ControlLink
from support.host import LASTING, host, until
from support.misbehaving import raw

pytestmark = pytest.mark.cli

UPDATE = "session.options.update"


@pytest.mark.parametrize(("profile", "skips"), [("isolated", True), ("sandboxed", False)])
async def test_what_a_client_may_choose_holds_when_its_session_is_loaded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, skips: bool
) -> None:
    said: list[Mapping[str, Any]] = []

    def spied(kind: type[Any]) -> None:
        asked = kind.request

        async def request(self: Any, method: str, params: Mapping[str, Any], **more: Any) -> Any:
            if method == UPDATE:
                said.append(params)
            return await asked(self, method, params, **more)

        monkeypatch.setattr(kind, "request", request)

    policy = {"profile": profile, "host_tools": [], "allow_unsandboxed": True}
    isolation = {"default": "user"}
    async with (
        ModelServer() as model,
        host(tmp_path, model, coordination=LASTING, policy=policy, isolation=isolation) as running,
        raw(running.gateway_address, await running.key("alice")) as client,
    ):
        assert "result" in await client.request("session.create", {"sessionId": "s1"})
        assert "result" in await client.request("session.send", {"sessionId": "s1", "prompt": "one", "wait": True})
        # Who runs `isolated` is not heard in this.
        await client.request(UPDATE, {"sessionId": "s1", "skipCustomInstructions": False})
        (live,) = running.node.sessions.live
        assert await running.node.sessions.hibernate(live)
        spied(Upstream)
        spied(ControlLink)
        assert "result" in await client.request("session.send", {"sessionId": "s1", "prompt": "two", "wait": True})
    told = [params["skipCustomInstructions"] for params in said if "skipCustomInstructions" in params]
    assert told[-1] is skips


async def test_what_a_client_asks_while_its_session_is_loaded_anew_is_not_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode that the session had is set again, and then that which the client asks for meanwhile."""
    setting, go_on = asyncio.Event(), asyncio.Event()
    ask = ControlLink.request

    async def slowly(self: ControlLink, method: str, params: dict[str, Any], **more: Any) -> Any:
        if method == "session.mode.set":
            setting.set()
            await go_on.wait()
        return await ask(self, method, params, **more)

    async with (
        ModelServer() as model,
        host(tmp_path, model, coordination=LASTING) as running,
        raw(running.gateway_address, await running.key("alice")) as client,
    ):
        assert "result" in await client.request("session.create", {"sessionId": "s1"})
        assert "result" in await client.request("session.send", {"sessionId": "s1", "prompt": "one", "wait": True})
        assert "result" in await client.request("session.mode.set", {"sessionId": "s1", "mode": "plan"})
        (live,) = running.node.sessions.live
        await until(lambda: live.evictable)
        assert await running.node.sessions.hibernate(live)
        monkeypatch.setattr(ControlLink, "request", slowly)
        for number, method, more in ((1, "session.getMessages", {}), (2, "session.mode.set", {"mode": "interactive"})):
            params = {"sessionId": "s1", **more}
            await client.send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            await setting.wait()
        await client.request("ping")
        (seen_here,) = running.node.gateway.clients
        with_the_runtime = [request.method for request in seen_here.router.unanswered if request.link is not None]
        go_on.set()
        assert "result" in await client.answer_to(2)
        assert (await client.request("session.mode.get", {"sessionId": "s1"}))["result"] == "interactive"
        assert with_the_runtime == []
