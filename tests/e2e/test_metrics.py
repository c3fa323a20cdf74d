"""What a node with real runtimes says of its work at `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from aerodrome.demo.model import ModelServer
from aerodrome.errors import ConfigError
from aerodrome.observability.catalogue import CATALOGUE
from support.host import Host, host, until
from support.misbehaving import raw
from support.scrape import Scrape, parse, scrape

pytestmark = pytest.mark.cli

TOKEN = "a-token-for-prometheus"


@pytest.fixture
async def measured(tmp_path: Path, model: ModelServer) -> AsyncIterator[Host]:
    telemetry = {"metrics_token": TOKEN, "tenant_labels": 1}
    async with host(tmp_path, model, telemetry=telemetry, limits={"turns_per_minute": 6}) as running:
        yield running


async def read(running: Host) -> Scrape:
    return await scrape(running.url, TOKEN)


async def test_turns_sessions_and_runtimes_are_counted(measured: Host) -> None:
    alice, bob = await measured.user(), await measured.user("bob", tenant="bank")
    await alice.open("s1")
    await bob.open("b1")
    for prompt in ("one", "two"):
        await alice.say("s1", prompt)
    await bob.say("b1", "[[fail: 400]] refused", expect=502)
    found = await read(measured)
    turns = "aerodrome_turns_total"
    assert found.value(turns, status="completed", tenant="acme") == 2
    # The second tenant is one too many to be told apart.
    assert found.value(turns, status="failed", code="turn_failed", tenant="other") == 1
    assert found.value("aerodrome_turn_seconds_count", status="completed") == 2
    assert found.value("aerodrome_turn_wait_seconds_count") == 3
    assert found.value("aerodrome_turn_first_event_seconds_count") == 2
    assert 0 < found.value("aerodrome_turn_first_event_seconds_sum") < found.value("aerodrome_turn_seconds_sum")
    assert found.value("aerodrome_sessions", state="resident") == 2
    assert found.value("aerodrome_leases_held") == found.value("aerodrome_users_active") == 2
    assert found.value("aerodrome_runtimes", state="claimed") == 2
    assert found.value("aerodrome_session_places_used") == 2
    largest = found.value("aerodrome_runtime_memory_max_bytes")
    assert 30e6 < largest < found.value("aerodrome_runtime_memory_sum_bytes") < 2.01 * largest
    assert found.value("aerodrome_runtime_start_seconds_count") == 2
    assert found.value("aerodrome_session_wake_seconds_count", cause="wake") == 2
    assert found.value("aerodrome_session_wake_seconds_count", cause="failover") == 0
    assert found.value("aerodrome_node_accepting") == 1
    assert found.value("aerodrome_heartbeat_age_seconds") < found.value("aerodrome_heartbeat_ttl_seconds") == 60
    assert found.value("aerodrome_build_info", cli_version="1.0.102") == 1


async def test_tokens_and_calls_of_the_model_have_the_names_of_opentelemetry(measured: Host) -> None:
    alice = await measured.user()
    await alice.open("s1")
    answer = await alice.say("s1", "hello")
    used = answer["usage"]
    found = await read(measured)
    labels = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "gpt-4.1"}
    for kind in ("input", "output"):
        assert found.value("gen_ai_client_token_usage_sum", gen_ai_token_type=kind, **labels) == used[f"{kind}_tokens"]
        assert found.value("aerodrome_tokens_total", type=kind, tenant="acme") == used[f"{kind}_tokens"]
    assert found.value("gen_ai_client_operation_duration_seconds_count", **labels) == used["model_calls"] == 1


async def test_stores_and_front_doors_are_timed(measured: Host) -> None:
    alice = await measured.user()
    await alice.open("s1")
    await alice.say("s1", "hello")
    await alice.http.get("/sessions/nobodys")
    await until(lambda: counted(measured, "aerodrome_store_call_seconds_count", operation="heartbeat") > 0)
    async with raw(measured.gateway_address, await measured.key()) as client:
        await client.request("session.create", {"sessionId": "n1"})
        await client.request("account.getQuota")
        await client.request("session.send", {"sessionId": "nobodys", "prompt": "x"})
        async with alice.events("s1"):
            found = await read(measured)
    calls = "aerodrome_store_call_seconds_count"
    for store, operation in (
        ("files", "append"),
        ("ledger", "finish"),
        ("directory", "insert"),
        ("keys", "get"),
        ("coordination", "heartbeat"),
    ):
        assert found.value(calls, store=store, operation=operation) >= 1
    assert found.value("aerodrome_store_failures_total") == 0
    http = "http_server_request_duration_seconds_count"
    messages = "/api/v1/sessions/{session_id}/messages"
    assert found.value(http, http_request_method="POST", http_route=messages, http_response_status_code="200") == 1
    assert found.value(http, http_route="/api/v1/sessions/{session_id}", http_response_status_code="404") == 1
    errors = "aerodrome_request_errors_total"
    assert found.value(errors, door="http", code="not_found") == 1
    assert found.value(errors, door="gateway", code="not_found") == 1
    assert found.value(errors, door="gateway", code="forbidden") == 1
    assert found.value("aerodrome_gateway_clients") == 1
    assert found.value("aerodrome_http_event_streams") == 1
    assert found.value("aerodrome_http_connections") >= 2  # that stream's, and the reading of the metrics
    for side in ("client", "upstream"):
        for direction in ("in", "out"):
            frames = found.value("aerodrome_gateway_frames_total", side=side, direction=direction)
            assert frames >= 1
            assert found.value("aerodrome_gateway_bytes_total", side=side, direction=direction) > 20 * frames


async def test_losses_retries_and_refusals_are_counted(measured: Host, model: ModelServer) -> None:
    alice = await measured.user()
    await alice.open("s1")
    turn = asyncio.create_task(alice.say("s1", "[[gate: held]] hello"))
    await model.gate_reached("held")
    now = await read(measured)
    assert now.value("aerodrome_turns_in_progress") == now.value("aerodrome_sessions", state="running") == 1
    queued = asyncio.create_task(alice.say("s1", "behind"))
    await until_queued(measured)
    measured.process().kill()
    model.open_gate("held")
    await asyncio.gather(turn, queued)
    # Six, and one more for each ten seconds that have passed.
    answers = [await alice.http.post("/sessions/s1/messages", json={"prompt": "more"})]
    while answers[-1].status_code == 200 and len(answers) < 20:
        answers.append(await alice.http.post("/sessions/s1/messages", json={"prompt": "more"}))
    assert answers[-1].status_code == 429
    found = await read(measured)
    assert found.value("aerodrome_turns_retried_total") == 1
    assert found.value("aerodrome_sessions_lost_total") == 1
    assert found.value("aerodrome_session_wake_seconds_count", cause="failover") == 1
    assert found.value("aerodrome_runtimes_ended_total", reason="lost") == 1
    assert found.value("aerodrome_request_errors_total", door="http", code="rate_limited") == 1
    assert found.value("aerodrome_turns_queued") == 0


async def test_a_recycled_runtime_has_its_reason(measured: Host) -> None:
    alice = await measured.user()
    await alice.open("s1")
    await alice.say("s1", "hello")
    await measured.node.pool.recycle(measured.runtime().id, "by hand")
    assert await alice.text("s1", "again") == "echo: again"
    found = await read(measured)
    assert found.value("aerodrome_runtimes_ended_total", reason="by hand") == 1
    assert found.value("aerodrome_runtimes_ended_total") == 1


async def test_an_attached_server_that_is_away_is_seen(tmp_path: Path, model: ModelServer) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    sections: dict[str, dict[str, Any]] = {
        "state": {"url": f"volume:{volume}", "tables": "sqlite"},
        "runtime": {"attach": [{"address": "127.0.0.1:9", "tenant": "acme", "token": "x"}]},
        "telemetry": {"metrics_token": TOKEN},
    }
    async with host(tmp_path / "node", model, **sections) as running:
        await until(lambda: bool(running.node.attached.describe()))
        found = await read(running)
    assert found.value("aerodrome_attached_servers", state="failed") == 1
    assert found.value("aerodrome_attached_servers", state="claimed") == 0


async def until_queued(running: Host) -> None:
    async with asyncio.timeout(60):
        while (await read(running)).value("aerodrome_turns_queued") != 1:
            await asyncio.sleep(0.02)


async def test_a_refused_write_is_a_fencing_refusal(measured: Host) -> None:
    alice = await measured.user()
    await alice.open("s1")
    await alice.say("s1", "hello")
    (live,) = measured.node.sessions.live
    assert live.activation is not None
    # As another node would that has taken the session over.
    await measured.node.stores.files.raise_epoch(live.row.key, live.activation.lease.epoch + 1000)
    await alice.http.post("/sessions/s1/messages", json={"prompt": "forked?"})
    found = await read(measured)
    assert found.value("aerodrome_fencing_refusals_total", store="files") >= 1


async def test_everything_in_the_catalogue_is_exposed_and_nothing_else(measured: Host) -> None:
    alice = await measured.user()
    await alice.open("s1")
    await alice.say("s1", "hello")
    await alice.http.get("/sessions/nobodys")
    await until(lambda: counted(measured, "aerodrome_event_loop_lag_seconds_count") > 0)
    found = await read(measured)
    known = {name for metrics in CATALOGUE.values() for metric in metrics for name in metric.exposed}
    mine = {name for name in found.names if not name.startswith("process_")}
    assert mine == known
    kinds = {metric.name: metric.kind for metrics in CATALOGUE.values() for metric in metrics}
    assert {name: kind for name, kind in found.types.items() if name in kinds} == kinds
    labels = {metric.name: set(metric.labels) for metrics in CATALOGUE.values() for metric in metrics}
    by_series = {name: metric for metrics in CATALOGUE.values() for metric in metrics for name in metric.exposed}
    for sample in found.samples:
        if (metric := by_series.get(sample.name)) is not None:
            assert set(sample.labels) - {"le"} == labels[metric.name], sample


def counted(running: Host, name: str, **labels: str) -> float:
    """What is counted now; none, if there is no such series yet."""
    exposition = running.node.observability.exposition
    assert exposition is not None
    samples = parse(exposition.exposition("")[0].decode()).samples
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


# --- who may read them ---


async def test_the_token_is_asked_for_and_no_key_will_do(measured: Host) -> None:
    async with httpx.AsyncClient(base_url=measured.url) as client:
        for credential in (None, "Bearer wrong", f"Bearer {await measured.key()}", "Basic abc"):
            headers = {"Authorization": credential} if credential else {}
            response = await client.get("/metrics", headers=headers)
            assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
        accept = "application/openmetrics-text; version=1.0.0"
        response = await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}", "Accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert parse(response.text, open_metrics=True).value("aerodrome_node_draining") == 0


async def test_a_changed_token_counts_from_the_next_reading_on(tmp_path: Path, model: ModelServer) -> None:
    secret = tmp_path / "token"
    secret.write_text("first-token")
    async with (
        host(tmp_path, model, telemetry={"metrics_token": f"file:{secret}"}) as running,
        httpx.AsyncClient(base_url=running.url) as client,
    ):

        async def ask(token: str) -> int:
            return (await client.get("/metrics", headers={"Authorization": f"Bearer {token}"})).status_code

        assert [await ask("first-token"), await ask("second-token")] == [200, 401]
        secret.write_text("second-token")
        assert [await ask("first-token"), await ask("second-token")] == [401, 200]
        secret.unlink()
        assert [await ask("first-token"), await ask("second-token")] == [401, 200]


async def test_they_may_have_an_address_of_their_own(tmp_path: Path, model: ModelServer) -> None:
    telemetry = {"metrics_address": "127.0.0.1:0"}
    async with host(tmp_path, model, telemetry=telemetry) as running, httpx.AsyncClient() as client:
        address, port = running.node.metrics_address
        assert (await scrape(f"http://{address}:{port}")).value("aerodrome_node_draining") == 0
        assert (await client.get(f"http://{address}:{port}/api/v1/sessions")).status_code == 404
        # Where users come by they are not.
        assert (await client.get(f"{running.url}/metrics", headers={"Authorization": "Bearer x"})).status_code == 404


async def test_an_address_that_is_taken_is_named(tmp_path: Path, model: ModelServer) -> None:
    async with host(tmp_path / "one", model, telemetry={"metrics_address": "127.0.0.1:0"}) as running:
        taken: dict[str, Any] = {"metrics_address": f"127.0.0.1:{running.node.metrics_address[1]}"}
        with pytest.raises(ConfigError, match=r"telemetry\.metrics_address"):
            async with host(tmp_path / "two", model, telemetry=taken):
                pass
