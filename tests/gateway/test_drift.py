"""What the SDKs and the server say to each other, held against the record in `shapes/`.

A new version of the SDKs or of the CLI changes these. The record has the shapes of messages: method names, and names
and types of fields. For each SDK and mode there is what it sends, call by call; for the server, what it answers, asks
and tells.
"""

from __future__ import annotations

import difflib
import json
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from copilot import CopilotClient, RuntimeConnection
from copilot._jsonrpc import JsonRpcError
from copilot.rpc import PermissionDecisionApproveOnce

from aerodrome.demo.model import ModelServer
from support.node_client import node, playing
from support.recording import Exchange, Recorder, recording
from support.sdk_clients import Client, Endpoint, custom_tool
from support.shapes import shape_of

__all__ = ["node"]

pytestmark = [pytest.mark.cli, pytest.mark.asyncio(loop_scope="module")]

SHAPES = Path(__file__).parent / "shapes"
#: Set, it makes the tests write the record instead of comparing with it.
WRITE = "AERODROME_WRITE_SHAPES"
MODES = {"empty": "empty", "default": "copilot-cli"}


@pytest.fixture(scope="module")
def endpoint_kind() -> str:
    """The record is of the CLI itself."""
    return "direct"


class Record:
    """One client's conversation, cut into steps."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._steps: list[tuple[str, int]] = []

    def step(self, name: str) -> None:
        self._steps.append((name, len(self._recorder.messages)))

    def sent(self) -> Any:
        """Step -> what the client sent, in order: requests, and answers to those of the server."""
        ends = [begin for _, begin in self._steps[1:]] + [len(self._recorder.messages)]
        steps = {}
        for (name, begin), end in zip(self._steps, ends, strict=True):
            requests = [found.message for found in self._recorder.messages[begin:end] if found.up and found.method]
            steps[name] = [{m["method"]: shape_of([m.get("params")])} for m in requests]
        answers = shapes((name_of(e), outcome(e.answer)) for e in self._recorder.requests(up=False) if e.answer)
        return {"calls": steps, "answers": answers}

    def exchanges(self) -> list[Exchange]:
        return self._recorder.requests(up=True) + self._recorder.requests(up=False)

    def events(self) -> list[dict[str, Any]]:
        return self._recorder.events()

    def notifications(self) -> list[tuple[str, Any]]:
        return [(str(found.method), found.params) for found in self._recorder.notifications()]


def server_record(records: list[Record]) -> Any:
    """What the server said to all of these clients."""
    exchanges = [exchange for record in records for exchange in record.exchanges()]
    notifications = [found for record in records for found in record.notifications()]
    # Those of the trace follow the CLI's own insides.
    events = [event for record in records for event in record.events() if not event["type"].startswith("model.")]
    return {
        "answers": shapes((e.method, outcome(e.answer)) for e in exchanges if e.up and e.answer),
        "asks": shapes((name_of(e), e.params) for e in exchanges if not e.up),
        "tells": shapes((method, params) for method, params in notifications if method != "session.event"),
        "event": shape_of([{**event, "data": None} for event in events]),
        "event data": shapes((event["type"], event["data"]) for event in events),
    }


def shapes(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Name -> the shape of all values with this name."""
    groups = defaultdict(list)
    for name, value in pairs:
        groups[name].append(value)
    return {name: shape_of(groups[name]) for name in sorted(groups)}


def name_of(exchange: Exchange) -> str:
    """The method; hooks have one for all kinds."""
    kind = exchange.params.get("hookType") if isinstance(exchange.params, dict) else None
    return f"{exchange.method} {kind}" if kind else exchange.method


def outcome(answer: dict[str, Any] | None) -> Any:
    assert answer is not None
    return {"error": answer["error"]} if "error" in answer else answer["result"]


# Playing.


async def play_python(endpoint: Endpoint, mode: str, step: Callable[[str], None]) -> None:
    """Everything once."""
    connection = RuntimeConnection.for_uri(endpoint.address, connection_token=endpoint.token)
    sdk = CopilotClient(connection=connection, mode=mode)
    step("start")
    await sdk.start()
    try:
        await play(Client(sdk, endpoint, mode), step)
    finally:
        await sdk.force_stop()


async def play(client: Client, step: Callable[[str], None]) -> None:
    sdk = client.sdk
    step("status")
    await sdk.ping("hello")
    await sdk.get_status()
    await sdk.get_auth_status()
    with suppress(JsonRpcError):
        await sdk.list_models()
    step("create")
    plain = await client.create()
    step("send")
    await plain.turn("hello")
    step("abort")
    await plain.session.abort()
    step("history")
    await plain.session.get_events()
    step("find")
    await sdk.list_sessions()
    await sdk.get_session_metadata(plain.id)
    await sdk.get_last_session_id()
    step("disconnect")
    await plain.session.disconnect()
    step("resume")
    resumed = await client.resume(plain.id)
    await resumed.send("[[fail: 400]] refused")
    await resumed.until("session.idle")
    step("delete")
    await resumed.session.disconnect()
    await sdk.delete_session(plain.id)
    step("create with handlers")
    full = await client.create(**handlers())
    step("tools and questions")
    await full.turn('[[tool: look {"x": "there"}]]')
    await full.turn('[[tool: ask_user {"question": "Which?", "choices": ["red", "blue"]}]]')
    await full.session.ui.confirm("Deploy?")
    step("stop")
    # Not `stop`, which forgets its sessions first: whether it answers the hook of a session's end is then a race.
    await full.session.disconnect()


def handlers() -> dict[str, Any]:
    def returning(value: Any) -> Callable[..., Awaitable[Any]]:
        async def handler(*_: Any) -> Any:
            return value

        return handler

    hooks = (
        *("session_start", "user_prompt_submitted", "user_prompt_transformed", "pre_tool_use", "post_tool_use"),
        *("agent_stop", "session_end"),
    )
    return {
        "streaming": True,
        "tools": [custom_tool("look")],
        "on_permission_request": returning(PermissionDecisionApproveOnce()),
        "on_user_input_request": returning({"answer": "blue", "wasFreeform": False}),
        "on_elicitation_request": returning({"action": "accept", "content": {"confirmed": True}}),
        "on_exit_plan_mode_request": returning({"approved": True, "selectedAction": "interactive"}),
        "system_message": {
            "mode": "customize",
            "sections": {"tone": {"action": lambda content: content}},
            "content": "More.",
        },
        "hooks": {f"on_{name}": returning(None) for name in hooks},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def records(node: str, endpoint: Endpoint, model: ModelServer) -> AsyncIterator[dict[str, Record]]:
    """SDK and mode -> what was said."""
    host, _, port = endpoint.address.rpartition(":")
    found = {}
    for name, mode in MODES.items():
        async with recording(host, int(port)) as recorder:
            found[f"python-{name}"] = record = Record(recorder)
            await play_python(replace(endpoint, address=recorder.address), mode, record.step)
        async with (
            recording(host, int(port)) as recorder,
            playing(node, replace(endpoint, address=recorder.address), model) as client,
        ):
            found[f"node-{name}"] = record = Record(recorder)
            client.on_step = record.step
            await client.play("record", mode=mode)
    yield found


# Comparing.


@pytest.mark.parametrize("name", [f"{sdk}-{mode}" for sdk in ("python", "node") for mode in MODES])
async def test_what_an_sdk_sends(records: dict[str, Record], endpoint: Endpoint, name: str) -> None:
    compare(name, records[name].sent(), without=() if endpoint.credentials else ("provider",))


async def test_what_the_server_says(records: dict[str, Record]) -> None:
    compare("server", server_record(list(records.values())))


def compare(name: str, found: Any, without: tuple[str, ...] = ()) -> None:
    """Fields in `without` are in the record and not in what was found."""
    path = SHAPES / f"{name}.json"
    if os.environ.get(WRITE):
        path.parent.mkdir(exist_ok=True)
        path.write_text(rendered(found))
    recorded = rendered(stripped(json.loads(path.read_text()), without))
    if (now := rendered(found)) == recorded:
        return
    lines = difflib.unified_diff(
        recorded.splitlines(), now.splitlines(), f"recorded in shapes/{name}.json", "found now", lineterm="", n=6
    )
    pytest.fail(
        "\n".join(lines)
        + "\n\nIf that is right (docs/facts.md may want a new line), record it:\n"
        + f"    {WRITE}=1 .venv/bin/pytest tests/gateway/test_drift.py",
        pytrace=False,
    )


def rendered(shape: Any) -> str:
    return json.dumps(shape, indent=2) + "\n"


def stripped(shape: Any, names: tuple[str, ...]) -> Any:
    if isinstance(shape, dict):
        return {name: stripped(item, names) for name, item in shape.items() if name not in names}
    if isinstance(shape, list):
        return [stripped(item, names) for item in shape]
    return shape
