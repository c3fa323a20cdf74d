"""Traces of a real run, as a collector receives them: from the caller's span down to the runtime's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aerodrome.demo.model import ModelServer
from support.collector import Collector, Received, collector, spans_of
from support.hop import hop
from support.host import host, until
from support.misbehaving import RawClient, raw

pytestmark = pytest.mark.cli

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"}
PROMPT = "tell nobody of the purple giraffe"


@pytest.fixture
def otel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # milliseconds; by itself a node sends every five seconds
    with collector() as running:
        yield running


def telemetry(otel: Collector, **more: Any) -> dict[str, Any]:
    return {"traces": otel.url, "trace_headers": "x-api-key=collector-secret", **more}


def one(spans: list[Received]) -> Received:
    assert len(spans) == 1, spans
    return spans[0]


async def test_a_turn_over_http_is_one_trace_from_the_caller_to_the_runtime(
    tmp_path: Path, model: ModelServer, otel: Collector
) -> None:
    settings = telemetry(otel, runtime_traces=True)
    async with host(tmp_path, model, telemetry=settings) as running:
        alice = await running.user()
        await alice.open("s1")
        response = await alice.http.post("/sessions/s1/messages", json={"prompt": PROMPT}, headers=SAMPLED)
        assert response.status_code == 200
        # The runtime sends in intervals of its own, and what is left when it ends.
        await until(lambda: bool(otel.named("invoke_agent")), timeout=60)
    request = one(otel.named("POST /api/v1/sessions/{session_id}/messages"))
    turn = one(otel.named("turn"))
    wake = one(otel.named("session.wake"))
    agent = one([span for span in otel.named("invoke_agent") if span.trace == TRACE])
    chat = one([span for span in otel.spans if span.name.startswith("chat") and span.trace == TRACE])
    assert (request.trace, request.parent) == (TRACE, CALLER)
    assert turn.parent == request.id
    assert wake.parent == turn.id
    assert (agent.service, agent.parent) == ("aerodrome-runtime", turn.id)
    assert chat.parent == agent.id
    # What the runtime stores in the turn, and what waking it has read.
    assert {span.parent for span in otel.named("files.append")} == {turn.id}
    assert wake.id in {span.parent for span in otel.named("files.raise_epoch")}
    assert turn.id in {span.parent for span in otel.named("ledger.accept")}
    assert turn.attributes["gen_ai.conversation.id"] == "s1"
    assert turn.attributes["aerodrome.turn.status"] == "completed"
    assert "gen_ai.client.operation.duration" in otel.metrics
    assert all(headers["x-api-key"] == "collector-secret" for _, headers, _ in otel.requests)


async def test_changed_headers_are_sent_by_the_node_and_by_runtimes_that_start(
    tmp_path: Path, model: ModelServer, otel: Collector
) -> None:
    secret = tmp_path / "headers"
    secret.write_text("x-api-key=one\n")
    settings = {"traces": otel.url, "trace_headers": f"file:{secret}", "runtime_traces": True}
    async with host(tmp_path, model, telemetry=settings) as running:
        alice = await running.user()
        await alice.open("s1")
        await alice.text("s1", PROMPT)
        await until(lambda: bool(otel.named("turn")), timeout=60)
        assert {headers["x-api-key"] for _, headers, _ in otel.requests} == {"one"}
        secret.write_text("x-api-key=two, x-team=red\n")
        await alice.text("s1", PROMPT)
        await until(lambda: len(otel.named("turn")) == 2, timeout=60)
        assert _headers(otel, "turn") == [("one", None), ("two", "red")]
        # What is no list of headers is not taken.
        secret.write_text("two-without-a-name\n")
        await alice.text("s1", PROMPT)
        await until(lambda: len(otel.named("turn")) == 3, timeout=60)
        assert _headers(otel, "turn")[2] == ("two", "red")
        problem = "expected name=value, and commas between several"
        assert running.node.secrets.problems == {"telemetry.trace_headers": problem}
        await running.node.pool.recycle(running.runtime().id, "turns")
        await alice.text("s1", PROMPT)
    agents = _headers(otel, "invoke_agent")
    assert (agents[0], agents[-1]) == (("one", None), ("two", "red"))


def _headers(otel: Collector, name: str) -> list[tuple[str, str | None]]:
    """Two that came with each span of that name."""
    return [
        (headers["x-api-key"], headers.get("x-team"))
        for path, headers, body in otel.requests
        if path == "/v1/traces"
        for span in spans_of(body)
        if span.name == name
    ]


async def test_nothing_that_was_said_is_in_a_trace(tmp_path: Path, model: ModelServer, otel: Collector) -> None:
    async with host(tmp_path, model, telemetry=telemetry(otel, runtime_traces=True)) as running:
        alice = await running.user()
        key = alice.http.headers["Authorization"].partition(" ")[2]
        await alice.open("s1", title="the giraffe's own title")
        answer = await alice.text("s1", PROMPT)
        await until(lambda: bool(otel.named("invoke_agent")), timeout=60)
        tokens = [runtime.token for runtime in running.node.pool.runtimes]
    assert "giraffe" in answer
    everything = b"".join(body for _, _, body in otel.requests)
    assert b"aerodrome.turn.id" in everything
    for secret in ("giraffe", key, "test-key", *tokens):
        assert secret.encode() not in everything, secret


async def test_a_native_client_s_trace_goes_on(tmp_path: Path, model: ModelServer, otel: Collector) -> None:
    async with (
        host(tmp_path, model, telemetry=telemetry(otel)) as running,
        raw(running.gateway_address, await running.key()) as client,
    ):
        await asked(client, "session.create", sessionId="n1")
        await asked(client, "session.send", sessionId="n1", prompt=PROMPT)
    create, send = one(otel.named("session.create")), one(otel.named("session.send"))
    assert {(span.trace, span.parent) for span in (create, send)} == {(TRACE, CALLER)}
    assert one(otel.named("session.wake")).parent == create.id
    turn = one(otel.named("turn"))
    assert (turn.trace, turn.parent) == (TRACE, send.id)


async def test_traces_go_through_the_node_between(tmp_path: Path, model: ModelServer, otel: Collector) -> None:
    async with hop(tmp_path, model, telemetry=telemetry(otel)) as nodes:
        alice = await nodes.front.user()
        await alice.open("s1")
        response = await alice.http.post("/sessions/s1/messages", json={"prompt": PROMPT}, headers=SAMPLED)
        assert response.status_code == 200
        async with raw(nodes.front.gateway_address, await nodes.front.key()) as client:
            await asked(client, "session.create", sessionId="n1")
            await asked(client, "session.send", sessionId="n1", prompt=PROMPT)
    request = one(otel.named("POST /api/v1/sessions/{session_id}/messages"))
    forward = one(otel.named("forward"))
    assert (request.parent, forward.parent, forward.attributes["aerodrome.node"]) == (CALLER, request.id, "back")
    assert one(otel.named("turn", **{"gen_ai.conversation.id": "s1"})).parent == forward.id
    at_front = one([span for span in otel.named("session.send") if span.parent == CALLER])
    at_back = one([span for span in otel.named("session.send") if span.parent == at_front.id])
    assert one(otel.named("turn", **{"gen_ai.conversation.id": "n1"})).parent == at_back.id
    assert {span.trace for span in (request, forward, at_front, at_back)} == {TRACE}


async def test_without_traces_of_its_own_a_node_passes_the_caller_s_on(
    tmp_path: Path, model: ModelServer, otel: Collector
) -> None:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": otel.url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    async with host(tmp_path, model, runtime={"env": env}) as running:
        alice = await running.user()
        await alice.open("s1")
        await alice.http.post("/sessions/s1/messages", json={"prompt": PROMPT}, headers=SAMPLED)
        await until(lambda: any(span.trace == TRACE for span in otel.named("invoke_agent")), timeout=60)
    assert one([span for span in otel.named("invoke_agent") if span.trace == TRACE]).parent == CALLER
    assert {span.service for span in otel.spans} == {"github-copilot"}


async def test_what_a_caller_does_not_want_kept_is_not(tmp_path: Path, model: ModelServer, otel: Collector) -> None:
    unsampled = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
    async with host(tmp_path, model, telemetry=telemetry(otel, trace_sampling=0.0)) as running:
        alice = await running.user()
        await alice.open("s1")
        await alice.http.post("/sessions/s1/messages", json={"prompt": "one"}, headers=unsampled)
        await alice.http.post("/sessions/s1/messages", json={"prompt": "two"})
        await alice.http.post("/sessions/s1/messages", json={"prompt": "three"}, headers=SAMPLED)
    assert len(otel.named("turn")) == 1


async def test_a_collector_that_is_away_holds_nobody_up(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path, model, telemetry={"traces": "http://127.0.0.1:9"}) as running:
        alice = await running.user()
        await alice.open("s1")
        assert await alice.text("s1", "hello") == "echo: hello"


async def asked(client: RawClient, method: str, **params: Any) -> Any:
    answer = await client.request(method, {**params, **SAMPLED})
    assert "result" in answer, answer
    return answer["result"]
