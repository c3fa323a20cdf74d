"""A node in a process of its own, for its processor time and memory to be measured alone.

`python -m aerodrome.bench.host` reads JSON lines from standard input: first the settings, then commands. It answers
each with one JSON line on standard output. The commands are for what the HTTP API does not offer:

======================================== ==============================================================
``{"do": "key", "tenant", "user"}``      issue an API key: `{"key"}`
``{"do": "runtimes"}``                   the node's runtimes, as `aerodrome runtimes ls` lists them
``{"do": "hibernate", "tenant", "id"?}`` put the tenant's idle sessions, or this one, to sleep: `{"count"}`
``{"do": "flood", "tenant", "sessions",  queue so many prompts in so many sessions of as many users, and
"count", "prompts"}``                    answer once they are recorded: `{}`
``{"do": "waiting"}``                    how many prompts wait, by tenant
======================================== ==============================================================

It drains and ends when standard input does, and so also when whoever started it has died.
"""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import cycle
from typing import Any

import uvloop

from aerodrome.app.node import Node
from aerodrome.config.settings import Settings
from aerodrome.model import Principal
from aerodrome.observability.logging import configure_logging
from aerodrome.sessions.api import OpenSession, SendMessage


async def serve() -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    settings = Settings.model_validate(json.loads(await commands.readline()))
    # As `aerodrome serve` logs: what it costs is part of what is measured.
    configure_logging(settings.telemetry.log_level, settings.telemetry.log_format)
    async with Node(settings) as node:
        _reply({"http": _address(*node.http_address), "gateway": _address(*node.gateway_address)})
        while line := await commands.readline():
            _reply(await _do(node, json.loads(line)))


async def _do(node: Node, command: dict[str, Any]) -> Any:
    match command["do"]:
        case "key":
            _, key = await node.stores.keys.create(command["tenant"], command["user"], frozenset())
            return {"key": key}
        case "runtimes":
            return [runtime.describe() for runtime in node.pool.runtimes]
        case "hibernate":
            wanted = command.get("id")
            sessions = [
                live
                for live in node.sessions.live
                if live.row.key.tenant == command["tenant"] and wanted in (None, live.row.key.id)
            ]
            return {"count": sum([await node.sessions.hibernate(live) for live in sessions])}
        case "flood":
            await _flood(node, command)
            return {}
        case "waiting":
            return node.sessions.waiting
    raise ValueError(f"no such command: {command['do']}")


async def _flood(node: Node, command: dict[str, Any]) -> None:
    callers = [Principal(command["tenant"], f"user{number}") for number in range(command["sessions"])]
    for who in callers:
        await node.sessions.open_session(who, OpenSession(id=f"flood-{who.user}"))
    prompts = cycle(command["prompts"])
    for start in range(0, command["count"], len(callers)):
        # Together: they share commits.
        sent = (
            node.sessions.send(who, f"flood-{who.user}", SendMessage(next(prompts)))
            for who in callers[: command["count"] - start]
        )
        await asyncio.gather(*sent)


def _address(host: str, port: int) -> str:
    return f"{host}:{port}"


def _reply(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(serve())
