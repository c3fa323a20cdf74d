"""An OpenTelemetry collector of the test's own: OTLP over HTTP, binary, decoded with the official messages."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    """A span."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    failed: bool


@dataclass
class Collector:
    url: str
    #: Path, headers, body of everything that has come.
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def spans(self) -> list[Received]:
        return [span for path, _, body in list(self.requests) if path == "/v1/traces" for span in spans_of(body)]

    @property
    def metrics(self) -> set[str]:
        found: set[str] = set()
        for path, _, body in list(self.requests):
            if path == "/v1/metrics":
                message = ExportMetricsServiceRequest.FromString(body)
                scopes = [scope for resource in message.resource_metrics for scope in resource.scope_metrics]
                found |= {metric.name for scope in scopes for metric in scope.metrics}
        return found

    def named(self, name: str, **attributes: Any) -> list[Received]:
        return [
            span
            for span in self.spans
            if span.name == name and all(span.attributes.get(key) == value for key, value in attributes.items())
        ]


def spans_of(body: bytes) -> Iterator[Received]:
    message = ExportTraceServiceRequest.FromString(body)
    for resource in message.resource_spans:
        service = {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"]
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            yield Received(
                service,
                span.name,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                {
                    each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value")
                    for each in span.attributes
                },
                span.status.code == 2,
            )


@contextmanager
def collector() -> Iterator[Collector]:
    received = Collector("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            received.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        received.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()
