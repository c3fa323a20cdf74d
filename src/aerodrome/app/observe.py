"""What a node says of itself, put together from the settings: the adapters of the port `aerodrome.telemetry`."""

from __future__ import annotations

import importlib
import platform
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import httpx
import psutil

from aerodrome import __version__
from aerodrome.config.provider_settings import reveal
from aerodrome.config.settings import Settings
from aerodrome.config.telemetry_settings import TelemetrySettings, parse_headers
from aerodrome.errors import ConfigError
from aerodrome.model import SessionState, TurnStatus
from aerodrome.observability.prometheus import Exposition, PrometheusMeter, StateCollector, new_registry
from aerodrome.observability.state import NodeState
from aerodrome.runtime.machine import RuntimeState
from aerodrome.runtime.supervisor import ManagedRuntime
from aerodrome.telemetry import Telemetry
from aerodrome.telemetry.meter import Meter, Traffic
from aerodrome.telemetry.trace import Tracer

if TYPE_CHECKING:
    from aerodrome.app.node import Node
    from aerodrome.observability.tracing import OtelTracer


#: Seconds that a collector may take to answer `aerodrome doctor`.
_COLLECTOR_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Observability:
    telemetry: Telemetry
    #: ``None``: nothing is measured.
    exposition: Exposition | None


def open_observability(settings: Settings, look: Callable[[], NodeState]) -> Observability:
    """Raises `ConfigError`: the extra for traces is not installed."""
    options = settings.telemetry
    clients, upstream = Traffic(), Traffic()
    meter, exposition = Meter(), None
    if options.metrics_address is not None or options.metrics_token is not None:
        registry = new_registry()
        meter = PrometheusMeter(registry, tenants=options.tenant_labels)
        registry.register(StateCollector(look, {"client": clients, "upstream": upstream}))
        exposition = Exposition(registry, lambda: reveal(options.metrics_token))
    tracer = Tracer() if options.traces is None else _tracer(settings, options.traces)
    return Observability(Telemetry(meter, tracer, clients, upstream), exposition)


def _tracer(settings: Settings, url: str) -> OtelTracer:
    try:
        module = importlib.import_module("aerodrome.observability.tracing")
    except ImportError as error:
        raise ConfigError(f"telemetry.traces needs OpenTelemetry ({error}): install 'aerodrome[otel]'") from None
    tracer = module.otlp_tracer(
        url,
        headers=lambda: headers_of(settings.telemetry),
        sampling=settings.telemetry.trace_sampling,
        resource={
            "service.name": "aerodrome",
            "service.version": __version__,
            "service.instance.id": settings.server.node_name,
            "host.name": socket.gethostname(),
            "process.runtime.version": platform.python_version(),
        },
    )
    return cast("OtelTracer", tracer)


async def problem_with_collector(settings: Settings) -> str | None:
    """Send it an export of nothing; why that is not taken, if it is not. Raises as `open_observability`."""
    options = settings.telemetry
    assert options.traces is not None
    _tracer(settings, options.traces).shutdown()
    headers = {**headers_of(options), "content-type": "application/x-protobuf"}
    try:
        async with httpx.AsyncClient(timeout=_COLLECTOR_TIMEOUT) as client:
            answer = await client.post(f"{options.traces.rstrip('/')}/v1/traces", headers=headers)
    except httpx.HTTPError as error:
        return f"the collector at {options.traces} does not answer: {str(error) or type(error).__name__}"
    return None if answer.is_success else f"the collector at {options.traces} answers {answer.status_code}"


def headers_of(options: TelemetrySettings) -> dict[str, str]:
    """For the collector, as they are now."""
    text = reveal(options.trace_headers)
    return {} if text is None else parse_headers(text)


def runtime_env(options: TelemetrySettings) -> dict[str, str]:
    """What makes a Copilot CLI that is started now send its own traces (docs/facts.md, "Telemetry"): without what is
    said in them."""
    if options.traces is None or not options.runtime_traces:
        return {}
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": options.traces.rstrip("/"),
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "aerodrome-runtime",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "false",
    }
    if headers := headers_of(options):
        env["OTEL_EXPORTER_OTLP_HEADERS"] = ",".join(f"{name}={value}" for name, value in headers.items())
    return env


def state_of(node: Node, cli_version: str) -> NodeState:
    """How the node stands. Cheap: it is asked at each reading of the metrics, on the event loop."""
    settings, sessions = node.settings, node.sessions.live
    loaded = [live for live in sessions if live.activation is not None]
    states = Counter(live.listed_state.value for live in loaded)
    turns = Counter(run.row.status is TurnStatus.QUEUED for live in sessions for run in live.turns.all)
    # Whom another node passes on is counted there.
    clients = [client.who for client in node.gateway.clients if client.principal is not None and not client.relayed]
    users = {(live.row.key.tenant, live.row.owner) for live in loaded} | {(who.tenant, who.user) for who in clients}
    runtimes = node.pool.runtimes
    by_state = Counter(runtime.state.value for runtime in runtimes)
    attached = Counter(dict.fromkeys(("claimed", "failed"), 0))
    attached.update(row["state"] for row in node.attached.describe())
    return NodeState(
        version=__version__,
        cli_version=cli_version,
        accepting=node.condition.accepting,
        draining=node.sessions.draining,
        sessions={state.value: states[state.value] for state in (SessionState.RESIDENT, SessionState.RUNNING)},
        turns_in_progress=turns[False],
        turns_queued=turns[True],
        users_active=len(users),
        leases_held=len(loaded),
        runtimes={state.value: by_state[state.value] for state in RuntimeState if not state.is_final},
        attached=attached,
        runtimes_limit=settings.runtime.max_runtimes,
        places_used=sum(runtime.reserved for runtime in runtimes),
        places_limit=settings.runtime.max_runtimes * settings.runtime.max_sessions,
        runtime_memory=tuple(map(_memory, runtimes)),
        http_connections=0 if node.http_server is None else node.http_server.connections,
        event_streams=0 if node.readers is None else node.readers.count,
        gateway_clients=len(clients),
        heartbeat_age=node.condition.heartbeat_age,
        heartbeat_ttl=settings.coordination.ttl,
    )


def _memory(runtime: ManagedRuntime) -> int:
    if runtime.pid is None:
        return 0
    try:
        return int(psutil.Process(runtime.pid).memory_info().rss)
    except psutil.Error:
        return 0  # it has just gone
