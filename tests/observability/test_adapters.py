"""The adapters of the telemetry port, without a node: bounds on labels, stores timed from outside."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from aerodrome.errors import Fenced, StoreUnavailable
from aerodrome.observability.calls import observed
from aerodrome.observability.labels import OTHER, Capped
from aerodrome.observability.prometheus import Exposition, PrometheusMeter, new_registry
from aerodrome.telemetry import SILENT, Telemetry
from aerodrome.telemetry.meter import EndedTurn, Meter, ModelCall
from support.scrape import parse


@given(st.lists(st.text()), st.integers(0, 5))
def test_a_label_has_no_more_values_than_it_may(values: list[str], most: int) -> None:
    capped = Capped(most)
    labels = [capped(value) for value in values]
    assert len(set(labels) - {OTHER, *([""] if not most else [])}) <= most
    # A value keeps its label.
    assert [capped(value) for value in values] == labels
    assert all(label in (value, OTHER) or not most for label, value in zip(labels, values, strict=True))


def exposed(registry: CollectorRegistry) -> Any:
    return parse(Exposition(registry).exposition("")[0].decode())


def test_names_that_users_choose_cannot_make_series_without_end() -> None:
    registry = new_registry()
    meter = PrometheusMeter(registry, tenants=3)
    for number in range(1000):
        meter.turn_ended(EndedTurn(f"tenant-{number}", "completed", seconds=1.0))
        meter.model_called(ModelCall(f"tenant-{number}", f"provider-{number}", f"model-{number}", 1, 2, 0.5))
    found = exposed(registry)
    assert found.value("aerodrome_turns_total", tenant=OTHER) == 997
    assert len([s for s in found.samples if s.name == "gen_ai_client_token_usage_count"]) == 2 * 21
    assert len(found.samples) < 3000


def test_the_first_failure_of_a_tenant_is_an_increase() -> None:
    registry = new_registry()
    meter = PrometheusMeter(registry, tenants=1)
    for tenant in ("acme", "globex"):
        meter.turn_ended(EndedTurn(tenant, "completed"))
    before = exposed(registry)
    for tenant in ("acme", OTHER):
        assert before.value("aerodrome_turns_total", status="failed", code="store_unavailable", tenant=tenant) == 0
    meter.turn_ended(EndedTurn("acme", "failed", "store_unavailable"))
    after = exposed(registry)
    assert after.value("aerodrome_turns_total", status="failed", code="store_unavailable", tenant="acme") == 1


def test_without_tenant_labels_no_tenant_is_named() -> None:
    registry = new_registry()
    meter = PrometheusMeter(registry)
    meter.turn_ended(EndedTurn("acme", "completed"))
    meter.model_called(ModelCall("acme", "openai", "gpt", 1, 2))
    assert "acme" not in Exposition(registry).exposition("")[0].decode()


@pytest.mark.parametrize(
    "accept", ["", "*/*", ";;,=", "text/plain; version=x", "application/openmetrics-text; version=x"]
)
def test_who_asks_oddly_is_answered_plainly(accept: str) -> None:
    body, media_type = Exposition(new_registry()).exposition(accept)
    assert b"process_cpu_seconds_total" in body
    assert media_type.startswith("text/plain")


class Store:
    """Stands for one."""

    name = "a store"

    async def write(self, value: str, *, fail: Exception | None = None) -> str:
        if fail is not None:
            raise fail
        return value

    def listen(self) -> str:
        return "listening"


@pytest.mark.parametrize(
    ("error", "series", "labels"),
    [
        (Fenced("old"), "aerodrome_fencing_refusals_total", {"store": "files"}),
        (
            StoreUnavailable("away"),
            "aerodrome_store_failures_total",
            {"code": "store_unavailable", "operation": "write"},
        ),
        (KeyError("a bug"), "aerodrome_store_failures_total", {"code": "internal", "operation": "write"}),
        (FileNotFoundError(), None, {}),
    ],
)
async def test_calls_of_a_store_are_timed_and_their_failures_told_apart(
    error: Exception, series: str | None, labels: dict[str, str]
) -> None:
    registry = new_registry()
    store = observed(Store(), "files", Telemetry(PrometheusMeter(registry)))
    assert await store.write("x") == "x"
    with pytest.raises(type(error)):
        await store.write("x", fail=error)
    assert (store.listen(), store.name) == ("listening", "a store")
    found = exposed(registry)
    assert found.value("aerodrome_store_call_seconds_count", store="files", operation="write") == 2
    failures = {
        s.name: s.value for s in found.samples if s.name.endswith(("refusals_total", "failures_total")) and s.value
    }
    failures.pop("aerodrome_runtime_start_failures_total", None)
    assert failures == ({series: 1} if series is not None else {})
    if series is not None:
        assert found.value(series, **labels) == 1


def test_nobody_stands_before_a_store_that_nobody_watches() -> None:
    store = Store()
    assert observed(store, "files", SILENT) is store


def test_every_method_of_the_port_has_an_adapter() -> None:
    told = {name for name in vars(Meter) if not name.startswith("_")}
    assert told == {name for name in vars(PrometheusMeter) if not name.startswith("_")}
