"""What the official SDK can say: every method it knows, and every parameter it can open a session with."""

from __future__ import annotations

import ast
import asyncio
import re
from functools import cache
from pathlib import Path
from typing import Any

import copilot
from copilot import CopilotClient, RuntimeConnection

from support.peer import Peer

_SDK = Path(copilot.__file__).parent


def source(name: str) -> str:
    return (_SDK / name).read_text(encoding="utf-8")


@cache
def methods() -> list[str]:
    """Of the generated interface, and those that the client calls by hand."""
    texts = [source(name) for name in ("generated/rpc.py", "client.py", "session.py")]
    found = {method for text in texts for method in re.findall(r"\.request\(\s*\"([A-Za-z.]+)\"", text)}
    assert len(found) > 500
    return sorted(found)


@cache
def open_parameters() -> list[str]:
    """Keys that `create_session` and `resume_session` may put into their payload."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source("client.py"))):
        if isinstance(node, ast.AsyncFunctionDef) and node.name in ("create_session", "resume_session"):
            text = ast.unparse(node)
            found |= set(re.findall(r"payload\['(\w+)'\] = ", text))
            found |= set(re.findall(r"payload: dict\[str, Any\] = \{'(\w+)'", text))
    assert len(found) > 80
    return sorted(found | {"traceparent", "tracestate"})


async def payloads(mode: str | None, *, resume: bool = False, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of `session.create` (or `session.resume`) and `session.options.update` that the client sends."""
    seen: dict[str, dict[str, Any]] = {}
    closed = asyncio.Event()

    async def perform(request: dict[str, Any]) -> Any:
        seen[request["method"]] = request["params"]
        if request["method"] == "connect":
            return {"ok": True, "protocolVersion": 3, "version": "1.0.102"}
        return {"sessionId": request["params"].get("sessionId"), "success": True}

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Peer(reader, writer).serve(perform)
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connection = RuntimeConnection.for_uri(f"127.0.0.1:{port}", connection_token="t")
        client = CopilotClient(connection=connection, mode=mode, base_directory="/nowhere")
        async with asyncio.timeout(20):
            await client.start()
            if resume:
                await client.resume_session("s1", **options)
            else:
                await client.create_session(**options)
            await client.stop()
            await closed.wait()
    method = "session.resume" if resume else "session.create"
    return seen[method], seen.get("session.options.update", {})
