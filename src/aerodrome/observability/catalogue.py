"""Every metric of a node: its name, what it counts, its labels. `docs/metrics.md` is made from this.

Labels have few values: states, codes, routes, operations. None has the id of anything, and tenants are in them only as
far as `telemetry.tenant_labels` allows. Names are those of Prometheus; where OpenTelemetry has conventions (`gen_ai.*`,
`http.server.*`) they are its names, translated as its exporter for Prometheus does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

#: Seconds. Of work that takes a moment, of work that a model takes its time for, and of what a store does.
_MOMENTS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TURNS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_CALLS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
#: What the semantic conventions for generative AI ask for.
_GEN_AI_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_GEN_AI_TOKENS = tuple(4.0**power for power in range(14))


@dataclass(frozen=True, slots=True)
class Metric:
    #: Without the `_total` that a counter is exposed with.
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = field(default=(), repr=False)

    @property
    def exposed(self) -> tuple[str, ...]:
        """The names of its series."""
        if self.kind == "counter":
            return (f"{self.name}_total",)
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


def _metric(kind: Kind, name: str, text: str, *labels: str, buckets: tuple[float, ...] = ()) -> Metric:
    return Metric(name, kind, text, labels, buckets)


TURNS = _metric(
    "counter", "aerodrome_turns", "Turns that have ended, by status and error code.", "status", "code", "tenant"
)
TURN_SECONDS = _metric(
    "histogram",
    "aerodrome_turn_seconds",
    "From the acceptance of a prompt to the end of its turn.",
    "status",
    buckets=_TURNS,
)
TURN_WAIT = _metric(
    "histogram",
    "aerodrome_turn_wait_seconds",
    "From the acceptance of a prompt to its place among the turns that run, behind those of its own session.",
    buckets=_TURNS,
)
FIRST_EVENT = _metric(
    "histogram",
    "aerodrome_turn_first_event_seconds",
    "From the acceptance of a prompt to the first event of its answer.",
    buckets=_TURNS,
)
RETRIES = _metric("counter", "aerodrome_turns_retried", "Turns that were sent again because their runtime was lost.")
TURNS_NOW = _metric("gauge", "aerodrome_turns_in_progress", "Turns that run now.")
TURNS_QUEUED = _metric("gauge", "aerodrome_turns_queued", "Accepted prompts that wait.")

TOKENS_USED = _metric(
    "histogram",
    "gen_ai_client_token_usage",
    "Tokens of each call of a model (OpenTelemetry's gen_ai.client.token.usage).",
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_token_type",
    buckets=_GEN_AI_TOKENS,
)
MODEL_SECONDS = _metric(
    "histogram",
    "gen_ai_client_operation_duration_seconds",
    "Time of each call of a model, as the runtime has measured it (gen_ai.client.operation.duration).",
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    buckets=_GEN_AI_SECONDS,
)
TOKENS = _metric("counter", "aerodrome_tokens", "Tokens of all calls of models.", "type", "tenant")

SESSIONS = _metric("gauge", "aerodrome_sessions", "Sessions that are loaded in this node, by state.", "state")
USERS = _metric("gauge", "aerodrome_users_active", "Users who own a loaded session or have a native client here.")
LEASES = _metric("gauge", "aerodrome_leases_held", "Leases of sessions that this node holds.")
WAKE_SECONDS = _metric(
    "histogram",
    "aerodrome_session_wake_seconds",
    "Loading a session into a runtime, the wait for a place included. cause=failover: where it was before was lost.",
    "cause",
    buckets=_MOMENTS,
)
SESSIONS_LOST = _metric(
    "counter", "aerodrome_sessions_lost", "Sessions that were lost with their runtime, their lease or a refused write."
)
QUARANTINES = _metric(
    "counter", "aerodrome_sessions_quarantined", "Sessions that have made runtimes end, and are loaded no more."
)
HIBERNATIONS = _metric("counter", "aerodrome_sessions_hibernated", "Sessions that were put to sleep.")

RUNTIMES = _metric("gauge", "aerodrome_runtimes", "Runtimes of this node, by state.", "state")
RUNTIMES_LIMIT = _metric("gauge", "aerodrome_runtimes_limit", "The setting runtime.max_runtimes.")
PLACES_USED = _metric("gauge", "aerodrome_session_places_used", "Places of sessions in runtimes that are taken.")
PLACES_LIMIT = _metric(
    "gauge", "aerodrome_session_places_limit", "Places of sessions that there may be: max_runtimes times max_sessions."
)
ATTACHED = _metric("gauge", "aerodrome_attached_servers", "Attached servers as this node sees them, by state.", "state")
MEMORY_SUM = _metric("gauge", "aerodrome_runtime_memory_sum_bytes", "Resident memory of all runtimes.")
MEMORY_MAX = _metric("gauge", "aerodrome_runtime_memory_max_bytes", "Resident memory of the largest runtime.")
START_SECONDS = _metric(
    "histogram",
    "aerodrome_runtime_start_seconds",
    "Start of a runtime, until it has proved that it can take a turn.",
    buckets=_MOMENTS,
)
START_FAILURES = _metric("counter", "aerodrome_runtime_start_failures", "Runtimes that did not start.")
RUNTIMES_ENDED = _metric(
    "counter",
    "aerodrome_runtimes_ended",
    "Runtimes that have ended, by reason: lost, idle, room, surplus, drain, or why one was recycled.",
    "reason",
)

STORE_SECONDS = _metric(
    "histogram",
    "aerodrome_store_call_seconds",
    "Calls of a store: files, ledger, directory, keys or coordination.",
    "store",
    "operation",
    buckets=_CALLS,
)
STORE_FAILURES = _metric(
    "counter", "aerodrome_store_failures", "Calls of a store that failed.", "store", "operation", "code"
)
FENCED = _metric(
    "counter", "aerodrome_fencing_refusals", "Writes that a store refused because their epoch was over.", "store"
)

HTTP_SECONDS = _metric(
    "histogram",
    "http_server_request_duration_seconds",
    "HTTP requests (http.server.request.duration); a stream lasts as long as it is read.",
    "http_request_method",
    "http_route",
    "http_response_status_code",
    buckets=_TURNS,
)
ERRORS = _metric(
    "counter", "aerodrome_request_errors", "Requests that were answered with an error, by its code.", "door", "code"
)
CONNECTIONS = _metric(
    "gauge",
    "aerodrome_http_connections",
    "Connections to the HTTP API of this node, idle ones and strangers' included.",
)
READERS = _metric("gauge", "aerodrome_http_event_streams", "Streams of events that are read from this node over HTTP.")
CLIENTS = _metric("gauge", "aerodrome_gateway_clients", "Native clients of this node that have shown who they are.")
FRAMES = _metric(
    "counter",
    "aerodrome_gateway_frames",
    "Frames between the gateway and its clients, or in their name with runtimes and nodes (upstream).",
    "side",
    "direction",
)
BYTES = _metric("counter", "aerodrome_gateway_bytes", "Bytes of those frames.", "side", "direction")

BUILD = _metric(
    "gauge", "aerodrome_build_info", "Always 1; the labels say what runs.", "version", "cli_version", "python_version"
)
ACCEPTING = _metric("gauge", "aerodrome_node_accepting", "1 while the node takes work, as /ready says.")
DRAINING = _metric("gauge", "aerodrome_node_draining", "1 while the node drains.")
HEARTBEAT_AGE = _metric(
    "gauge", "aerodrome_heartbeat_age_seconds", "Since the latest heartbeat that the store has taken was sent."
)
HEARTBEAT_TTL = _metric("gauge", "aerodrome_heartbeat_ttl_seconds", "The setting coordination.ttl.")
FENCED_ITSELF = _metric(
    "counter", "aerodrome_node_fenced", "How often the node has given its sessions up because it could not heartbeat."
)
REBORN = _metric("counter", "aerodrome_node_reborn", "How often the node was held for dead and has begun anew.")
NODES_GONE = _metric("counter", "aerodrome_nodes_gone", "Other nodes that were held for dead, as this one has seen it.")
LOOP_LAG = _metric(
    "histogram",
    "aerodrome_event_loop_lag_seconds",
    "How much later than planned the event loop comes to a timer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
)

#: In the order of the page.
CATALOGUE: dict[str, tuple[Metric, ...]] = {
    "Turns": (
        TURNS,
        TURN_SECONDS,
        TURN_WAIT,
        FIRST_EVENT,
        RETRIES,
        TURNS_NOW,
        TURNS_QUEUED,
    ),
    "Models": (
        TOKENS_USED,
        MODEL_SECONDS,
        TOKENS,
    ),
    "Sessions": (
        SESSIONS,
        USERS,
        LEASES,
        WAKE_SECONDS,
        SESSIONS_LOST,
        QUARANTINES,
        HIBERNATIONS,
    ),
    "Runtimes": (
        RUNTIMES,
        RUNTIMES_LIMIT,
        PLACES_USED,
        PLACES_LIMIT,
        ATTACHED,
        MEMORY_SUM,
        MEMORY_MAX,
        START_SECONDS,
        START_FAILURES,
        RUNTIMES_ENDED,
    ),
    "Stores": (
        STORE_SECONDS,
        STORE_FAILURES,
        FENCED,
    ),
    "Front doors": (
        HTTP_SECONDS,
        ERRORS,
        CONNECTIONS,
        READERS,
        CLIENTS,
        FRAMES,
        BYTES,
    ),
    "The node": (
        BUILD,
        ACCEPTING,
        DRAINING,
        HEARTBEAT_AGE,
        HEARTBEAT_TTL,
        FENCED_ITSELF,
        REBORN,
        NODES_GONE,
        LOOP_LAG,
    ),
}
