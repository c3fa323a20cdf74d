"""The log of a whole run: a turn is found in it by its trace, and nothing that was said or is secret is."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from support.collector import collector
from support.misbehaving import raw
from support.server import aerodrome, new_key, serve, user_of, write_config

pytestmark = pytest.mark.cli

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
#: Said by users, clients and the model; each a word that stands nowhere else.
SAID = ("zebra-prompt", "zebra-native", "zebra-system", "zebra-title", "zebra-tool", "zebra-fail", "zebra-idempotency")
TELEMETRY = """
[telemetry]
log_level = "debug"
log_format = "json"
metrics_token = "zebra-metrics-token"
traces = "{url}"
trace_headers = "x-api-key=zebra-collector-key"
runtime_traces = true
[runtime]
ping_interval = "500ms"
[limits]
turns_per_minute = 8
"""


async def a_day(url: str, gateway: str, key: str, http: Any) -> None:
    """Good turns and bad ones, over both doors; a lost runtime; refusals of every kind."""
    body = {"id": "s1", "system_message": "be a zebra-system", "title": "zebra-title"}
    await http.post("/sessions", json=body)
    headers = {**SAMPLED, "Idempotency-Key": "zebra-idempotency"}
    answer = await http.post("/sessions/s1/messages", json={"prompt": "zebra-prompt one"}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert "zebra-prompt" in answer.text
    await http.post("/sessions/s1/messages", json={"prompt": "zebra-prompt two"}, headers=headers)  # a conflict
    await http.post("/sessions/s1/messages", json={"prompt": "[[fail: 400]] zebra-fail"})
    await http.post("/sessions/s1/messages", json={"prompt": "zebra-prompt", "wrong": "zebra-prompt"})
    await http.post("/sessions/s1/messages", content=b'{"prompt": "zebra-prompt')
    await http.get("/sessions/s1", headers={"Authorization": f"Bearer {key}x"})
    async with raw(gateway, key) as client:
        await client.request("session.create", {"sessionId": "n1", "systemMessage": {"content": "zebra-system"}})
        await client.request("session.send", {"sessionId": "n1", "prompt": "zebra-native", **SAMPLED})
        await client.request("session.send", {"sessionId": "n1", "prompt": "zebra-native", "zebra-tool": "x"})
        await client.request("session.shell.exec", {"sessionId": "n1", "command": "echo zebra-tool"})
        await client.request("session.send", {"sessionId": "gone", "prompt": "zebra-native"})
        await client.send({"jsonrpc": "2.0", "id": 1, "method": "connect", "params": {"token": f"{key}zebra"}})
        await client.receive()
    for number in range(9):
        await http.post("/sessions/s1/messages", json={"prompt": f"zebra-prompt {number}"})


async def test_nothing_said_and_nothing_secret_is_logged(tmp_path: Path, model: ModelServer) -> None:
    with collector() as otel:
        config = write_config(tmp_path, model.base_url, TELEMETRY.format(url=otel.url), ttl="15s")
        key = await new_key(config, "alice", "acme")
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(serve(config))
            alice = await stack.enter_async_context(user_of(server, key))
            await a_day(server.url, server.gateway, key, alice.http)
            listed = await aerodrome("runtimes", "ls", "--config", str(config), "--json")
            (serving, *_) = [row for row in listed if row["state"] == "claimed"]
            tokens = [_token_of(serving["pid"]), *_peer_tokens(tmp_path)]
            assert len(tokens) == 2
            server.send_signal(signal.SIGTERM)
            await asyncio.wait_for(server.process.wait(), 60)
        log = server.log.read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert len(lines) > 30
    for secret in (*SAID, key, key.rpartition("_")[2], "test-key", "zebra", *tokens):
        assert secret not in log, [line for line in log.splitlines() if secret in line][:3]
    # What is there instead.
    of_trace = [line for line in lines if line.get("trace_id") == TRACE]
    ended = [line for line in of_trace if line["event"] == "turn.ended"]
    assert {line["session"] for line in ended} == {"acme/s1", "acme/n1"}
    for line in ended:
        assert re.fullmatch(r"turn_[0-9a-f]{32}", line["turn"])
        assert re.fullmatch(r"[0-9a-f]{16}", line["span_id"])
        assert line["tenant"] == "acme"
    awake = next(line for line in lines if line["event"] == "session.awake" and line["session"] == "acme/s1")
    assert (awake["trace_id"], awake["turn"]) == (TRACE, ended[0]["turn"])
    spans = {span.id: span for span in otel.spans}
    assert {spans[line["span_id"]].name for line in ended} == {"turn"}


def _token_of(pid: int) -> str:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = [value for value in environment if value.startswith(b"COPILOT_CONNECTION_TOKEN=")]
    return found[0].partition(b"=")[2].decode()


def _peer_tokens(directory: Path) -> list[str]:
    with sqlite3.connect(directory / "data" / "coordination.sqlite3") as connection:
        found = [token for (token,) in connection.execute("SELECT peer_token FROM node")]
    connection.close()
    return [token for token in found if token]
