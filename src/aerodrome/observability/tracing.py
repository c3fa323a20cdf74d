"""Spans for an OpenTelemetry collector. Needs the extra `aerodrome[otel]`; imported only when traces are sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from requests import PreparedRequest, Session
from requests.auth import AuthBase

from aerodrome import __version__
from aerodrome.telemetry.trace import Kind, Span, TraceContext, Tracer, Value, current

_KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}
#: Seconds that an export may take. Spans that nobody takes are dropped, and nothing waits for them.
_EXPORT_TIMEOUT = 10


class OtelTracer(Tracer):
    on = True

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("aerodrome", __version__)

    def span(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        parent: TraceContext | None = None,
        attributes: Mapping[str, Value] | None = None,
    ) -> Span:
        context = parent if parent is not None else current()
        return OtelSpan(
            self._tracer.start_span(name, _context_of(context), kind=_KINDS[kind], attributes=attributes), context
        )

    def shutdown(self) -> None:
        """Send what is left. Blocks for at most about `_EXPORT_TIMEOUT` seconds."""
        self._provider.shutdown()


class OtelSpan(Span):
    __slots__ = ("_ended", "_span")

    def __init__(self, span: otel.Span, parent: TraceContext | None) -> None:
        super().__init__(_named(span.get_span_context(), parent))
        self._span = span
        self._ended = False

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set(self, attributes: Mapping[str, Value]) -> None:
        self._span.set_attributes(attributes)

    def end(self, error: str | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _context_of(parent: TraceContext | None) -> Context:
    """An empty one for a span that begins a trace: what the process has made current is nobody's business here."""
    if parent is None:
        return Context()
    there = SpanContext(
        trace_id=int(parent.trace_id, 16),
        span_id=int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT),
        trace_state=TraceState.from_header([parent.tracestate]) if parent.tracestate else TraceState(),
    )
    return otel.set_span_in_context(NonRecordingSpan(there), Context())


def _named(context: SpanContext, parent: TraceContext | None) -> TraceContext:
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return TraceContext(traceparent, parent.tracestate if parent is not None else "")


class _Headers(AuthBase):
    """Puts them into each request as it is made: there are secrets among them, which change."""

    def __init__(self, present: Callable[[], Mapping[str, str]]) -> None:
        self._present = present

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        request.headers.update(self._present())
        return request


def otlp_tracer(
    url: str, *, headers: Callable[[], Mapping[str, str]], sampling: float, resource: Mapping[str, Any]
) -> OtelTracer:
    """Args:
    url: The collector's, without `/v1/traces`.
    headers: What gives them for an export. Called in a thread of the exporter's.
    sampling: Share of the traces that begin here which are kept.
    resource: What the node is, by OpenTelemetry's names.
    """
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(sampling)),
        resource=Resource.create(dict(resource)),
        shutdown_on_exit=False,
    )
    session = Session()
    session.auth = _Headers(headers)
    exporter = OTLPSpanExporter(f"{url.rstrip('/')}/v1/traces", session=session, timeout=_EXPORT_TIMEOUT)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return OtelTracer(provider)
