"""The metrics of a node as Prometheus reads them: what was told (`PrometheusMeter`), and how the node stands now."""

from __future__ import annotations

import hmac
import platform
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from aerodrome.errors import (
    Capacity,
    Draining,
    Fenced,
    RateLimited,
    RuntimeUnavailable,
    StoreUnavailable,
    TurnFailed,
    TurnInterrupted,
    Unauthenticated,
)
from aerodrome.observability import catalogue
from aerodrome.observability.labels import Capped
from aerodrome.observability.state import NodeState
from aerodrome.telemetry.meter import EndedTurn, Meter, ModelCall, Traffic

#: Models and providers that are told apart: sessions may name any.
_MODELS = 20
#: Why runtimes end; operators may give reasons of their own.
_REASONS = 20
_FENCED = Fenced.code
#: How turns end, well and otherwise, and a call of each store that is made all the time.
_ENDS = (
    ("completed", ""),
    ("aborted", ""),
    ("failed", TurnFailed.code),
    ("failed", RuntimeUnavailable.code),
    ("failed", StoreUnavailable.code),
    ("failed", Capacity.code),
    ("interrupted", TurnInterrupted.code),
    ("interrupted", Draining.code),
)
_CALLS = (
    ("files", "append"),
    ("ledger", "accept"),
    ("directory", "get"),
    ("keys", "get"),
    ("coordination", "heartbeat"),
)


class PrometheusMeter(Meter):
    """Args:
    tenants: Those that are told apart.
    """

    on = True

    def __init__(self, registry: CollectorRegistry, *, tenants: int = 0) -> None:
        def counter(metric: catalogue.Metric) -> Counter:
            return Counter(metric.name, metric.help, metric.labels, registry=registry)

        def histogram(metric: catalogue.Metric) -> Histogram:
            return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)

        self._tenant, self._model, self._provider = Capped(tenants), Capped(_MODELS), Capped(_MODELS)
        self._reason = Capped(_REASONS)
        #: Labels of tenants whose turns are there at 0.
        self._begun: set[str] = set()
        self._turns = counter(catalogue.TURNS)
        self._turn_seconds = histogram(catalogue.TURN_SECONDS)
        self._turn_wait = histogram(catalogue.TURN_WAIT)
        self._first_event = histogram(catalogue.FIRST_EVENT)
        self._retries = counter(catalogue.RETRIES)
        self._tokens_used = histogram(catalogue.TOKENS_USED)
        self._model_seconds = histogram(catalogue.MODEL_SECONDS)
        self._tokens = counter(catalogue.TOKENS)
        self._wake_seconds = histogram(catalogue.WAKE_SECONDS)
        self._sessions_lost = counter(catalogue.SESSIONS_LOST)
        self._quarantines = counter(catalogue.QUARANTINES)
        self._hibernations = counter(catalogue.HIBERNATIONS)
        self._start_seconds = histogram(catalogue.START_SECONDS)
        self._start_failures = counter(catalogue.START_FAILURES)
        self._runtimes_ended = counter(catalogue.RUNTIMES_ENDED)
        self._store_seconds = histogram(catalogue.STORE_SECONDS)
        self._store_failures = counter(catalogue.STORE_FAILURES)
        self._fenced = counter(catalogue.FENCED)
        self._http_seconds = histogram(catalogue.HTTP_SECONDS)
        self._errors = counter(catalogue.ERRORS)
        self._fenced_itself = counter(catalogue.FENCED_ITSELF)
        self._reborn = counter(catalogue.REBORN)
        self._nodes_gone = counter(catalogue.NODES_GONE)
        self._loop_lag = histogram(catalogue.LOOP_LAG)
        self._begin()

    def _begin(self) -> None:
        """Have at 0 what alerts look for: a series that begins with its first failure has not increased by it."""
        for cause in ("wake", "failover"):
            self._wake_seconds.labels(cause)
        for reason in ("lost", "idle", "room"):
            self._runtimes_ended.labels(reason)
        for status, _ in _ENDS:
            self._turn_seconds.labels(status)
        self._begin_turns_of("")
        for store, operation in _CALLS:
            self._fenced.labels(store)
            self._store_failures.labels(store, operation, StoreUnavailable.code)
        for door in ("http", "gateway"):
            for error in (Capacity, RateLimited, Unauthenticated):
                self._errors.labels(door, error.code)

    def _begin_turns_of(self, tenant: str) -> None:
        self._begun.add(tenant)
        for status, code in _ENDS:
            self._turns.labels(status, code, tenant)

    def turn_ended(self, turn: EndedTurn) -> None:
        if (tenant := self._tenant(turn.tenant)) not in self._begun:
            self._begin_turns_of(tenant)
        self._turns.labels(turn.status, turn.code, tenant).inc()
        if turn.seconds is not None:
            self._turn_seconds.labels(turn.status).observe(turn.seconds)
        if turn.waited is not None:
            self._turn_wait.observe(turn.waited)
        if turn.answered is not None:
            self._first_event.observe(turn.answered)

    def turn_retried(self) -> None:
        self._retries.inc()

    def model_called(self, call: ModelCall) -> None:
        tenant = self._tenant(call.tenant)
        labels = ("chat", self._provider(call.provider), self._model(call.model))
        for kind, tokens in (("input", call.input_tokens), ("output", call.output_tokens)):
            self._tokens_used.labels(*labels, kind).observe(tokens)
            self._tokens.labels(kind, tenant).inc(tokens)
        if call.seconds is not None:
            self._model_seconds.labels(*labels).observe(call.seconds)

    def session_woken(self, seconds: float, *, after_loss: bool) -> None:
        self._wake_seconds.labels("failover" if after_loss else "wake").observe(seconds)

    def session_lost(self) -> None:
        self._sessions_lost.inc()

    def session_quarantined(self) -> None:
        self._quarantines.inc()

    def session_hibernated(self) -> None:
        self._hibernations.inc()

    def runtime_started(self, seconds: float) -> None:
        self._start_seconds.observe(seconds)

    def runtime_failed_to_start(self) -> None:
        self._start_failures.inc()

    def runtime_ended(self, reason: str) -> None:
        self._runtimes_ended.labels(self._reason(reason)).inc()

    def store_called(self, store: str, operation: str, seconds: float, failure: str | None) -> None:
        self._store_seconds.labels(store, operation).observe(seconds)
        if failure == _FENCED:
            self._fenced.labels(store).inc()
        elif failure is not None:
            self._store_failures.labels(store, operation, failure).inc()

    def http_answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._http_seconds.labels(method, route, status).observe(seconds)

    def rejected(self, door: str, code: str) -> None:
        self._errors.labels(door, code).inc()

    def fenced_itself(self) -> None:
        self._fenced_itself.inc()

    def reborn(self) -> None:
        self._reborn.inc()

    def nodes_gone(self, count: int) -> None:
        self._nodes_gone.inc(count)

    def loop_lagged(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)


class StateCollector(Collector):
    """Args:
    look: How the node stands; called at each reading.
    traffic: By side.
    """

    def __init__(self, look: Callable[[], NodeState], traffic: dict[str, Traffic]) -> None:
        self._look = look
        self._traffic = traffic

    def describe(self) -> list[Metric]:
        return []  # nothing is looked at before it is asked for

    def collect(self) -> Iterator[Metric]:
        state = self._look()
        yield _labelled(catalogue.SESSIONS, state.sessions)
        yield _labelled(catalogue.RUNTIMES, state.runtimes)
        yield _labelled(catalogue.ATTACHED, state.attached)
        for metric, value in (
            (catalogue.TURNS_NOW, state.turns_in_progress),
            (catalogue.TURNS_QUEUED, state.turns_queued),
            (catalogue.USERS, state.users_active),
            (catalogue.LEASES, state.leases_held),
            (catalogue.RUNTIMES_LIMIT, state.runtimes_limit),
            (catalogue.PLACES_USED, state.places_used),
            (catalogue.PLACES_LIMIT, state.places_limit),
            (catalogue.MEMORY_SUM, sum(state.runtime_memory)),
            (catalogue.MEMORY_MAX, max(state.runtime_memory, default=0)),
            (catalogue.CONNECTIONS, state.http_connections),
            (catalogue.READERS, state.event_streams),
            (catalogue.CLIENTS, state.gateway_clients),
            (catalogue.ACCEPTING, int(state.accepting)),
            (catalogue.DRAINING, int(state.draining)),
            (catalogue.HEARTBEAT_AGE, state.heartbeat_age),
            (catalogue.HEARTBEAT_TTL, state.heartbeat_ttl),
        ):
            yield GaugeMetricFamily(metric.name, metric.help, value=value)
        build = GaugeMetricFamily(catalogue.BUILD.name, catalogue.BUILD.help, labels=catalogue.BUILD.labels)
        build.add_metric([state.version, state.cli_version, platform.python_version()], 1)
        yield build
        yield from self._counts()

    def _counts(self) -> Iterator[Metric]:
        for metric, of in ((catalogue.FRAMES, "frames"), (catalogue.BYTES, "bytes")):
            family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            for side, traffic in self._traffic.items():
                for direction in ("in", "out"):
                    family.add_metric([side, direction], getattr(traffic, f"{of}_{direction}"))
            yield family


def _labelled(metric: catalogue.Metric, values: Any) -> Metric:
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for label, value in values.items():
        family.add_metric([label], value)
    return family


def new_registry() -> CollectorRegistry:
    """With what Prometheus' clients say of every process (`process_*`)."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody reads
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    return registry


class Exposition:
    """Implements `http.ports.Metrics`.

    Args:
        token: What tells with which token they may be read now where others come by; ``None``: with none.
    """

    def __init__(self, registry: CollectorRegistry, token: Callable[[], str | None] = lambda: None) -> None:
        self._registry = registry
        self._token = token

    def allows(self, credential: str) -> bool:
        token = self._token()
        return token is not None and hmac.compare_digest(credential.encode(), token.encode())

    def exposition(self, accept: str) -> tuple[bytes, str]:
        try:
            encode, media_type = choose_encoder(accept)
        except (TypeError, ValueError):  # as `version=abc` does, which is no reason to tell nothing
            encode, media_type = choose_encoder("")
        return encode(self._registry), media_type
