"""Calls of tools that clients run themselves, when these have gone: nobody waits for an answer that never comes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from aerodrome.errors import AerodromeError
from aerodrome.model import SessionKey, TurnStatus
from aerodrome.runtime.ports import Runtime
from aerodrome.sessions.live import LiveSession
from support.scripted_node import ScriptedNode, scripted_node, settle


class Part:
    """A client's part in a session, as far as its tools go (`sessions.attachments.Attachment`)."""

    passive = is_replay = forces_options = False

    def __init__(self, session_id: str, *tools: str) -> None:
        self.tools = frozenset(tools)
        #: It lets go of the session only then.
        self.leaves = asyncio.Event()
        self.leaves.set()
        self._session_id = session_id

    async def open(self, runtime: Runtime, *, resume: bool) -> None:
        if not resume:
            await runtime.control.request("session.create", {"sessionId": self._session_id})

    async def close(self) -> None:
        await self.leaves.wait()

    def finish(self, error: AerodromeError) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **more: None


async def live_of(node: ScriptedNode) -> LiveSession:
    """A session that is loaded, with a turn that waits for the answer of its model."""
    await node.open("s1")
    await node.say("s1", "nothing")
    await node.send("s1", "call the tool")
    await settle()
    live = node.service.find_live(SessionKey("acme", "s1"))
    assert live is not None
    return live


def call(node: ScriptedNode, tool: str, request_id: str) -> None:
    node.loaded("s1").emit("external_tool.requested", requestId=request_id, toolName=tool)


def failed(node: ScriptedNode) -> list[str]:
    """Which calls the runtime was told not to wait for."""
    asked = (params for method, params in node.runtime.calls if method == "session.tools.handlePendingToolCall")
    return [params["requestId"] for params in asked if "has gone" in params["error"]]


async def end(node: ScriptedNode, live: LiveSession) -> None:
    await node.loaded("s1").answer()
    await live.turns.quiet()
    assert live.row.last_turn is not None
    assert live.row.last_turn.status is TurnStatus.COMPLETED


async def test_a_call_is_failed_when_its_owner_leaves_and_when_it_comes_behind_that() -> None:
    """The runtime has not noticed yet that the client has gone; or somebody has permitted the call only now."""
    async with scripted_node() as node:
        live = await live_of(node)
        part = cast("Any", Part("s1", "look"))
        await live.attach(part)
        call(node, "look", "before")
        await settle()
        assert failed(node) == []
        part.leaves.clear()
        leaving = asyncio.create_task(live.detach(part))
        await settle()
        call(node, "look", "meanwhile")
        part.leaves.set()
        await leaving
        call(node, "look", "behind")
        await settle()
        assert failed(node) == ["before", "meanwhile", "behind"]
        await end(node, live)


async def test_a_tool_that_somebody_else_has_brought_along_since_is_waited_for() -> None:
    async with scripted_node() as node:
        live = await live_of(node)
        first, second = (cast("Any", Part("s1", "look")) for _ in range(2))
        await live.attach(first)
        await live.detach(first)
        await live.attach(second)
        call(node, "look", "one")
        call(node, "unknown", "two")  # a server that is not ours alone has clients of its own
        await settle()
        assert failed(node) == []
        await live.detach(second)
        assert failed(node) == ["one"]
        await end(node, live)


async def test_what_is_remembered_of_those_who_have_gone_is_bounded() -> None:
    async with scripted_node() as node:
        live = await live_of(node)
        names = [f"tool-{number}" for number in range(1_000)]
        for tools in (["first"], ["x" * 257, *names]):
            part = cast("Any", Part("s1", *tools))
            await live.attach(part)
            await live.detach(part)
        for tool in ("first", "x" * 257, names[-1]):
            call(node, tool, tool)
        await settle()
        assert failed(node) == [names[-1]]
        await end(node, live)
        # Nothing of that turn is under way any more.
        await node.send("s1", "call another tool")
        await settle()
        call(node, names[0], "of another turn")
        await settle()
        assert failed(node) == [names[-1]]
        await end(node, live)
